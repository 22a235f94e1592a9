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

struct GpuOptions {
  std::vector<LayerSplit> layers;  // empty: no GPU
  bool head = false;
  size_t vram_bytes = 0;  // that this process may take, all told
  int max_rows = 0;       // of a step, at most; longer ones are cut
  bool adapt = false;     // neurons change places as they are asked for (engine/replacement.h)

  // Those of this layer do: its predictor says which are asked for, and both sides have some.
  bool adapts(int layer, int n_neurons) const { return adapt && layers[layer].predictor && layers[layer].neurons > 0 && layers[layer].neurons < n_neurons; }
};

// Bytes of device memory.
struct GpuMemory {
  size_t weights = 0, predictors = 0, kv = 0, scratch = 0, context = 0;
  size_t total() const { return weights + predictors + kv + scratch + context; }
};

}  // namespace pi
