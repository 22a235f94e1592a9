#include "engine/ffn.h"

#include <cmath>
#include <cstring>

namespace pi {
namespace {

kernels::Unary unary(Activation a) {
  switch (a) {
    case Activation::kRelu:
    case Activation::kDRelu:
      return kernels::Unary::kRelu;
    case Activation::kRelu2:
      return kernels::Unary::kRelu2;
    case Activation::kFatRelu:
      return kernels::Unary::kFatRelu;
    case Activation::kSilu:
      return kernels::Unary::kSilu;
    case Activation::kGelu:
      return kernels::Unary::kGelu;
    case Activation::kGeluTanh:
      return kernels::Unary::kGeluTanh;
  }
  return kernels::Unary::kRelu;
}

// Indices i < n with keep(i), ascending, without a branch.
template <typename Keep>
int compress(int n, int32_t* out, Keep&& keep) {
  int count = 0;
  for (int i = 0; i < n; ++i) {
    out[count] = i;
    count += keep(i) ? 1 : 0;
  }
  return count;
}

}  // namespace

void activate_neurons(const kernels::Table& table, const ModelConfig& config, float* gate, float* up, int n) {
  const kernels::Unary f = unary(config.activation);
  if (!config.gated) return table.activate(f, config.fatrelu_threshold, up, n);
  table.activate(f, config.fatrelu_threshold, gate, n);
  if (config.activation == Activation::kDRelu) table.activate(f, 0, up, n);
  table.multiply(gate, up, n);
}

void FfnScratch::reserve(const ModelConfig& config, int rows, int max_rank) {
  const size_t size = size_t(rows) * config.n_neurons;
  quants.resize(std::max(quants.size(), rows * kernels::quantized_bytes(config.dim)));
  hidden_quants.resize(std::max(hidden_quants.size(), rows * kernels::quantized_bytes(max_rank)));
  if (up.size() >= size && hidden.size() >= size_t(rows) * max_rank) return;
  for (std::vector<float>* buffer : {&gate, &up, &scores}) buffer->resize(size);
  hidden.resize(size_t(rows) * max_rank);
  active.resize(size);
}

void Ffn::dot(const MatrixView& w, VectorView bias, const int32_t* rows, int begin, int end, const kernels::Activations& x,
              float* y) const {
  const size_t stride = c_.n_neurons;
  k_.dot_rows({w, rows, begin, end, x, y, stride});
  if (!bias) return;
  for (int t = 0; t < x.n; ++t) {
    for (int i = begin; i < end; ++i) y[t * stride + i] += bias[rows ? rows[i] : i];
  }
}

// x as the layer's products read it.
kernels::Activations Ffn::quantize(const LayerWeights& w, const float* x, int rows, uint8_t* out, const Executor& on) const {
  if (w.gate.blocks() || w.up.blocks() || w.predictor.fc1.blocks()) {
    const Executor few = rows > 4 ? on : Executor{};
    few.each(rows, [&](int t) { k_.quantize(x + size_t(t) * c_.dim, c_.dim, out + t * kernels::quantized_bytes(c_.dim)); });
  }
  return {x, size_t(c_.dim), out, rows};
}

void Ffn::down(const LayerWeights& w, const int32_t* rows, int n_rows, const float* a, int n_tokens, float* out,
               const Executor& on) const {
  const size_t dim = c_.dim;
  // Columns, not neurons, are shared out: every column's sum runs over the neurons in order on one thread.
  on.ranges(c_.dim, 64, [&](int begin, int end) {
    for (int t = 0; t < n_tokens; ++t) {
      float* y = out + t * dim;
      if (w.down_bias) {
        std::memcpy(y + begin, w.down_bias + begin, (end - begin) * sizeof(float));
      } else {
        std::memset(y + begin, 0, (end - begin) * sizeof(float));
      }
    }
    k_.axpy_rows({w.down_t, rows, n_rows, a, size_t(c_.n_neurons), n_tokens, out, dim, begin, end});
  });
}

void Ffn::dense(const LayerWeights& w, const float* x, int rows, FfnScratch& scratch, float* out, const Executor& on,
                BytesTouched& bytes) const {
  const size_t n = c_.n_neurons;
  const kernels::Activations in = quantize(w, x, rows, scratch.quants.data(), on);
  on.ranges(c_.n_neurons, 16, [&](int begin, int end) {
    if (c_.gated) dot(w.gate, w.gate_bias, nullptr, begin, end, in, scratch.gate.data());
    dot(w.up, w.up_bias, nullptr, begin, end, in, scratch.up.data());
    for (int t = 0; t < rows; ++t) {
      activate_neurons(k_, c_, &scratch.gate[t * n + begin], &scratch.up[t * n + begin], end - begin);
    }
  });
  down(w, nullptr, c_.n_neurons, scratch.up.data(), rows, out, on);
  bytes.ffn += n * (w.gate.row_bytes * w.gate.rows / n + w.up.row_bytes + w.down_t.row_bytes);
}

// scratch.scores = fc2 · relu(fc1 · x + b1) + b2 of one row.
void Ffn::scores(const LayerWeights& w, const kernels::Activations& x, int row, FfnScratch& scratch, const Executor& on) const {
  const PredictorWeights& p = w.predictor;
  float* hidden = &scratch.hidden[size_t(row) * p.fc1.rows];
  float* out = &scratch.scores[size_t(row) * c_.n_neurons];
  on.ranges(p.fc1.rows, 16, [&](int begin, int end) {
    dot(p.fc1, p.fc1_bias, nullptr, begin, end, x, hidden);
    k_.activate(kernels::Unary::kRelu, 0, hidden + begin, end - begin);
  });
  uint8_t* quants = scratch.hidden_quants.data() + row * kernels::quantized_bytes(p.fc1.rows);
  if (p.fc2.blocks()) k_.quantize(hidden, p.fc1.rows, quants);
  const kernels::Activations in{hidden, 0, quants, 1};
  on.ranges(p.fc2.rows, 32, [&](int begin, int end) { dot(p.fc2, p.fc2_bias, nullptr, begin, end, in, out); });
}

LayerStats Ffn::sparse(const LayerWeights& w, bool predict, float threshold, const float* x, int row, FfnScratch& scratch,
                       float* out, const Executor& on, BytesTouched& bytes) const {
  const size_t n = c_.n_neurons;
  float* gate = &scratch.gate[row * n];
  float* up = &scratch.up[row * n];
  float* score = &scratch.scores[row * n];
  int32_t* active = &scratch.active[row * n];
  const PredictorWeights& p = w.predictor;
  const kernels::Activations in = quantize(w, x, 1, scratch.quants.data() + row * kernels::quantized_bytes(c_.dim), on);
  int count = c_.n_neurons;
  const int32_t* rows = nullptr;  // null: all of them, in order
  if (predict) {
    scores(w, in, row, scratch, on);
    count = compress(c_.n_neurons, active, [&](int i) { return score[i] >= threshold; });
    rows = active;
    bytes.predictor += p.fc1.rows * p.fc1.row_bytes + p.fc2.rows * p.fc2.row_bytes;
  }
  LayerStats stats{1, 0, uint64_t(count), 0, 0};

  // Gate first: what it closes needs neither up nor down. `score` is free again and takes the packed gate values.
  if (c_.gated) {
    on.ranges(count, 8, [&](int begin, int end) { dot(w.gate, w.gate_bias, rows, begin, end, in, gate); });
    k_.activate(unary(c_.activation), c_.fatrelu_threshold, gate, count);
    bytes.ffn += count * w.gate.row_bytes;
    int open = 0;
    for (int i = 0; i < count; ++i) {
      active[open] = rows ? rows[i] : i;
      gate[open] = gate[i];
      open += gate[i] != 0.0f ? 1 : 0;
    }
    count = open;
    rows = active;
  }
  on.ranges(count, 8, [&](int begin, int end) { dot(w.up, w.up_bias, rows, begin, end, in, up); });
  bytes.ffn += count * w.up.row_bytes;
  if (!c_.gated) {
    k_.activate(unary(c_.activation), c_.fatrelu_threshold, up, count);
  } else {
    if (c_.activation == Activation::kDRelu) k_.activate(kernels::Unary::kRelu, 0, up, count);
    k_.multiply(gate, up, count);
  }

  int firing = 0;
  for (int i = 0; i < count; ++i) {
    active[firing] = rows ? rows[i] : i;
    up[firing] = up[i];
    firing += up[i] != 0.0f ? 1 : 0;
  }
  down(w, active, firing, up, 1, out, on);
  bytes.ffn += firing * w.down_t.row_bytes;
  stats.active = stats.hit = firing;
  if (!predict) stats.predicted = firing;
  stats.weighted_recall = 1;
  return stats;
}

LayerStats Ffn::recall(const LayerWeights& w, float threshold, const std::vector<float>& down_norms, const float* x, int row,
                       FfnScratch& scratch) const {
  const size_t n = c_.n_neurons;
  float* gate = &scratch.gate[row * n];
  float* up = &scratch.up[row * n];
  float* score = &scratch.scores[row * n];
  const kernels::Activations in = quantize(w, x, 1, scratch.quants.data() + row * kernels::quantized_bytes(c_.dim), Executor{});
  if (c_.gated) dot(w.gate, w.gate_bias, nullptr, 0, c_.n_neurons, in, gate);
  dot(w.up, w.up_bias, nullptr, 0, c_.n_neurons, in, up);
  activate_neurons(k_, c_, gate, up, c_.n_neurons);
  scores(w, in, row, scratch, Executor{});
  LayerStats stats{1, 0, 0, 0, 0};
  double total = 0, kept = 0;
  for (int i = 0; i < c_.n_neurons; ++i) {
    const bool predicted = score[i] >= threshold, active = up[i] != 0.0f;
    const double contribution = std::fabs(up[i]) * down_norms[i];
    total += contribution;
    kept += predicted ? contribution : 0;
    stats.predicted += predicted, stats.active += active, stats.hit += predicted && active;
  }
  stats.weighted_recall = total > 0 ? kept / total : 1;
  return stats;
}

std::vector<float> Ffn::down_norms(const LayerWeights& w, const Executor& on) const {
  std::vector<float> norms(c_.n_neurons);
  on.ranges(c_.n_neurons, 16, [&](int begin, int end) {
    std::vector<float> row(c_.dim);
    for (int i = begin; i < end; ++i) {
      k_.dequantize_row(w.down_t, i, row.data());
      double squares = 0;
      for (float v : row) squares += double(v) * v;
      norms[i] = static_cast<float>(std::sqrt(squares));
    }
  });
  return norms;
}

}  // namespace pi
