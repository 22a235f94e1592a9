// The sparse FFN: dense, exact and predictor mode of one layer.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/config.h"
#include "engine/parallel.h"
#include "engine/stats.h"
#include "engine/weights.h"
#include "kernels/kernels.h"

namespace pi {

// Reusable buffers of `rows` rows.
struct FfnScratch {
  std::vector<float> gate, up, scores, hidden;  // [rows, n_neurons], hidden [rows, max rank]
  std::vector<int32_t> active;                  // [rows, n_neurons]
  std::vector<uint8_t> quants, hidden_quants;   // x and `hidden`, quantised, where weights are blocks
  void reserve(const ModelConfig& config, int rows, int max_rank);
};

// up = f(gate) * up, or f(up) without a gate, for n neurons; gate is overwritten.
void activate_neurons(const kernels::Table& table, const ModelConfig& config, float* gate, float* up, int n);

class Ffn {
 public:
  Ffn(const ModelConfig& config, const kernels::Table& table) : c_(config), k_(table) {}

  // out[t] = FFN(x[t]) for `rows` rows, every neuron computed. On return scratch.up holds the activations
  // [rows, n_neurons]. x and out are [rows, dim].
  void dense(const LayerWeights& w, const float* x, int rows, FfnScratch& scratch, float* out, const Executor& on,
             BytesTouched& bytes) const;

  // The same for one row, computing only the neurons that can matter: with a predictor those whose score reaches
  // `threshold`, without one (exact mode) those whose gate lets something through. Equal to dense bit for bit where no
  // active neuron was missed. `row` is the row of the scratch to work in.
  LayerStats sparse(const LayerWeights& w, bool predict, float threshold, const float* x, int row, FfnScratch& scratch,
                    float* out, const Executor& on, BytesTouched& bytes) const;

  // Share of sum |act| * ||down row|| that the neurons predicted for x hold, with counts. Computes the row densely.
  LayerStats recall(const LayerWeights& w, float threshold, const std::vector<float>& down_norms, const float* x, int row,
                    FfnScratch& scratch) const;

  // ||row|| of down_t for every neuron.
  std::vector<float> down_norms(const LayerWeights& w, const Executor& on) const;

 private:
  void dot(const MatrixView& w, VectorView bias, const int32_t* rows, int begin, int end, const kernels::Activations& x,
           float* y) const;
  kernels::Activations quantize(const LayerWeights& w, const float* x, int rows, uint8_t* out, const Executor& on) const;
  void scores(const LayerWeights& w, const kernels::Activations& x, int row, FfnScratch& scratch, const Executor& on) const;
  void down(const LayerWeights& w, const int32_t* rows, int n_rows, const float* a, int n_tokens, float* out,
            const Executor& on) const;

  const ModelConfig& c_;
  const kernels::Table& k_;
};

}  // namespace pi
