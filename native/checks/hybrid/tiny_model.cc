#include "checks/hybrid/tiny_model.h"

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#include "checks/check.h"
#include "quant/convert.h"

namespace pi::checks {

TinyModel::TinyModel(const Shape& shape, uint32_t seed) : shape_(shape), seed_(seed) {
  ModelConfig& c = config_;
  c.dim = shape.dim, c.n_layers = shape.n_layers, c.n_heads = shape.n_heads, c.n_kv_heads = shape.n_kv_heads,
  c.head_dim = shape.head_dim;
  c.n_neurons = shape.n_neurons, c.vocab = shape.vocab, c.max_positions = 160;
  c.rms_norm = c.rope = c.gated = shape.llama;
  c.norm_eps = 1e-5f;
  c.activation = shape.activation;
  c.fatrelu_threshold = 0.01f;
  c.parallel_residual = c.shared_norm = shape.parallel;
  for (int i = 0; c.rope && i < c.head_dim / 2; ++i)
    c.rope_frequencies.push_back(std::pow(10000.0, -2.0 * i / c.head_dim));

  add("embed.weight", {c.vocab, c.dim}, shape.type, 1.0f);
  if (!c.rope) add("pos_embed.weight", {c.max_positions, c.dim}, shape.type, 0.1f);
  for (int layer = 0; layer < c.n_layers; ++layer) add_layer(layer);
  add("norm.weight", {c.dim}, DType::kF32, 0.1f, 1.0f);
  if (!c.rms_norm) add("norm.bias", {c.dim}, DType::kF32, 0.1f);
  if (shape.llama) add("head.weight", {c.vocab, c.dim}, shape.type, 0.3f);

  char path[] = "/tmp/pi-tiny-XXXXXX";
  const int fd = ::mkstemp(path);
  if (fd < 0 || ::write(fd, bytes_.data(), bytes_.size()) != static_cast<ssize_t>(bytes_.size()))
    throw std::runtime_error("tiny model: cannot write " + std::string(path));
  ::close(fd);
  path_ = path;
}

TinyModel::~TinyModel() { std::remove(path_.c_str()); }

EngineOptions TinyModel::options() const {
  EngineOptions o;
  o.config = config_;
  o.files = {path_};
  o.tensors = tensors_;
  if (!shape_.predictor.empty()) o.thresholds.assign(shape_.n_layers, shape_.threshold);
  o.threads = 2;
  o.kv_blocks = 16;
  o.kv_type = shape_.kv;
  return o;
}

void TinyModel::add(const std::string& name, std::vector<int64_t> shape, DType type, float scale, float mean) {
  const size_t rows = shape.size() > 1 ? shape[0] : 1, cols = shape.back();
  std::vector<float> values = random_vector(rows * cols, ++seed_, scale);
  for (float& v : values) v += mean;
  bytes_.resize((bytes_.size() + 63) / 64 * 64);
  tensors_.push_back({name, 0, type, shape, bytes_.size()});
  const size_t at = bytes_.size();
  bytes_.resize(at + rows * row_bytes(type, cols));
  quant::convert(reinterpret_cast<const uint8_t*>(values.data()), DType::kF32, &bytes_[at], type, rows, cols, false,
                 quant::Scales::kPlain, 1);
}

void TinyModel::add_layer(int layer) {
  const std::string at = "layers." + std::to_string(layer) + ".";
  const ModelConfig& c = config_;
  const int64_t q_dim = int64_t{c.n_heads} * c.head_dim, kv_dim = int64_t{c.n_kv_heads} * c.head_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c.dim));
  for (const char* norm : {"attn_norm", "ffn_norm"}) {
    if (c.shared_norm && norm[0] == 'f') continue;
    add(at + norm + ".weight", {c.dim}, DType::kF32, 0.1f, 1.0f);
    if (!c.rms_norm) add(at + norm + ".bias", {c.dim}, DType::kF32, 0.1f);
  }
  const auto matrix = [&](const std::string& name, int64_t rows, int64_t cols) {
    add(at + name + ".weight", {rows, cols}, shape_.type, 2 * scale);
    if (!c.rms_norm) add(at + name + ".bias", {rows}, DType::kF32, 0.1f);
  };
  matrix("attn.q", q_dim, c.dim);
  matrix("attn.k", kv_dim, c.dim);
  matrix("attn.v", kv_dim, c.dim);
  matrix("attn.o", c.dim, q_dim);
  if (c.gated) matrix("ffn.gate", c.n_neurons, c.dim);
  matrix("ffn.up", c.n_neurons, c.dim);
  add(at + "ffn.down_t.weight", {c.n_neurons, c.dim}, shape_.type, scale);
  if (!c.rms_norm) add(at + "ffn.down.bias", {c.dim}, DType::kF32, 0.1f);
  if (!shape_.predictor.empty()) add_predictor(at + "predictor.");
}

void TinyModel::add_predictor(const std::string& at) {
  const int64_t n = config_.n_neurons, dim = config_.dim, rank = shape_.rank;
  const DType type = block_size(shape_.type) > 1 ? shape_.type : DType::kF16;
  if (shape_.predictor == "mlp") {
    add(at + "fc1.weight", {rank, dim}, type, 0.2f);
    add(at + "fc1.bias", {rank}, DType::kF32, 0.1f);
    add(at + "fc2.weight", {n, rank}, type, 0.2f);
    add_bias(at + "fc2.bias", 2.0f);
  } else if (shape_.predictor == "svd") {
    add(at + "v.weight", {rank, dim}, type, 0.2f);
    add(at + "u.weight", {n, rank}, type, 0.2f);
    add_bias(at + "u.bias", 3.0f);
  } else if (shape_.predictor == "gate") {
    add(at + "gate.weight", {n, dim}, DType::kQ4_0, 0.2f);
    add_bias(at + "gate.bias", 4.0f);
  } else {
    add(at + "signs.weight", {n, dim}, DType::kBit, 1.0f);
    add(at + "signs.scale", {n}, DType::kF32, 0.1f, 1.0f);
    add_bias(at + "signs.bias", 0.5f);
  }
}

// As large for one neuron as low for the next.
void TinyModel::add_bias(const std::string& name, float size) {
  add(name, {config_.n_neurons}, DType::kF32, 0.1f);
  auto* values = reinterpret_cast<float*>(&bytes_[tensors_.back().offset]);
  for (int i = 0; i < config_.n_neurons; ++i) values[i] += i % 3 == 0 ? -size : i % 3 == 1 ? size : 0.1f * size;
}

}  // namespace pi::checks
