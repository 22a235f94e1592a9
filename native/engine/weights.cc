#include "engine/weights.h"

#include <stdexcept>

namespace pi {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

class Binder {
 public:
  Binder(std::span<const std::span<const uint8_t>> files, const std::vector<TensorRef>& tensors) : files_(files) {
    for (const TensorRef& tensor : tensors) by_name_[tensor.name] = &tensor;
  }

  bool has(const std::string& name) const { return by_name_.count(name) > 0; }
  int64_t rows(const std::string& name) const { return has(name) ? by_name_.at(name)->shape.at(0) : 0; }

  MatrixView matrix(const std::string& name, int64_t rows, int64_t cols) const {
    const MatrixView view = any_matrix(name, rows, cols);
    if (view.type == DType::kBit || view.type == DType::kI32)
      throw std::runtime_error("tensor " + name + ": expected a weight type");
    return view;
  }

  MatrixView bits(const std::string& name, int64_t rows, int64_t cols) const {
    const MatrixView view = any_matrix(name, rows, cols);
    if (view.type != DType::kBit) throw std::runtime_error("tensor " + name + ": expected type bit");
    return view;
  }

  MatrixView any_matrix(const std::string& name, int64_t rows, int64_t cols) const {
    MatrixView view;
    view.data = find(name, {rows, cols});
    view.type = by_name_.at(name)->type;
    view.row_bytes = row_bytes(view.type, cols);
    view.cols = static_cast<int>(cols);
    view.rows = static_cast<int>(rows);
    return view;
  }

  VectorView vector(const std::string& name, int64_t size) const {
    const uint8_t* data = find(name, {size});
    if (by_name_.at(name)->type != DType::kF32) throw std::runtime_error("tensor " + name + ": expected f32");
    return reinterpret_cast<const float*>(data);
  }

  VectorView optional_vector(const std::string& name, int64_t size) const {
    return has(name) ? vector(name, size) : nullptr;
  }

 private:
  const uint8_t* find(const std::string& name, const std::vector<int64_t>& shape) const {
    const auto found = by_name_.find(name);
    if (found == by_name_.end()) throw std::runtime_error("tensor " + name + ": missing");
    const TensorRef& tensor = *found->second;
    if (tensor.shape != shape) {
      throw std::runtime_error("tensor " + name + ": expected shape " + shape_text(shape) + ", found " +
                               shape_text(tensor.shape));
    }
    const uint64_t cols = static_cast<uint64_t>(shape.back());
    const uint64_t rows = shape.size() == 2 ? static_cast<uint64_t>(shape[0]) : 1;
    if (cols % block_size(tensor.type) != 0)
      throw std::runtime_error("tensor " + name + ": row is not a whole number of blocks");
    const std::span<const uint8_t> file = files_[tensor.file];
    const uint64_t bytes = rows * row_bytes(tensor.type, cols);
    if (tensor.offset > file.size() || bytes > file.size() - tensor.offset) {
      throw std::runtime_error("tensor " + name + ": ends past the end of its file");
    }
    if (tensor.offset % 4 != 0) throw std::runtime_error("tensor " + name + ": not aligned");
    return file.data() + tensor.offset;
  }

