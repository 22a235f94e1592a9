// Which parts of a model are the GPU's, and what they take there.
#pragma once

#include <cstddef>
#include <vector>

namespace pi {

struct LayerSplit {
  int neurons = 0;         // the GPU's are the first ones
  bool attention = false;  // projections, keys and values
  // Scores all of the layer's neurons, for both sides. True where a layer with a predictor has GPU neurons.
  bool predictor = false;

  bool ffn() const { return neurons > 0 || predictor; }
};

// Prompt rows of a step from which the host's weights are sent to the GPU instead of being multiplied here. A weight of
// b bytes takes b / link there, and 2 · rows / (CPU's FLOP/s) here: at 20 GB/s (PCIe 4.0 x16) and 1 TFLOP/s (16 cores
// with AVX2) that is even at 50 rows of f16; of q8_0, which has half the bytes and is multiplied at twice the rate,
// likewise; of q4_0 at 30. Slower CPUs would send fewer.
constexpr int kStreamRows = 48;

struct GpuOptions {
  std::vector<LayerSplit> layers;  // empty: no GPU
  bool head = false;
  size_t vram_bytes = 0;  // that this process may take, all told
  int max_rows = 0;       // of a step, at most; longer ones are cut
  int stream_rows = kStreamRows;
  int stream_neurons = 0;  // of a piece that is sent; 0: as many as copy well (engine/gpu_stream.cc)
  bool adapt = false;      // neurons change places as they are asked for (engine/replacement.h)

  // Those of this layer do: its predictor says which are asked for, and both sides have some.
  bool adapts(int layer, int n_neurons) const {
    return adapt && layers[layer].predictor && layers[layer].neurons > 0 && layers[layer].neurons < n_neurons;
  }
};

// Bytes of device memory. Recorded programs (engine/gpu_programs.h) are part of the scratch.
struct GpuMemory {
  size_t weights = 0, predictors = 0, kv = 0, scratch = 0, context = 0;
  size_t total() const { return weights + predictors + kv + scratch + context; }
};

}  // namespace pi
