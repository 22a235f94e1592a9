#include "engine/gpu_model.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <span>
#include <stdexcept>

#include "cuda/layout.h"

namespace pi {
namespace {

using cuda::Use;

// Two buffers of page-locked memory in turn: one is filled while the other is on its way.
class Uploader {
 public:
  explicit Uploader(cuda::Device& device) : device_(device) {
    for (Buffer& buffer : buffers_) {
      buffer.memory = static_cast<uint8_t*>(device.allocate_host(kBytes));
      if (!buffer.memory)
        throw std::runtime_error("GPU: no page-locked memory for " + std::to_string(kBytes) + " bytes");
      buffer.sent = device.event();
    }
  }
  ~Uploader() {
    try {
      device_.synchronize(cuda::Queue::kCopy);  // where something was thrown, copies may be on their way
    } catch (const std::exception&) {
      // A device that failed reads nothing any more.
    }
    for (Buffer& buffer : buffers_) {
      if (buffer.memory) device_.free_host(buffer.memory);
    }
  }
  Uploader(const Uploader&) = delete;
  Uploader& operator=(const Uploader&) = delete;

  // `fill(out, i)` writes item i of `item_bytes`; items follow one another in device memory.
  template <typename F>
  void send(uint8_t* to, size_t n, size_t item_bytes, F&& fill) {
    const size_t most = kBytes / item_bytes;
    if (most == 0)
      throw std::runtime_error("GPU: a row of " + std::to_string(item_bytes) + " bytes is too long to upload");
    for (size_t i = 0; i < n;) {
      const size_t count = std::min(most, n - i);
      Buffer& buffer = buffers_[turn_++ % buffers_.size()];
      while (buffer.used && !device_.done(*buffer.sent)) {
      }
      for (size_t k = 0; k < count; ++k) fill(buffer.memory + k * item_bytes, i + k);
      device_.upload(cuda::Queue::kCopy, to + i * item_bytes, buffer.memory, count * item_bytes);
      device_.record(cuda::Queue::kCopy, *buffer.sent);
      buffer.used = true;
      i += count;
    }
  }

  // Bytes in one piece, no row of anything.
  void send(void* to, const void* from, size_t bytes) {
    if (bytes % 4 != 0) throw std::logic_error("GPU: upload of " + std::to_string(bytes) + " bytes");
    const auto* words = static_cast<const uint8_t*>(from);
    send(static_cast<uint8_t*>(to), bytes / 4, 4, [&](uint8_t* out, size_t i) { std::memcpy(out, words + 4 * i, 4); });
  }

