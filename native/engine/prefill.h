// The products of prefill: many rows at once, weights unpacked once for all of them, sums in another order than those
// of decoding (kernels::Gemm). A row's results do not depend on the rows beside it.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/aligned.h"
#include "engine/config.h"
#include "engine/parallel.h"
#include "engine/weights.h"
#include "kernels/kernels.h"

namespace pi {

// Keeps its buffers between calls; one call at a time.
class Prefill {
 public:
  Prefill(const ModelConfig& config, const kernels::Table& table) : c_(config), k_(table) {}

  // The projections of x [rows, cols].
  void project(std::span<const Projection> projections, const float* x, int rows, const Executor& on);

  // out[t] = FFN(x[t]), every neuron computed. x and out are [rows, dim].
  void ffn(const LayerWeights& w, const float* x, int rows, float* out, const Executor& on);

  size_t allocated_bytes() const;

 private:
  int tiles(int rows) const { return (rows + k_.tile_tokens - 1) / k_.tile_tokens; }
  void pack(const float* x, int rows, int cols, bool ints, bool floats, const Executor& on);
  void multiply(const MatrixView& w, int begin, int end, int rows, float* y, size_t y_stride) const;
  void activate(const LayerWeights& w, int begin, int end, int tile, float* gate, float* up) const;
  void neurons(const LayerWeights& w, int rows, int begin, int end, float* gate, float* up, uint8_t* active) const;
  void pack_down(const MatrixView& w, const Executor& on);
  void unpack(const Buffer<float>& packed, int rows, int first, int stride, const Projection& to,
              const Executor& on) const;

  const ModelConfig& c_;
  const kernels::Table& k_;
  Buffer<uint8_t> ints_, floats_;  // the input, packed: [tiles][cols][tile_tokens]
  Buffer<float> scratch_;          // of gate and up: [threads][2][tiles][panel][tile_tokens]
  Buffer<uint8_t> active_;         // activations, packed: [tiles][n_neurons][tile_tokens]
  Buffer<uint8_t> down_;           // panels of down, where its type is a block type
  Buffer<float> out_;              // [tiles][rows of the output][tile_tokens]
};

}  // namespace pi
