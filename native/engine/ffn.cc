#include "engine/ffn.h"

#include <algorithm>
#include <cmath>

namespace pi {
namespace {

// Those of rows[0 … n) with keep(i), in order, without a branch. `out` may be `rows`.
template <typename Keep>
int compress(const int32_t* rows, int n, int32_t* out, Keep&& keep) {
  int count = 0;
  for (int i = 0; i < n; ++i) {
    out[count] = rows[i];
    count += keep(i) ? 1 : 0;
  }
  return count;
}
// Those whose value is not zero; the values move along.
int compress_active(const int32_t* rows, int n, int32_t* out, float* values) {
  int count = 0;
  for (int i = 0; i < n; ++i) {
    out[count] = rows[i];
    const float value = values[i];
    values[count] = value;
    count += value != 0.0f ? 1 : 0;
  }
  return count;
}

// True for a row of which every neuron is tested.
bool tests_all(const SparseRow& row) { return !row.predict && !row.asked; }

size_t rows_bytes(const MatrixView& w, int rows) { return w ? rows * w.row_bytes : 0; }

}  // namespace

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

void activate_neurons(const kernels::Table& table, const ModelConfig& config, float* gate, float* up, int n) {
  const kernels::Unary f = unary(config.activation);
  if (!config.gated) return table.activate(f, config.fatrelu_threshold, up, n);
  table.activate(f, config.fatrelu_threshold, gate, n);
  if (config.activation == Activation::kDRelu) table.activate(f, 0, up, n);
  table.multiply(gate, up, n);
}

Ffn::Ffn(const ModelConfig& config, const kernels::Table& table) : c_(config), k_(table), predictor_(table) {}

const Ffn::Shares& Ffn::shares(int n_neurons) {
  const auto [found, made] = shares_.try_emplace(n_neurons);
  if (!made) return found->second;
  // Dealt in short runs, so that every share has its part of the hot neurons and still reads several rows in a row.
  constexpr int kRun = 16;
  Shares& shares = found->second;
  for (int i = 0; i < n_neurons; ++i) shares[i / kRun % kShares].neurons.push_back(i);
  int first = 0;
  for (Share& share : shares) {
    share.first = first;
    first += static_cast<int>(share.neurons.size());
  }
  return shares;
}

void Ffn::reserve(int rows) {
  const size_t n = rows, neurons = n * c_.n_neurons;
  grow(x_, n * c_.dim);
  grow(quants_, n * kernels::quantized_bytes(c_.dim));
  for (auto* buffer : {&gate_, &up_, &score_}) grow(*buffer, neurons);
  grow(list_, neurons);
  grow(parts_, n * kShares * c_.dim);
  grow(stats_, n * kShares);
  grow(bytes_, n * kShares);
}

Ffn::Work Ffn::work(const Shares& shares, int share, int row) {
  const size_t at = size_t(row) * c_.n_neurons + shares[share].first;
  return {&gate_[at], &up_[at], &list_[at], &parts_[(size_t(row) * kShares + share) * c_.dim]};
}

// y[t][i] = w[rows[i]] · x[t] + bias[rows[i]], i < n.
void Ffn::dot(const MatrixView& w, VectorView bias, const int32_t* rows, int n, const kernels::Activations& x, float* y,
              size_t y_stride, const MatrixView* next) const {
  const uint8_t* after = next && next->row_bytes == w.row_bytes ? next->data : nullptr;
  k_.dot_rows({w, rows, 0, n, x, y, y_stride, after});
  for (int t = 0; bias && t < x.n; ++t) {
    for (int i = 0; i < n; ++i) y[t * y_stride + i] += bias[rows[i]];
  }
}

// y[t][i] = w[i] · x[t] + bias[i], begin <= i < end, of all neurons' rows; `next` as for the kernel.
void Ffn::dot_range(const MatrixView& w, VectorView bias, int begin, int end, const kernels::Activations& x, float* y,
                    const uint8_t* next) const {
  k_.dot_rows({w, nullptr, begin, end, x, y, size_t(w.rows), next});
  for (int t = 0; bias && t < x.n; ++t) k_.add(bias + begin, y + size_t(t) * w.rows + begin, end - begin);
}

// x_ as the layer's products read it.
kernels::Activations Ffn::set_input(const LayerWeights& w, int rows, const Executor& on) {
  const size_t bytes = kernels::quantized_bytes(c_.dim);
  if (w.gate.blocks() || w.up.blocks() || w.predictor.blocks()) {
    (rows > 4 ? on : Executor{}).each(rows, [&](int t) {
      k_.quantize(&x_[size_t(t) * c_.dim], c_.dim, &quants_[t * bytes]);
    });
  }
  return {x_.data(), size_t(c_.dim), quants_.data(), rows};
}

// out = b + the shares' parts, in order.
void Ffn::sum_parts(const LayerWeights& w, const Shares& shares, int row, float* out) {
  if (w.down_bias) {
    std::copy_n(w.down_bias, c_.dim, out);
  } else {
    std::fill_n(out, c_.dim, 0.0f);
  }
  for (int share = 0; share < kShares; ++share) k_.add(work(shares, share, row).part, out, c_.dim);
}

// ------------------------------------------------------------------------------------------------------------- dense

void Ffn::dense(const LayerWeights& w, const float* x, int rows, float* out, float* activations, const Executor& on) {
  for (int t = 0; t < rows; t += kRows) {
    const size_t at = size_t(t) * c_.dim;
    dense_rows(w, x + at, std::min(kRows, rows - t), out + at,
               activations ? activations + size_t(t) * c_.n_neurons : nullptr, on);
  }
}

// Gate and up rows in their order, which streams faster than a share's; then the shares' parts of the output.
void Ffn::dense_rows(const LayerWeights& w, const float* x, int rows, float* out, float* activations,
                     const Executor& on) {
  reserve(rows);
  std::copy_n(x, size_t(rows) * c_.dim, x_.data());
  const kernels::Activations in = set_input(w, rows, on);
  const Shares& dealt = shares(w.up.rows);
  const size_t neurons = w.up.rows;
  on.ranges(w.up.rows, 64, [&](int begin, int end) {
    if (c_.gated) dot_range(w.gate, w.gate_bias, begin, end, in, gate_.data(), w.up.data);
    dot_range(w.up, w.up_bias, begin, end, in, up_.data(), nullptr);
    for (int t = 0; t < rows; ++t) {
      const size_t at = t * neurons + begin;
      activate_neurons(k_, c_, &gate_[at], &up_[at], end - begin);
      if (activations) std::copy_n(&up_[at], end - begin, activations + at);
    }
  });
  on.each(kShares, [&](int index) {
    const Share& share = dealt[index];
    const int n = static_cast<int>(share.neurons.size());
    for (int t = 0; t < rows; ++t) {
      float* const own = work(dealt, index, t).gate;  // gates are used up
      for (int i = 0; i < n; ++i) own[i] = up_[t * neurons + share.neurons[i]];
      std::fill_n(work(dealt, index, t).part, c_.dim, 0.0f);
    }
    const Work first = work(dealt, index, 0);
    k_.axpy_rows({w.down_t, share.neurons.data(), 0, n, first.gate, size_t(c_.n_neurons), rows, first.part,
                  size_t(kShares) * c_.dim});
  });
  (rows > 1 ? on : Executor{}).each(rows, [&](int t) { sum_parts(w, dealt, t, out + size_t(t) * c_.dim); });
}

// ------------------------------------------------------------------------------------------------------------ sparse

void Ffn::sparse(const LayerWeights& w, float threshold, std::span<SparseRow> rows, const Executor& on) {
  for (size_t t = 0; t < rows.size(); t += kRows)
    sparse_rows(w, threshold, rows.subspan(t, std::min<size_t>(kRows, rows.size() - t)), on);
}

// Scores of all neurons, in their order: a share's rows are too short to be fetched run by run.
void Ffn::score_neurons(const LayerWeights& w, const kernels::Activations& x, const Executor& on) {
  predictor_.set_rows(w.predictor, x, on);
  on.ranges(w.up.rows, 64,
            [&](int begin, int end) { predictor_.score(w.predictor, begin, end, score_.data(), w.up.rows); });
}

// Where no one says which neurons a row needs, what tells whether they fire, gates or without them up, of all of them
// in their order: into where the row's scores would be.
void Ffn::test_neurons(const LayerWeights& w, std::span<const SparseRow> rows, const kernels::Activations& x,
                       const Executor& on) {
  const MatrixView& test = c_.gated ? w.gate : w.up;
  const VectorView bias = c_.gated ? w.gate_bias : w.up_bias;
  const bool all = std::all_of(rows.begin(), rows.end(), tests_all);
  const size_t neurons = w.up.rows, quants = kernels::quantized_bytes(c_.dim);
  on.ranges(w.up.rows, 64, [&](int begin, int end) {
    if (all) return dot_range(test, bias, begin, end, x, score_.data(), nullptr);
    for (size_t t = 0; t < rows.size(); ++t) {
      const kernels::Activations own{x.x + t * x.stride, x.stride, x.quants + t * quants, 1};
      if (tests_all(rows[t])) dot_range(test, bias, begin, end, own, &score_[t * neurons], nullptr);
    }
  });
}

void Ffn::sparse_rows(const LayerWeights& w, float threshold, std::span<SparseRow> rows, const Executor& on) {
  const int n = static_cast<int>(rows.size());
  reserve(n);
  for (int t = 0; t < n; ++t) std::copy_n(rows[t].x, c_.dim, &x_[size_t(t) * c_.dim]);
  const kernels::Activations in = set_input(w, n, on);
  if (std::any_of(rows.begin(), rows.end(), [](const SparseRow& row) { return row.predict; })) score_neurons(w, in, on);
  if (std::any_of(rows.begin(), rows.end(), tests_all)) test_neurons(w, rows, in, on);
  const Shares& dealt = shares(w.up.rows);
  on.each(kShares, [&](int share) {
    for (int t = 0; t < n; ++t) {
      const int at = t * kShares + share;
      sparse_share(w, threshold, dealt[share], t, rows[t], work(dealt, share, t), stats_[at], bytes_[at]);
    }
  });
  for (int t = 0; t < n; ++t) {
    sum_parts(w, dealt, t, rows[t].out);
    rows[t].stats = {};
    rows[t].bytes = {};
    for (int share = 0; share < kShares; ++share) {
      rows[t].stats.add(stats_[t * kShares + share]);
      rows[t].bytes.ffn += bytes_[t * kShares + share].ffn;
    }
    rows[t].stats.rows = 1;
    rows[t].stats.weighted_recall = 1;
    if (rows[t].predict) rows[t].bytes.predictor = w.predictor.bytes();
  }
}

void Ffn::sparse_share(const LayerWeights& w, float threshold, const Share& share, int row, const SparseRow& in,
                       Work work, LayerStats& stats, BytesTouched& bytes) {
  const kernels::Activations x{&x_[size_t(row) * c_.dim], 0, &quants_[row * kernels::quantized_bytes(c_.dim)], 1};
  const int32_t* rows = share.neurons.data();
  int n = static_cast<int>(share.neurons.size());
  bytes = {};
  if (in.predict) {
    const float* score = &score_[size_t(row) * w.up.rows];
    n = compress(rows, n, work.list, [&](int i) { return score[share.neurons[i]] >= threshold; });
    rows = work.list;
  } else if (in.asked) {
    n = compress(rows, n, work.list, [&](int i) {
      const unsigned bit = share.neurons[i] + in.first_bit;
      return (in.asked[bit / 32] >> bit % 32 & 1) != 0;
    });
    rows = work.list;
  }
  stats = {0, 0, uint64_t(n), 0, 0};
  const bool tested = tests_all(in);
  if (tested) {
    const float* const values = &score_[size_t(row) * w.up.rows];
    float* const own = c_.gated ? work.gate : work.up;
    for (int i = 0; i < n; ++i) own[i] = values[rows[i]];
  }

  // Gate first: what it closes needs neither up nor down.
  if (c_.gated) {
    if (!tested) dot(w.gate, w.gate_bias, rows, n, x, work.gate, 0, &w.up);
    bytes.ffn += rows_bytes(w.gate, n);
    k_.activate(unary(c_.activation), c_.fatrelu_threshold, work.gate, n);
    n = compress_active(rows, n, work.list, work.gate);
    rows = work.list;
  }
  if (c_.gated || !tested) dot(w.up, w.up_bias, rows, n, x, work.up, 0, &w.down_t);
  bytes.ffn += rows_bytes(w.up, n);
  if (!c_.gated) {
    k_.activate(unary(c_.activation), c_.fatrelu_threshold, work.up, n);
  } else {
    if (c_.activation == Activation::kDRelu) k_.activate(kernels::Unary::kRelu, 0, work.up, n);
    k_.multiply(work.gate, work.up, n);
  }
  n = compress_active(rows, n, work.list, work.up);
  std::fill_n(work.part, c_.dim, 0.0f);
  k_.axpy_rows({w.down_t, work.list, 0, n, work.up, 0, 1, work.part, 0});
  bytes.ffn += rows_bytes(w.down_t, n);
  stats.active = stats.hit = n;
  if (!in.predict && !in.asked) stats.predicted = n;
}

LayerStats Ffn::recall(const LayerWeights& w, float threshold, const std::vector<float>& down_norms, const float* x) {
  reserve(1);
  std::copy_n(x, c_.dim, x_.data());
  const kernels::Activations in = set_input(w, 1, Executor{});
  score_neurons(w, in, Executor{});
  LayerStats stats{1, 0, 0, 0, 0};
  double total = 0, kept = 0;
  const Shares& dealt = shares(w.up.rows);
  for (int index = 0; index < kShares; ++index) {
    const Share& share = dealt[index];
    const int n = static_cast<int>(share.neurons.size());
    const Work at = work(dealt, index, 0);
    if (c_.gated) dot(w.gate, w.gate_bias, share.neurons.data(), n, in, at.gate, 0);
    dot(w.up, w.up_bias, share.neurons.data(), n, in, at.up, 0);
    activate_neurons(k_, c_, at.gate, at.up, n);
    for (int i = 0; i < n; ++i) {
      const bool predicted = score_[share.neurons[i]] >= threshold, active = at.up[i] != 0.0f;
      const double contribution = std::fabs(at.up[i]) * down_norms[share.neurons[i]];
      total += contribution;
      kept += predicted ? contribution : 0;
      stats.predicted += predicted, stats.active += active, stats.hit += predicted && active;
    }
  }
  stats.weighted_recall = total > 0 ? kept / total : 1;
  return stats;
}

size_t Ffn::allocated_bytes() const {
  size_t floats = list_.size();
  for (const auto* buffer : {&x_, &gate_, &up_, &score_, &parts_}) floats += buffer->size();
  return floats * sizeof(float) + quants_.size() + predictor_.allocated_bytes();
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
