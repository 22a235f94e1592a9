// Scores of one layer's neurons by its predictor, whatever its kind (docs/architecture.md).
#pragma once

#include <cstdint>
#include <span>

#include "base/aligned.h"
#include "engine/parallel.h"
#include "engine/weights.h"
#include "kernels/kernels.h"

namespace pi {

// Keeps what is the same for all neurons of some rows. One `set_rows` at a time; then `score` from any thread, of
// ranges that do not overlap.
class Predictor {
 public:
  explicit Predictor(const kernels::Table& table) : k_(table) {}

  // Takes the rows: hidden = relu(fc1 · x + b1), or fc1 · x where the predictor is linear, or the signs of x. `x` must
  // stay until they are scored; it has quants where the predictor's matrices are blocks.
  void set_rows(const PredictorWeights& p, const kernels::Activations& x, const Executor& on);

  // scores[t * stride + i] = score of neuron i in row t, begin <= i < end.
  // mlp, svd: fc2 · hidden + b2. Low-bit gate: gate · x + b. Sign bits: scale * (signs that agree - those that do not)
  // + b.
  void score(const PredictorWeights& p, int begin, int end, float* scores, size_t stride);

  size_t allocated_bytes() const {
    return hidden_.size() * sizeof(float) + quants_.size() + signs_.size() + counts_.size() * sizeof(int32_t);
  }

 private:
  void score_signs(const PredictorWeights& p, int begin, int end, float* scores, size_t stride);

  const kernels::Table& k_;
  kernels::Activations x_{};
  Buffer<float> hidden_;            // [rows, rank]
  Buffer<uint8_t> quants_, signs_;  // hidden_ quantised, where fc2 is of blocks; [rows, dim / 8]
  Buffer<int32_t> counts_;          // [n_neurons]: signs that differ
};

// out [rows, n_neurons] = scores of the rows of `hidden` (f16 [·, dim]) that `rows` names, as decoding computes them.
void predictor_scores(const PredictorWeights& p, int dim, int n_neurons, const uint16_t* hidden,
                      std::span<const int32_t> rows, float* out, int threads);

}  // namespace pi
