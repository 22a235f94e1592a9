#include "train/predictor_trainer.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/random.h"
#include "base/types.h"

namespace pi::train {
namespace {

// Rows scored at a time, and elements an elementwise task handles.
constexpr size_t kScoreRows = 512;
constexpr int64_t kTaskElements = 16384;

// Uniform in ±1/sqrt(fan_in), as torch.nn.Linear starts.
void fill_uniform(std::span<float> out, int fan_in, uint64_t& state) {
  const float bound = 1.0f / std::sqrt(static_cast<float>(fan_in));
  for (float& x : out) x = bound * (static_cast<float>(next_random(state) >> 40) * 0x1p-23f - 1.0f);
}

size_t parameters(const TrainerOptions& o) {
  return static_cast<size_t>(o.rank) * (o.dim + 1) + static_cast<size_t>(o.n_neurons) * (o.rank + 1);
}

}  // namespace

PredictorTrainer::PredictorTrainer(const TrainerOptions& options)
    : options_(options),
      pool_(options.threads),
      gemm_(pool_),
      weights_(parameters(options)),
      gradient_(weights_.size()),
      mean_(weights_.size()),
      square_(weights_.size()) {
  uint64_t state = options.seed;
  const Weights<float> w = weights();
  fill_uniform(w.fc1, options.dim, state);
  fill_uniform(w.fc2, options.rank, state);
}

Weights<float> PredictorTrainer::view(std::vector<float>& flat) const {
  const size_t rank = options_.rank, neurons = options_.n_neurons, fc1 = rank * options_.dim;
  const std::span<float> all(flat);
  return {all.subspan(0, fc1), all.subspan(fc1, rank), all.subspan(fc1 + rank, neurons * rank),
          all.subspan(fc1 + rank + neurons * rank, neurons)};
}

void PredictorTrainer::set_weights(const Weights<const float>& weights) {
  const Weights<float> mine = this->weights();
  std::ranges::copy(weights.fc1, mine.fc1.begin());
  std::ranges::copy(weights.fc1_bias, mine.fc1_bias.begin());
  std::ranges::copy(weights.fc2, mine.fc2.begin());
  std::ranges::copy(weights.fc2_bias, mine.fc2_bias.begin());
  std::ranges::fill(mean_, 0.0f);
  std::ranges::fill(square_, 0.0f);
  steps_ = 0;
}

double PredictorTrainer::epoch(const Samples& samples, std::span<const int32_t> order, int batch, float learning_rate) {
  double total = 0;
  for (size_t start = 0; start < order.size(); start += batch) {
    const auto rows = order.subspan(start, std::min<size_t>(batch, order.size() - start));
    const int n = static_cast<int>(rows.size());
    load_rows(samples.hidden, rows);
    scores_.resize(rows.size() * options_.n_neurons);
    forward(n, scores_.data());
    total += loss(samples, rows);
    backward(n);
    update(learning_rate);
  }
  return order.empty() ? 0 : total / (static_cast<double>(order.size()) * options_.n_neurons);
}

void PredictorTrainer::scores(const uint16_t* hidden, std::span<const int32_t> rows, float* out) {
  for (size_t start = 0; start < rows.size(); start += kScoreRows) {
    const auto block = rows.subspan(start, std::min(kScoreRows, rows.size() - start));
    load_rows(hidden, block);
    forward(static_cast<int>(block.size()), out + start * options_.n_neurons);
  }
}

void PredictorTrainer::load_rows(const uint16_t* hidden, std::span<const int32_t> rows) {
  const int dim = options_.dim;
  input_.resize(rows.size() * dim);
  units_.resize(rows.size() * options_.rank);
  pool_.parallel_for(static_cast<int>(rows.size()), [&](int r) {
    const uint16_t* from = hidden + static_cast<size_t>(rows[r]) * dim;
    float* to = input_.data() + static_cast<size_t>(r) * dim;
    for (int i = 0; i < dim; ++i) to[i] = f16_to_f32(from[i]);
  });
}

// units = relu(input · fc1ᵀ + b1), scores = units · fc2ᵀ + b2.
void PredictorTrainer::forward(int rows, float* scores) {
  const int dim = options_.dim, rank = options_.rank, neurons = options_.n_neurons;
  const Weights<float> w = weights();
  gemm_.multiply(plain(input_.data(), dim), transposed(w.fc1.data(), dim), units_.data(), rows, rank, dim);
  pool_.parallel_for(rows, [&](int r) {
    float* units = units_.data() + static_cast<size_t>(r) * rank;
    for (int i = 0; i < rank; ++i) units[i] = std::max(units[i] + w.fc1_bias[i], 0.0f);
  });
  gemm_.multiply(plain(units_.data(), rank), transposed(w.fc2.data(), rank), scores, rows, neurons, rank);
  pool_.parallel_for(rows, [&](int r) {
    float* row = scores + static_cast<size_t>(r) * neurons;
    for (int i = 0; i < neurons; ++i) row[i] += w.fc2_bias[i];
  });
}

// The contributions of a row's active neurons, 0 for all others.
const uint8_t* PredictorTrainer::labels(const Samples& samples, std::span<const int32_t> rows, int r) {
  const size_t neurons = options_.n_neurons;
  const uint8_t* given = samples.contributions + rows[r] * neurons;
  if (options_.label_share >= 1) return given;
  std::array<int64_t, 256> sums = {};
  for (size_t i = 0; i < neurons; ++i) sums[given[i]] += given[i];
  const double wanted =
      options_.label_share * static_cast<double>(std::accumulate(sums.begin(), sums.end(), int64_t{0}));
  int lowest = 255;
  for (int64_t held = sums[255]; lowest > 1 && static_cast<double>(held) < wanted; held += sums[lowest]) --lowest;
  uint8_t* out = &labels_[r * neurons];
  std::transform(given, given + neurons, out, [&](uint8_t c) { return c >= lowest ? c : uint8_t{0}; });
  return out;
}

// Weighted cross-entropy after Deja Vu's predictor trainer: an active neuron weighs 1, an idle one w = mean(label) +
// 0.005, so that the few active ones are not drowned. On top, a share of the active neurons' weight follows their part
// of the row's contribution: a miss costs the model in proportion to it. Turns scores into gradients; returns the sum.
double PredictorTrainer::loss(const Samples& samples, std::span<const int32_t> rows) {
  const int n = static_cast<int>(rows.size()), neurons = options_.n_neurons;
  if (options_.label_share < 1) labels_.resize(static_cast<size_t>(n) * neurons);
  active_.resize(n);
  losses_.resize(n);
  std::vector<const uint8_t*> labels(n);
  pool_.parallel_for(n, [&](int r) {
    labels[r] = this->labels(samples, rows, r);
    active_[r] = neurons - static_cast<int>(std::count(labels[r], labels[r] + neurons, uint8_t{0}));
  });
  double active = 0;
  for (int r = 0; r < n; ++r) active += active_[r];
  const float idle = static_cast<float>(active / (static_cast<double>(n) * neurons) + 0.005);
  const float share = options_.contribution_weight;
  pool_.parallel_for(n, [&](int r) {
    int64_t total = 0;
    for (int i = 0; i < neurons; ++i) total += labels[r][i];
    // Divided by the row's mean contribution, so that a row's active neurons weigh 1 on average whatever the share.
    const float by_contribution = total ? share * static_cast<float>(active_[r]) / static_cast<float>(total) : 0.0f;
    losses_[r] = math().loss({scores_.data() + static_cast<size_t>(r) * neurons, labels[r], neurons, idle, 1.0f - share,
                              by_contribution, 1.0f / static_cast<float>(n)});
  });
  double total = 0;
  for (int r = 0; r < n; ++r) total += losses_[r];
  return total;
}

// scores_ holds the gradient by the scores.
void PredictorTrainer::backward(int rows) {
  const int dim = options_.dim, rank = options_.rank, neurons = options_.n_neurons;
  const Weights<float> w = weights(), g = view(gradient_);
  unit_gradient_.resize(static_cast<size_t>(rows) * rank);
  gemm_.multiply(transposed(scores_.data(), neurons), plain(units_.data(), rank), g.fc2.data(), neurons, rank, rows);
  column_sums(scores_.data(), rows, neurons, g.fc2_bias.data());
  gemm_.multiply(plain(scores_.data(), neurons), plain(w.fc2.data(), rank), unit_gradient_.data(), rows, rank, neurons);
  for (size_t i = 0; i < unit_gradient_.size(); ++i) {
    if (!(units_[i] > 0)) unit_gradient_[i] = 0;
  }
  gemm_.multiply(transposed(unit_gradient_.data(), rank), plain(input_.data(), dim), g.fc1.data(), rank, dim, rows);
  column_sums(unit_gradient_.data(), rows, rank, g.fc1_bias.data());
}

void PredictorTrainer::column_sums(const float* matrix, int rows, int cols, float* out) {
  constexpr int kCols = 256;
  pool_.parallel_for((cols + kCols - 1) / kCols, [&](int task) {
    const int begin = task * kCols, end = std::min(cols, begin + kCols);
    std::fill(out + begin, out + end, 0.0f);
    for (int r = 0; r < rows; ++r) {
      const float* row = matrix + static_cast<size_t>(r) * cols;
      for (int c = begin; c < end; ++c) out[c] += row[c];
    }
  });
}

void PredictorTrainer::update(float learning_rate) {
  ++steps_;
  const double step = static_cast<double>(steps_);
  const float mean_correction = static_cast<float>(1 / (1 - std::pow(static_cast<double>(kBeta1), step)));
  const float square_correction = static_cast<float>(1 / (1 - std::pow(static_cast<double>(kBeta2), step)));
  const int64_t n = static_cast<int64_t>(weights_.size());
  pool_.parallel_for(static_cast<int>((n + kTaskElements - 1) / kTaskElements), [&](int task) {
    const int64_t i = task * kTaskElements;
    math().adam({&weights_[i], &gradient_[i], &mean_[i], &square_[i], std::min(kTaskElements, n - i), learning_rate,
                 options_.weight_decay, mean_correction, square_correction});
  });
}

}  // namespace pi::train
