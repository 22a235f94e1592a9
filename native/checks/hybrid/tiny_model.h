// Models of random weights in a file of their own, small enough that a GPU can be emulated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace pi::checks {

struct Shape {
  DType type = DType::kF32;
  // "mlp", "svd", "gate" (in q4_0), "signs" or "" for none.
  std::string predictor = "mlp";
  bool llama = true;      // otherwise as OPT: learned positions, layer norms, biases, no gate
  bool parallel = false;  // as Falcon: attention and FFN side by side, behind one norm
  Activation activation = Activation::kRelu;
  kernels::KvType kv = kernels::KvType::kF32;
  int dim = 64, n_layers = 3, n_heads = 4, n_kv_heads = 2, head_dim = 16, n_neurons = 200, vocab = 96, rank = 32;
  // Score from which a neuron is asked for: about half of them at 0, where few scores are so near that rounding
  // decides.
  float threshold = 0;
};

// The file lives as long as the object.
class TinyModel {
 public:
  TinyModel(const Shape& shape, uint32_t seed);
  ~TinyModel();
  TinyModel(const TinyModel&) = delete;
  TinyModel& operator=(const TinyModel&) = delete;

  const Shape& shape() const { return shape_; }
  // Without a GPU; `gpu` is added by the caller.
  EngineOptions options() const;

 private:
  void add(const std::string& name, std::vector<int64_t> shape, DType type, float scale, float mean = 0);
  void add_layer(int layer);
  void add_predictor(const std::string& at);
  void add_bias(const std::string& name, float size);

  Shape shape_;
  ModelConfig config_;
  std::string path_;
  std::vector<uint8_t> bytes_;
  std::vector<TensorRef> tensors_;
  uint32_t seed_;
};

}  // namespace pi::checks
