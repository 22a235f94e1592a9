// What the engine knows of a model: the canonical config of model/config.ts, in C++.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/types.h"

namespace pi {

enum class Activation { kRelu, kRelu2, kFatRelu, kDRelu, kSilu, kGelu, kGeluTanh };
enum class FfnMode : uint8_t { kDense = 0, kExact = 1, kPredictor = 2 };

struct ModelConfig {
  int dim = 0, n_layers = 0, n_heads = 0, n_kv_heads = 0, head_dim = 0, n_neurons = 0, vocab = 0, max_positions = 0;
  bool rms_norm = true;  // otherwise layer norm
  float norm_eps = 0;
  bool rope = true;  // otherwise learned positions
  // [head_dim / 2] rotations per position, scaling of long-context checkpoints included.
  std::vector<double> rope_frequencies;
  bool gated = true;
  Activation activation = Activation::kRelu;
  float fatrelu_threshold = 0;
  bool parallel_residual = false, shared_norm = false;
};

// A tensor in one of the mapped files; shape in elements.
struct TensorRef {
  std::string name;
  int file;
  DType type;
  std::vector<int64_t> shape;
  uint64_t offset;
};

// True when an idle neuron contributes exactly nothing.
inline bool is_sparse(Activation a) { return a <= Activation::kDRelu; }

}  // namespace pi
