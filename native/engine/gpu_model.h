// The GPU's part of a model in device memory: where everything lies, and how it gets there.
#pragma once

#include <vector>

#include "cuda/arena.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "engine/config.h"
#include "engine/split.h"
#include "engine/weights.h"

namespace pi {

struct DeviceNorm {
  const float *weight = nullptr, *bias = nullptr;
};

struct DeviceLayer {
  DeviceNorm attn_norm, ffn_norm;
  cuda::DeviceMatrix q, k, v, o;
  const float *q_bias = nullptr, *k_bias = nullptr, *v_bias = nullptr, *o_bias = nullptr;
  cuda::DeviceMatrix gate, up, down;  // of the GPU's neurons
  const float *gate_bias = nullptr, *up_bias = nullptr, *down_bias = nullptr;
  // fc1 (or nothing), then what scores every neuron: fc2, the gate in fewer bits, or its signs.
  cuda::DeviceMatrix fc1, scorer;
  bool linear = false;  // nothing between the two: an SVD
  const float *fc1_bias = nullptr, *scorer_scale = nullptr, *scorer_bias = nullptr;
  cuda::DeviceKv kv;
};

struct DeviceModel {
  std::vector<DeviceLayer> layers;
  DeviceNorm norm;
  cuda::DeviceMatrix head;
  const float* head_bias = nullptr;
  const float *cosine = nullptr, *sine = nullptr;  // [max_position, head_dim / 2]
};

struct KvShape {
  int blocks = 0;
  kernels::KvType type = kernels::KvType::kF16;
};

// Takes the parts' places from an arena and remembers what belongs there.
class ModelLayout {
 public:
  ModelLayout(const ModelConfig& config, const ModelWeights& weights, const GpuOptions& options, KvShape kv,
              int max_position, cuda::Arena& arena);

  const DeviceModel& model() const { return model_; }

  // Copies it all, through page-locked memory. `cosine` and `sine` are those of the engine. Waits for the end.
  void upload(cuda::Device& device, const float* cosine, const float* sine) const;

  // Calls f(host memory, bytes) for everything that only the GPU reads now.
  template <typename F>
  void each_exclusive(F&& f) const {
    for (const Rows& rows : rows_) {
      if (rows.exclusive) f(rows.from, rows.n * rows.host_row_bytes);
    }
  }

 private:
  // Rows to be copied, in the layouts of both sides.
  struct Rows {
    uint8_t* to;
    const uint8_t* from;
    DType type;
    size_t n, cols, host_row_bytes, device_row_bytes;
    bool exclusive;
  };

  void add_layer(int layer);
  void add_attention(int layer);
  void add_predictor(const PredictorWeights& from, DeviceLayer& to);
  cuda::DeviceMatrix matrix(cuda::Use use, const MatrixView& from, int rows, bool exclusive = true);
  const float* vector(cuda::Use use, VectorView from, size_t n);
  DeviceNorm norm(const NormWeights& from);

  const ModelConfig& c_;
  const ModelWeights& w_;
  const GpuOptions& options_;
  KvShape kv_;
  cuda::Arena& arena_;
  DeviceModel model_;
  std::vector<Rows> rows_;
  size_t rope_floats_ = 0;
};

}  // namespace pi