 private:
  static constexpr size_t kBytes = size_t{16} << 20;
  struct Buffer {
    uint8_t* memory = nullptr;
    std::unique_ptr<cuda::Event> sent;
    bool used = false;
  };
  cuda::Device& device_;
  std::array<Buffer, 2> buffers_;
  size_t turn_ = 0;
};

}  // namespace

ModelLayout::ModelLayout(const ModelConfig& config, const ModelWeights& weights, const GpuOptions& options, KvShape kv,
                         int max_position, cuda::Arena& arena)
    : c_(config), w_(weights), options_(options), kv_(kv), arena_(arena) {
  bool attention = false;
  for (int layer = 0; layer < c_.n_layers; ++layer) {
    add_layer(layer);
    attention = attention || options.layers[layer].attention;
  }
  if (options.head) {
    model_.norm = norm(w_.norm);
    // A tied head is the embedding too, which the host looks tokens up in.
    model_.head = matrix(Use::kWeights, w_.head, w_.head.rows, w_.head.data != w_.embed.data);
    model_.head_bias = vector(Use::kWeights, w_.head_bias, c_.vocab);
  }
  if (attention && c_.rope) {
    rope_floats_ = size_t(max_position) * c_.head_dim / 2;
    model_.cosine = arena_.take<float>(Use::kScratch, rope_floats_);
    model_.sine = arena_.take<float>(Use::kScratch, rope_floats_);
  }
}

void ModelLayout::add_layer(int layer) {
  const LayerSplit& split = options_.layers[layer];
  const LayerWeights& w = w_.layers[layer];
  model_.layers.emplace_back();
  DeviceLayer& to = model_.layers.back();
  if (split.attention) add_attention(layer);
  if (split.predictor && w.predictor) add_predictor(w.predictor, to);
  if (const int n = split.neurons) {
    if (c_.gated) to.gate = matrix(Use::kWeights, w.gate, n);
    to.up = matrix(Use::kWeights, w.up, n);
    to.down = matrix(Use::kWeights, w.down_t, n);
    to.gate_bias = vector(Use::kWeights, w.gate_bias, n);
    to.up_bias = vector(Use::kWeights, w.up_bias, n);
  }
  to.down_bias = vector(Use::kWeights, w.down_bias, c_.dim);
}

void ModelLayout::add_attention(int layer) {
  const LayerWeights& w = w_.layers[layer];
  DeviceLayer& to = model_.layers[layer];
  to.attn_norm = norm(w.attn_norm);
  if (!c_.shared_norm) to.ffn_norm = norm(w.ffn_norm);
  const auto project = [&](const MatrixView& from) { return matrix(Use::kWeights, from, from.rows); };
  to.q = project(w.q), to.k = project(w.k), to.v = project(w.v), to.o = project(w.o);
  to.q_bias = vector(Use::kWeights, w.q_bias, w.q.rows);
  to.k_bias = vector(Use::kWeights, w.k_bias, w.k.rows);
  to.v_bias = vector(Use::kWeights, w.v_bias, w.v.rows);
  to.o_bias = vector(Use::kWeights, w.o_bias, w.o.rows);
  const size_t side = cuda::device_kv_side_bytes(kv_.type, c_.n_kv_heads, c_.head_dim);
  to.kv = {arena_.take<uint8_t>(Use::kKv, 2 * side * kv_.blocks), kv_.type, c_.n_kv_heads, c_.head_dim};
}

void ModelLayout::add_predictor(const PredictorWeights& from, DeviceLayer& to) {
  const MatrixView& scorer = from.scorer();
  if (from.fc1) {
    to.fc1 = matrix(Use::kPredictors, from.fc1, from.fc1.rows);
    to.linear = from.linear;
    to.fc1_bias = vector(Use::kPredictors, from.fc1_bias, from.fc1.rows);
  }
  to.scorer = matrix(Use::kPredictors, scorer, scorer.rows);
  to.scorer_scale = vector(Use::kPredictors, from.signs_scale, scorer.rows);
  to.scorer_bias = vector(Use::kPredictors, from.scorer_bias(), scorer.rows);
}

DeviceNorm ModelLayout::norm(const NormWeights& from) {
  return {vector(Use::kWeights, from.weight, c_.dim), vector(Use::kWeights, from.bias, c_.dim)};
}

cuda::DeviceMatrix ModelLayout::matrix(Use use, const MatrixView& from, int rows, bool exclusive) {
  const size_t bytes = cuda::device_row_bytes(from.type, from.cols);
  uint8_t* to = arena_.take<uint8_t>(use, rows * bytes);
  rows_.push_back({to, from.data, from.type, size_t(rows), size_t(from.cols), from.row_bytes, bytes, exclusive});
  return {to, from.type, rows, from.cols, bytes};
}

const float* ModelLayout::vector(Use use, VectorView from, size_t n) {
  if (!from) return nullptr;
  float* to = arena_.take<float>(use, n);
  const size_t bytes = n * sizeof(float);
  rows_.push_back(
      {reinterpret_cast<uint8_t*>(to), reinterpret_cast<const uint8_t*>(from), DType::kF32, 1, n, bytes, bytes, false});
  return to;
}

void ModelLayout::upload(cuda::Device& device, const float* cosine, const float* sine) const {
  Uploader uploader(device);
  for (const Rows& rows : rows_) {
    uploader.send(rows.to, rows.n, rows.device_row_bytes, [&](uint8_t* out, size_t i) {
      const uint8_t* from = rows.from + i * rows.host_row_bytes;
      if (rows.device_row_bytes == rows.host_row_bytes && block_size(rows.type) == 1) {
        std::memcpy(out, from, rows.host_row_bytes);
      } else {
        cuda::pack_row(rows.type, rows.cols, from, out);
      }
    });
  }
  if (rope_floats_ > 0) {
    uploader.send(const_cast<float*>(model_.cosine), cosine, rope_floats_ * sizeof(float));
    uploader.send(const_cast<float*>(model_.sine), sine, rope_floats_ * sizeof(float));
  }
  device.synchronize(cuda::Queue::kCopy);
}

}  // namespace pi
