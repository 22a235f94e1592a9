// The FFN of decoding: dense, exact and predictor mode of one layer.
//
// Neurons are dealt to a fixed number of shares. A share is computed from its list of neurons to its part of the output
// without waiting for another; threads take shares, and the parts are added in order, so that the sum does not
// depend on the threads, nor on which neurons were left out because they are idle.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "engine/config.h"
#include "engine/parallel.h"
#include "engine/predictor.h"
#include "engine/stats.h"
#include "engine/weights.h"
#include "kernels/kernels.h"

namespace pi {

// The function that gates and ups go through; dRelu's is that of both.
kernels::Unary unary(Activation a);

// up = f(gate) * up, or f(up) without a gate, for n neurons; gate is overwritten.
void activate_neurons(const kernels::Table& table, const ModelConfig& config, float* gate, float* up, int n);

struct SparseRow {
  const float* x;  // [dim]
  float* out;      // [dim]
  bool predict;    // otherwise exact
  LayerStats stats;
  BytesTouched bytes;
  // Where others predicted: the neurons they ask for, neuron i of the weights being bit i + first_bit of 32-bit words.
  const uint32_t* asked = nullptr;
  int first_bit = 0;
};

// Keeps its buffers between calls; one call at a time. Weights may be a layer's last neurons alone
// (LayerWeights::from).
class Ffn {
 public:
  Ffn(const ModelConfig& config, const kernels::Table& table);

  // out[t] = FFN(x[t]) for `rows` rows, every neuron computed; x and out are [rows, dim]. `activations`, unless null,
  // receives what each neuron contributed with [rows, n_neurons].
  void dense(const LayerWeights& w, const float* x, int rows, float* out, float* activations, const Executor& on);

  // The same, computing only the neurons that can matter: with a predictor those whose score reaches `threshold`,
  // without one those whose gate lets something through. Equal to dense bit for bit where no active neuron was missed.
  // Fills each row's output and counts.
  void sparse(const LayerWeights& w, float threshold, std::span<SparseRow> rows, const Executor& on);

  // Share of sum |act| * ||down row|| that the neurons predicted for x hold, with counts. Computes the row densely.
  LayerStats recall(const LayerWeights& w, float threshold, const std::vector<float>& down_norms, const float* x);

  // ||row|| of down_t for every neuron.
  std::vector<float> down_norms(const LayerWeights& w, const Executor& on) const;

  size_t allocated_bytes() const;

 private:
  static constexpr int kShares = 16;
  // Rows that are computed together.
  static constexpr int kRows = 32;

  struct Share {
    std::vector<int32_t> neurons;  // ascending
    int first;                     // where their values stand in a row of the scratch
  };
  using Shares = std::array<Share, kShares>;
  // What one share of one row works in; views of the scratch, each as long as the share has neurons.
  struct Work {
    float *gate, *up;
    int32_t* list;
    float* part;  // [dim]
  };

  void dense_rows(const LayerWeights& w, const float* x, int rows, float* out, float* activations, const Executor& on);
  void sparse_rows(const LayerWeights& w, float threshold, std::span<SparseRow> rows, const Executor& on);
  void sparse_share(const LayerWeights& w, float threshold, const Share& share, int row, const SparseRow& in, Work work,
                    LayerStats& stats, BytesTouched& bytes);
  void test_neurons(const LayerWeights& w, std::span<const SparseRow> rows, const kernels::Activations& x,
                    const Executor& on);
  void score_neurons(const LayerWeights& w, const kernels::Activations& x, const Executor& on);
  kernels::Activations set_input(const LayerWeights& w, int rows, const Executor& on);
  const Shares& shares(int n_neurons);
  Work work(const Shares& shares, int share, int row);
  void sum_parts(const LayerWeights& w, const Shares& shares, int row, float* out);
  void reserve(int rows);
  void dot(const MatrixView& w, VectorView bias, const int32_t* rows, int n, const kernels::Activations& x, float* y,
           size_t y_stride, const MatrixView* next = nullptr) const;
  void dot_range(const MatrixView& w, VectorView bias, int begin, int end, const kernels::Activations& x, float* y,
                 const uint8_t* next) const;

  const ModelConfig& c_;
  const kernels::Table& k_;
  std::map<int, Shares> shares_;  // by number of neurons
  Predictor predictor_;
  Buffer<float> x_;                  // [rows, dim]
  Buffer<uint8_t> quants_;           // the same, quantised, where weights are blocks
  Buffer<float> gate_, up_, score_;  // [rows, n_neurons]; gate and up of sparse rows share by share
  Buffer<int32_t> list_;
  Buffer<float> parts_;         // [rows, kShares, dim]
  Buffer<LayerStats> stats_;    // [rows, kShares]
  Buffer<BytesTouched> bytes_;  // likewise
};

}  // namespace pi
