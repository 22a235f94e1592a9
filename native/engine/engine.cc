#include "engine/engine.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

namespace pi {
namespace {

// Seconds since it was made, or since it was asked last.
class Lap {
 public:
  double operator()() {
    const double before = std::exchange(at_, Trace::now());
    return at_ - before;
  }

 private:
  double at_ = Trace::now();
};

// Positions that a sequence can have.
int max_position(const ModelConfig& c, const EngineOptions& options) {
  const int cached = options.kv_blocks * KvCache::kBlockTokens;
  // Where block tables are copied to a GPU they are no longer than the model's context.
  return c.rope && options.gpu.layers.empty() ? cached : std::min(cached, c.max_positions);
}

// Layers whose attention is the CPU's.
int host_layers(const ModelConfig& c, const GpuOptions& gpu) {
  return c.n_layers - static_cast<int>(std::count_if(gpu.layers.begin(), gpu.layers.end(),
                                                     [](const LayerSplit& l) { return l.attention; }));
}

std::vector<MappedFile> map_files(const std::vector<std::string>& paths) {
  std::vector<MappedFile> files;
  for (const std::string& path : paths) files.emplace_back(path);
  return files;
}

}  // namespace

Engine::Engine(EngineOptions options)
    : c_(std::move(options.config)),
      k_(kernels::active()),
      files_(map_files(options.files)),
      w_(bind_weights(c_, files_, options.tensors)),
      thresholds_(std::move(options.thresholds)),
      pool_(std::make_unique<ThreadPool>(options.threads)),
      kv_(c_, host_layers(c_, options.gpu), options.kv_blocks, options.kv_type),
      ffn_(c_, k_),
      prefill_(c_, k_),
      head_(w_.head, w_.head_bias, k_),
      max_position_(pi::max_position(c_, options)) {
  if (c_.rope) rotate_positions();
  counts_.resize(c_.n_layers);
  for (ActivationCounts& counts : counts_) {
    for (auto* sums : {&counts.count, &counts.magnitude, &counts.contribution}) sums->resize(c_.n_neurons);
  }
  down_norms_.resize(c_.n_layers);
  if (!options.gpu.layers.empty()) open_gpu(std::move(options.gpu), {options.kv_blocks, options.kv_type});
  for (int layer = 0, next = 0; layer < c_.n_layers; ++layer)
    kv_layer_.push_back(gpu_ && gpu_->split(layer).attention ? -1 : next++);
  for (MappedFile& file : files_) file.use_huge_pages();
  reset_stats();
}

void Engine::rotate_positions() {
  const size_t half = c_.rope_frequencies.size();
  cosine_.resize(half * max_position_);
  sine_.resize(half * max_position_);
  for (size_t i = 0; i < cosine_.size(); ++i) {
    const double angle = double(i / half) * c_.rope_frequencies[i % half];
    cosine_[i] = static_cast<float>(std::cos(angle));
    sine_[i] = static_cast<float>(std::sin(angle));
  }
}

StepOutput Engine::step(const Batch& batch) {
  Lap whole;
  StepOutput out;
  if (gpu_) {
    step_beside_gpu(batch, out);
  } else {
    rows_.set(batch);
    out.hidden.resize(size_t(c_.n_layers) * batch.n_samples * c_.dim);
    out.contributions.resize(size_t(c_.n_layers) * batch.n_samples * c_.n_neurons);
    forward(out);
  }
  stats_.rows += batch.n_rows;
  stats_.seconds += whole();
  return out;
}

// The forward pass. Comments give the shape of what each line produces; T is the number of rows.
void Engine::forward(StepOutput& out) {
  reserve();
  embed();  // x [T, dim]
  for (int layer = 0; layer < c_.n_layers; ++layer) {
    attention(layer);  // x += attention, ffn_in [T, dim]
    Lap lap;
    ffn(layer, w_.layers[layer], out);  // ffn_out [T, dim]
    k_.add(ffn_out_.data(), x_.data(), rows_.n * c_.dim);
    stats_.parts.ffn += lap();
  }
  head();
  out.logits = logits_.data();  // [n_outputs, vocab]
}

void Engine::attention(int layer) {
  Lap lap;
  PartSeconds& seconds = stats_.parts;
  const LayerWeights& w = w_.layers[layer];
  const int rows = rows_.n;
  norm(w.attn_norm, x_.data(), rows, h_.data());  // h [T, dim]
  project(layer, {{&w.q, w.q_bias, q_.data()}, {&w.k, w.k_bias, key_.data()}, {&w.v, w.v_bias, value_.data()}},
          h_.data(),
          stats_.bytes.attention);  // q [T, n_heads * head_dim], key and value [T, n_kv_heads * head_dim]
  seconds.attention += lap();
  attend(layer);  // attended [T, n_heads * head_dim]
  seconds.kv += lap();
  project(layer, {{&w.o, w.o_bias, attn_out_.data()}}, attended_.data(), stats_.bytes.attention);  // attn_out [T, dim]
  if (!c_.parallel_residual) k_.add(attn_out_.data(), x_.data(), rows * c_.dim);
  seconds.attention += lap();
  if (c_.shared_norm) {
    std::swap(h_, ffn_in_);
  } else {
    norm(w.ffn_norm, x_.data(), rows, ffn_in_.data());  // ffn_in [T, dim]
  }
  if (c_.parallel_residual) k_.add(attn_out_.data(), x_.data(), rows * c_.dim);
  seconds.ffn += lap();
}

void Engine::head() {
  Lap lap;
  for (size_t i = 0; i < rows_.outputs.size(); ++i)
    norm(w_.norm, &x_[size_t(rows_.outputs[i]) * c_.dim], 1, &h_[i * c_.dim]);
  project_outputs();
  stats_.parts.head += lap();
}

void Engine::Rows::set(const Batch& batch) {
  n = batch.n_rows;
  std::vector<int32_t> order, place(n);
  for (const bool prefill : {false, true}) {
    for (int t = 0; t < n; ++t) {
      if ((batch.prefill && batch.prefill[t]) == prefill) order.push_back(t);
    }
    if (!prefill) n_decode = static_cast<int>(order.size());
  }
  tokens.resize(n), positions.resize(n), blocks.resize(n), modes.resize(n);
  for (int i = 0; i < n; ++i) {
    const int t = order[i];
    place[t] = i;
    tokens[i] = batch.tokens[t];
    positions[i] = batch.positions[t];
    blocks[i] = batch.block_tables + size_t(batch.sequences[t]) * batch.blocks_per_sequence;
    modes[i] = FfnMode(batch.modes[t]);
  }
  find_runs();
  const auto places = [&](const int32_t* of, int count) {
    std::vector<int32_t> out(count);
    for (int i = 0; i < count; ++i) out[i] = place[of[i]];
    return out;
  };
  outputs = places(batch.outputs, batch.n_outputs);
  samples = places(batch.samples, batch.n_samples);
}

void Engine::Rows::find_runs() {
  constexpr int kRun = 8;  // rows that share what they read of the KV cache
  runs.clear();
  for (int i = 0; i < n; ++i) {
    if (i > 0 && blocks[i] == blocks[i - 1] && runs.back().second < kRun) {
      ++runs.back().second;
    } else {
      runs.push_back({i, 1});
    }
  }
}

void Engine::reserve() {
  const size_t rows = rows_.n, most = std::max(rows, rows_.outputs.size());
  const size_t q_dim = size_t(c_.n_heads) * c_.head_dim, kv_dim = size_t(c_.n_kv_heads) * c_.head_dim;
  for (auto* buffer : {&x_, &attn_out_, &ffn_out_, &dense_in_, &dense_out_}) grow(*buffer, rows * c_.dim);
  for (auto* buffer : {&h_, &ffn_in_}) grow(*buffer, most * c_.dim);
  for (auto* buffer : {&q_, &attended_}) grow(*buffer, rows * q_dim);
  for (auto* buffer : {&key_, &value_}) grow(*buffer, rows * kv_dim);
  grow(logits_, rows_.outputs.size() * c_.vocab);
  grow(quants_, most * kernels::quantized_bytes(std::max<size_t>(c_.dim, q_dim)));
}

void Engine::embed() {
  for (int t = 0; t < rows_.n; ++t) {
    float* x = &x_[size_t(t) * c_.dim];
    k_.dequantize_row(w_.embed, rows_.tokens[t], x);
    if (w_.pos_embed) {
      k_.dequantize_row(w_.pos_embed, rows_.positions[t], h_.data());
      k_.add(h_.data(), x, c_.dim);
    }
    stats_.bytes.embed += w_.embed.row_bytes + w_.pos_embed.row_bytes * (w_.pos_embed ? 1 : 0);
  }
}

void Engine::norm(const NormWeights& w, const float* x, int rows, float* y) {
  const Executor on{rows > 4 ? pool_.get() : nullptr};
  on.each(rows, [&](int t) {
    const size_t at = size_t(t) * c_.dim;
    if (c_.rms_norm) {
      k_.rms_norm(x + at, w.weight, c_.norm_eps, c_.dim, y + at);
    } else {
      k_.layer_norm(x + at, w.weight, w.bias, c_.norm_eps, c_.dim, y + at);
    }
  });
}

// y = x · Wᵀ + b for several matrices that read the same x [T, cols].
void Engine::project(int layer, std::initializer_list<Projection> projections, const float* x, uint64_t& bytes) {
  const int decode = rows_.n_decode, prefill = rows_.n - decode;
  if (decode > 0) project_decode(projections, x, decode);
  const bool streamed = gpu_ && gpu_->projects(layer);
  for (const Projection& p : projections)
    bytes += p.w->rows * p.w->row_bytes * ((decode > 0) + (prefill > 0 && !streamed));
  if (prefill == 0) return;
  std::vector<Projection> behind(projections);
  for (Projection& p : behind) p.y += size_t(decode) * p.w->rows;
  const float* from = x + size_t(decode) * behind[0].w->cols;
  streamed ? gpu_->project_streamed(layer, behind, from, prefill)
           : prefill_.project(behind, from, prefill, Executor{pool_.get()});
}

// The first `rows` rows, as one parallel loop over all the matrices' rows.
void Engine::project_decode(std::initializer_list<Projection> projections, const float* x, int rows) {
  constexpr int kGrain = 16;
  const Executor on{pool_.get()};
  const int cols = projections.begin()->w->cols;
  const size_t quants = kernels::quantized_bytes(cols);
  int total = 0;
  bool blocks = false;
  for (const Projection& p : projections) {
    total += (p.w->rows + kGrain - 1) / kGrain;
    blocks = blocks || p.w->blocks();
  }
  if (blocks)
    (rows > 4 ? on : Executor{}).each(rows, [&](int t) {
      k_.quantize(x + size_t(t) * cols, cols, &quants_[t * quants]);
    });
  const kernels::Activations in{x, size_t(cols), quants_.data(), rows};
  on.ranges(total, 1, [&](int begin, int end) {
    int first = 0;  // grain index of the projection's first row
    for (const Projection& p : projections) {
      const int n = p.w->rows;
      const int from = std::max(begin - first, 0) * kGrain, to = std::min((end - first) * kGrain, n);
      first += (n + kGrain - 1) / kGrain;
      if (from >= to) continue;
      k_.dot_rows({*p.w, nullptr, from, to, in, p.y, size_t(n)});
      for (int t = 0; p.bias && t < rows; ++t) k_.add(p.bias + from, p.y + size_t(t) * n + from, to - from);
    }
  });
}

// Logits of the output rows: rows in predictor mode by a shortlist, all others whole.
void Engine::project_outputs() {
  const int n = static_cast<int>(rows_.outputs.size());
  const auto by_shortlist = [&](int i) {
    return head_.has_shortlist() && rows_.modes[rows_.outputs[i]] == FfnMode::kPredictor;
  };
  for (int begin = 0, end; begin < n; begin = end) {
    for (end = begin + 1; end < n && by_shortlist(end) == by_shortlist(begin);) ++end;
    const float* x = &h_[size_t(begin) * c_.dim];
    float* logits = &logits_[size_t(begin) * c_.vocab];
    if (by_shortlist(begin)) {
      stats_.bytes.head += head_.shortlist(x, end - begin, logits, Executor{pool_.get()});
    } else {
      project_decode({{&w_.head, w_.head_bias, logits}}, x, end - begin);
      stats_.bytes.head += w_.head.rows * w_.head.row_bytes;
    }
  }
}

// Rotates and caches a row's key of one KV head, and its value.
void Engine::cache_position(int layer, int row, int head) {
  const int position = rows_.positions[row];
  const size_t at = (size_t(row) * c_.n_kv_heads + head) * c_.head_dim, angle = size_t(position) * (c_.head_dim / 2);
  if (c_.rope) k_.rope(&key_[at], 1, c_.head_dim, &cosine_[angle], &sine_[angle]);
  kv_.store(k_, kv_layer_[layer], rows_.blocks[row][position / KvCache::kBlockTokens], position % KvCache::kBlockTokens,
            head, &key_[at], &value_[at]);
}

// Attention of the query heads that share one KV head, in a run of rows.
void Engine::attend_head(int layer, int first, int rows, int head) {
  const int group = c_.n_heads / c_.n_kv_heads;
  std::vector<kernels::Query> queries;
  queries.reserve(size_t(rows) * group);
  for (int t = first; t < first + rows; ++t) {
    const int position = rows_.positions[t];
    const size_t at = (size_t(t) * c_.n_heads + size_t(head) * group) * c_.head_dim,
                 angle = size_t(position) * (c_.head_dim / 2);
    if (c_.rope) k_.rope(&q_[at], group, c_.head_dim, &cosine_[angle], &sine_[angle]);
    for (int g = 0; g < group; ++g) {
      const size_t own = at + size_t(g) * c_.head_dim;
      queries.push_back({&q_[own], &attended_[own], position + 1});
    }
  }
  kernels::Attention a{};
  kv_.describe(a, kv_layer_[layer], head, rows_.blocks[first][0]);
  a.queries = queries.data();
  a.n_queries = static_cast<int>(queries.size());
  a.head_dim = c_.head_dim;
  a.table = rows_.blocks[first];
  a.scale = 1.0f / std::sqrt(static_cast<float>(c_.head_dim));
  k_.attention(a);
}

// Rows may follow one another in a sequence, so all of a head's positions are cached before any row looks at them.
void Engine::attend(int layer) {
  const int rows = rows_.n, heads = c_.n_kv_heads;
  if (rows == 1) {
    // Neighbouring heads are neighbours in memory. All are stored before any is read, so that nothing waits for a
    // store.
    Executor{pool_.get()}.ranges(heads, 1, [&](int begin, int end) {
      for (int head = begin; head < end; ++head) cache_position(layer, 0, head);
      for (int head = begin; head < end; ++head) attend_head(layer, 0, 1, head);
    });
  } else {
    pool_->parallel_for(rows, [&](int row) {
      for (int head = 0; head < heads; ++head) cache_position(layer, row, head);
    });
    pool_->parallel_for(static_cast<int>(rows_.runs.size()) * heads, [&](int task) {
      const auto [first, count] = rows_.runs[task / heads];
      attend_head(layer, first, count, task % heads);
    });
  }
  for (int t = 0; t < rows; ++t) stats_.bytes.kv += (rows_.positions[t] + 1) * kv_.position_bytes();
}

// Rows of decoding that run dense share the weights they read; sparse rows run one by one.
void Engine::ffn(int layer, const LayerWeights& w, StepOutput& out, bool asked, bool prompts) {
  const bool keep_activations = profiling_ || !rows_.samples.empty();
  dense_rows_.clear();
  sparse_rows_.clear();
  for (int t = 0; t < rows_.n_decode; ++t) {
    const bool dense =
        !asked && (rows_.modes[t] == FfnMode::kDense || (rows_.modes[t] == FfnMode::kExact && keep_activations));
    (dense ? dense_rows_ : sparse_rows_).push_back(t);
  }
  if (!dense_rows_.empty()) ffn_dense_rows(layer, w, out);
  if (!sparse_rows_.empty()) ffn_sparse_rows(layer, w, asked);
  if (const int prefill = prompts ? rows_.n - rows_.n_decode : 0) {
    const size_t at = size_t(rows_.n_decode) * c_.dim;
    prefill_.ffn(w, &ffn_in_[at], prefill, &ffn_out_[at], Executor{pool_.get()});
    for (const MatrixView* m : {&w.gate, &w.up, &w.down_t}) stats_.bytes.ffn += m->rows * m->row_bytes;
  }
}

void Engine::ffn_dense_rows(int layer, const LayerWeights& w, StepOutput& out) {
  const size_t dim = c_.dim;
  const int rows = static_cast<int>(dense_rows_.size());
  const bool all = rows == rows_.n_decode, keep = profiling_ || !rows_.samples.empty();
  if (!all) {
    for (int i = 0; i < rows; ++i) std::copy_n(&ffn_in_[dense_rows_[i] * dim], dim, &dense_in_[i * dim]);
  }
  if (keep) grow(activations_, size_t(rows) * c_.n_neurons);
  ffn_.dense(w, all ? ffn_in_.data() : dense_in_.data(), rows, all ? ffn_out_.data() : dense_out_.data(),
             keep ? activations_.data() : nullptr, Executor{pool_.get()});
  for (const MatrixView* m : {&w.gate, &w.up, &w.down_t}) stats_.bytes.ffn += m->rows * m->row_bytes;
  if (!all) {
    for (int i = 0; i < rows; ++i) std::copy_n(&dense_out_[i * dim], dim, &ffn_out_[dense_rows_[i] * dim]);
  }
  if (profiling_) count_activations(layer, rows);
  if (!rows_.samples.empty()) copy_samples(layer, out);
}

void Engine::ffn_sparse_rows(int layer, const LayerWeights& w, bool asked) {
  const bool predictors = w.predictor && has_predictors();
  const float threshold = predictors ? thresholds_[layer] : 0;
  std::vector<SparseRow> rows;
  for (const int t : sparse_rows_) {
    const size_t at = size_t(t) * c_.dim;
    rows.push_back({&ffn_in_[at], &ffn_out_[at], predictors && rows_.modes[t] == FfnMode::kPredictor, {}, {}});
    if (asked) rows.back().asked = gpu_->asked(layer, t), rows.back().first_bit = gpu_->split(layer).neurons;
  }
  ffn_.sparse(w, threshold, rows, Executor{pool_.get()});
  for (SparseRow& row : rows) {
    if (row.predict && recall_tracking_) row.stats = ffn_.recall(w, threshold, down_norms(layer), row.x);
    stats_.layers[layer].add(row.stats);
    stats_.bytes.predictor += row.bytes.predictor;
    stats_.bytes.ffn += row.bytes.ffn;
  }
}

// Adds the activations of the dense rows to the layer's counts.
void Engine::count_activations(int layer, int rows) {
  const std::vector<float>& norms = down_norms(layer);
  const size_t n = c_.n_neurons;
  std::vector<double> totals(rows);
  pool_->parallel_for(rows, [&](int t) {
    for (size_t i = 0; i < n; ++i) totals[t] += std::fabs(activations_[t * n + i]) * double(norms[i]);
  });
  ActivationCounts& counts = counts_[layer];
  Executor{pool_.get()}.ranges(c_.n_neurons, 64, [&](int begin, int end) {
    for (int t = 0; t < rows; ++t) {
      const double scale = totals[t] > 0 ? ActivationCounts::kOne / totals[t] : 0;
      for (int i = begin; i < end; ++i) {
        const double magnitude = std::fabs(activations_[t * n + i]);
        counts.count[i] += magnitude != 0;
        counts.magnitude[i] += static_cast<uint64_t>(std::llround(magnitude * ActivationCounts::kOne));
        counts.contribution[i] += static_cast<uint64_t>(std::llround(magnitude * norms[i] * scale));
      }
    }
  });
}

void Engine::copy_samples(int layer, StepOutput& out) {
  const std::vector<float>& norms = down_norms(layer);
  const size_t n = c_.n_neurons, dim = c_.dim;
  const size_t n_samples = rows_.samples.size();
  for (size_t s = 0; s < n_samples; ++s) {
    const int t = rows_.samples[s];
    const auto found = std::lower_bound(dense_rows_.begin(), dense_rows_.end(), t);
    const float* act = &activations_[(found - dense_rows_.begin()) * n];
    const size_t row = layer * n_samples + s;
    k_.to_f16(&ffn_in_[t * dim], &out.hidden[row * dim], c_.dim);
    float high = 0;
    for (size_t i = 0; i < n; ++i) high = std::max(high, std::fabs(act[i]) * norms[i]);
    for (size_t i = 0; i < n; ++i) {
      const float share = high > 0 ? std::fabs(act[i]) * norms[i] / high : 0;
      out.contributions[row * n + i] = act[i] == 0 ? 0 : static_cast<uint8_t>(std::max(1.0f, std::round(share * 255)));
    }
  }
}

const std::vector<float>& Engine::down_norms(int layer) {
  if (down_norms_[layer].empty()) down_norms_[layer] = ffn_.down_norms(w_.layers[layer], Executor{pool_.get()});
  return down_norms_[layer];
}

void Engine::set_thresholds(std::vector<float> thresholds) {
  thresholds_ = std::move(thresholds);
  if (gpu_) gpu_->set_thresholds(thresholds_);
}

void Engine::set_profiling(bool on) {
  if (on) refuse_gpu("profiling");
  profiling_ = on;
}

void Engine::set_recall_tracking(bool on) {
  if (on) refuse_gpu("recall tracking");
  recall_tracking_ = on;
}

void Engine::refuse_gpu(const char* what) const {
  if (gpu_) throw std::runtime_error(std::string(what) + ": a part of the model is on a GPU; open it without");
}

void Engine::set_tracing(bool on) {
  tracing_ = on;
  if (gpu_) gpu_->set_trace(on ? &trace_ : nullptr);
}

const EngineStats& Engine::stats() {
  try {
    if (gpu_) gpu_->collect(stats_.gpu, stats_.layers);
  } catch (const std::runtime_error&) {
    // It tells nothing any more; every step says why.
  }
  if (replacement_) stats_.gpu.swaps_stopped = replacement_->stopped();
  return stats_;
}

void Engine::reset_stats() {
  stats_ = EngineStats{};
  stats_.layers.resize(c_.n_layers);
  if (!gpu_) return;
  stats();  // what was counted so far is forgotten
  stats_.gpu = {};
  stats_.layers.assign(c_.n_layers, {});
}

size_t Engine::allocated_bytes() const {
  size_t floats = cosine_.size() + sine_.size() + logits_.size() + h_.size();
  for (const auto* buffer : {&x_, &q_, &key_, &value_, &attended_, &attn_out_, &ffn_in_, &ffn_out_, &dense_in_,
                             &dense_out_, &activations_}) {
    floats += buffer->size();
  }
  return kv_.bytes() + floats * sizeof(float) + quants_.size() + ffn_.allocated_bytes() + prefill_.allocated_bytes() +
         head_.allocated_bytes();
}

}  // namespace pi