  std::span<const std::span<const uint8_t>> files_;
  std::unordered_map<std::string, const TensorRef*> by_name_;
};

NormWeights bind_norm(const Binder& bind, const ModelConfig& config, const std::string& name) {
  return {bind.vector(name + ".weight", config.dim),
          config.rms_norm ? nullptr : bind.vector(name + ".bias", config.dim)};
}

PredictorWeights bind_predictor(const Binder& bind, const std::string& at, int64_t dim, int64_t n_neurons) {
  PredictorWeights p;
  if (const int64_t rank = bind.rows(at + "fc1.weight")) {
    p.fc1 = bind.matrix(at + "fc1.weight", rank, dim);
    p.fc2 = bind.matrix(at + "fc2.weight", n_neurons, rank);
    p.fc1_bias = bind.optional_vector(at + "fc1.bias", rank);
    p.fc2_bias = bind.optional_vector(at + "fc2.bias", n_neurons);
  } else if (const int64_t rank = bind.rows(at + "v.weight")) {
    p.linear = true;
    p.fc1 = bind.matrix(at + "v.weight", rank, dim);
    p.fc2 = bind.matrix(at + "u.weight", n_neurons, rank);
    p.fc2_bias = bind.vector(at + "u.bias", n_neurons);
  } else if (bind.has(at + "gate.weight")) {
    p.gate = bind.matrix(at + "gate.weight", n_neurons, dim);
    p.gate_bias = bind.vector(at + "gate.bias", n_neurons);
  } else if (bind.has(at + "signs.weight")) {
    p.signs = bind.bits(at + "signs.weight", n_neurons, dim);
    p.signs_scale = bind.vector(at + "signs.scale", n_neurons);
    p.signs_bias = bind.vector(at + "signs.bias", n_neurons);
  }
  return p;
}

LayerWeights bind_layer(const Binder& bind, const ModelConfig& c, int layer) {
  const std::string at = "layers." + std::to_string(layer) + ".";
  const int64_t q_dim = int64_t{c.n_heads} * c.head_dim, kv_dim = int64_t{c.n_kv_heads} * c.head_dim;
  LayerWeights w;
  w.attn_norm = bind_norm(bind, c, at + "attn_norm");
  w.ffn_norm = c.shared_norm ? w.attn_norm : bind_norm(bind, c, at + "ffn_norm");
  w.q = bind.matrix(at + "attn.q.weight", q_dim, c.dim);
  w.k = bind.matrix(at + "attn.k.weight", kv_dim, c.dim);
  w.v = bind.matrix(at + "attn.v.weight", kv_dim, c.dim);
  w.o = bind.matrix(at + "attn.o.weight", c.dim, q_dim);
  w.q_bias = bind.optional_vector(at + "attn.q.bias", q_dim);
  w.k_bias = bind.optional_vector(at + "attn.k.bias", kv_dim);
  w.v_bias = bind.optional_vector(at + "attn.v.bias", kv_dim);
  w.o_bias = bind.optional_vector(at + "attn.o.bias", c.dim);
  if (c.gated) w.gate = bind.matrix(at + "ffn.gate.weight", c.n_neurons, c.dim);
  w.up = bind.matrix(at + "ffn.up.weight", c.n_neurons, c.dim);
  w.down_t = bind.matrix(at + "ffn.down_t.weight", c.n_neurons, c.dim);
  w.gate_bias = bind.optional_vector(at + "ffn.gate.bias", c.n_neurons);
  w.up_bias = bind.optional_vector(at + "ffn.up.bias", c.n_neurons);
  w.down_bias = bind.optional_vector(at + "ffn.down.bias", c.dim);
  w.predictor = bind_predictor(bind, at + "predictor.", c.dim, c.n_neurons);
  return w;
}

}  // namespace

MatrixView MatrixView::from(int first) const {
  MatrixView out = *this;
  if (rows == 0) return out;
  out.data += first * row_bytes;
  out.rows -= first;
  return out;
}

LayerWeights LayerWeights::from(int first) const {
  LayerWeights out = *this;
  out.gate = gate.from(first), out.up = up.from(first), out.down_t = down_t.from(first);
  for (VectorView* bias : {&out.gate_bias, &out.up_bias}) *bias = *bias ? *bias + first : nullptr;
  out.down_bias = nullptr;
  out.predictor = {};
  return out;
}

size_t PredictorWeights::bytes() const {
  size_t sum = 0;
  for (const MatrixView* w : {&fc1, &fc2, &gate, &signs}) sum += *w ? w->rows * w->row_bytes : 0;
  return sum;
}

PredictorWeights bind_predictor(int64_t dim, int64_t n_neurons, std::span<const std::span<const uint8_t>> files,
                                const std::vector<TensorRef>& tensors) {
  return bind_predictor(Binder(files, tensors), "", dim, n_neurons);
}

ModelWeights bind_weights(const ModelConfig& config, const std::vector<MappedFile>& files,
                          const std::vector<TensorRef>& tensors) {
  std::vector<std::span<const uint8_t>> contents;
  for (const MappedFile& file : files) contents.emplace_back(file.data(), file.size());
  const Binder bind(contents, tensors);
  ModelWeights w;
  w.embed = bind.matrix("embed.weight", config.vocab, config.dim);
  if (!config.rope) w.pos_embed = bind.matrix("pos_embed.weight", config.max_positions, config.dim);
  w.head = bind.has("head.weight") ? bind.matrix("head.weight", config.vocab, config.dim) : w.embed;
  w.head_bias = bind.optional_vector("head.bias", config.vocab);
  w.norm = bind_norm(bind, config, "norm");
  for (int layer = 0; layer < config.n_layers; ++layer) w.layers.push_back(bind_layer(bind, config, layer));
  return w;
}

}  // namespace pi
