// Which neurons each row wants, and which of them are the GPU's, against slow twins.
#include <bit>

#include "checks/cuda/weights.h"
#include "engine/predictor.h"

namespace pi::checks {
namespace {

using cuda::mask_words;

std::vector<bool> random_bits(int n, uint32_t seed, double share) {
  std::mt19937 random(seed);
  std::bernoulli_distribution draw(share);
  std::vector<bool> out(n);
  for (int i = 0; i < n; ++i) out[i] = draw(random);
  return out;
}

// What scores end with: lists, counts and the words that tell who comes last.
struct Lists {
  int resident;
  DeviceArray<int32_t> list, counts;  // counts: of the list, and cold
  DeviceArray<uint32_t> arrivals;

  Lists(int neurons, int resident) : resident(resident), list(neurons), counts(2), arrivals(std::vector<uint32_t>(1)) {}
  cuda::Select view() const { return {resident, list.data(), counts.data(), counts.data() + 1, nullptr, {}}; }
};

// ------------------------------------------------------------------------------------------------------------- scores

struct ScoreCase {
  DType type;
  int neurons, cols, rows;
  bool has_quants = true, bias = true;
};

// Score in f64 of neuron i for row t, and what rounding may change of it.
struct Twin {
  double score, tolerance;
};
Twin twin_of(const HostWeights& w, const Rows& x, int i, int t, const std::vector<float>& scale,
             const std::vector<float>& bias) {
  if (w.type == DType::kBit) {
    int differing = 0;
    for (int c = 0; c < w.cols; ++c)
      differing += std::signbit(w.values[size_t(i) * w.cols + c]) != std::signbit(x.x[size_t(t) * w.cols + c]);
    return {scale[i] * static_cast<float>(w.cols - 2 * differing) + bias[i], 0};  // rounded as on the CPU
  }
  const Dot sum = dot(w, i, x, t);
  const double others = bias.empty() ? 0.0 : bias[i];
  return {sum.sum + others, sum_tolerance(w.cols, sum.magnitude + std::fabs(others))};
}

std::string check_score(const ScoreCase& c, uint32_t seed) {
  const HostWeights w(c.type, c.neurons, c.cols, seed);
  const DeviceWeights device_w = w.to_device();
  Rows x(c.type, c.rows, c.cols, seed + 1);
  const std::vector<float> scale = random_vector(c.neurons, seed + 2),
                           bias = c.bias ? random_vector(c.neurons, seed + 3) : std::vector<float>();
  const DeviceArray<float> device_scale(scale), device_bias(bias);
  std::vector<uint8_t> modes(c.rows);
  for (int t = 0; t < c.rows; ++t) modes[t] = t == 1 || t == 9 ? t % 2 : 2;  // dense and exact rows between the others
  const DeviceArray<uint8_t> device_modes(modes);
  const int words = mask_words(c.neurons);
  const DeviceArray<uint32_t> mask(size_t(c.rows) * words);
  cuda::DeviceRows view = x.view();
  if (!c.has_quants) view.quants = nullptr, view.scales = nullptr;
  const float threshold = 0.3f;
  const Lists lists(c.neurons, c.neurons / 2);
  kernels_of_device().score(stream(),
                            {device_w.view, device_scale.data(), c.bias ? device_bias.data() : nullptr, view, threshold,
                             device_modes.data(), mask.data(), c.rows, lists.view(), lists.arrivals.data()});
  const std::vector<uint32_t> bits = mask.get();
  for (int t = 0; t < c.rows; ++t) {
    for (int i = 0; i < 32 * words; ++i) {
      const bool actual = bits[size_t(t) * words + i / 32] >> (i % 32) & 1;
      bool expected = i < c.neurons;
      if (i < c.neurons && modes[t] == 2) {
        const Twin twin = twin_of(w, x, i, t, scale, bias);
        if (twin.tolerance > 0 && std::fabs(twin.score - threshold) <= twin.tolerance) continue;
        expected = twin.score >= threshold;
      }
      if (actual != expected)
        return differs(std::string(type_name(c.type)) + ", row " + std::to_string(t) + ": neuron", i, expected, actual);
    }
  }
  return "";
}

const Check scores("score: every type, rows of all modes, neurons that are no multiple of 32", [] {
  const ScoreCase cases[] = {
      {DType::kF32, 33, 96, 3},
      {DType::kF16, 100, 256, 1},
      {DType::kF16, 1, 100, 17, true, false},
      {DType::kBF16, 31, 1152, 8},
      {DType::kQ8_0, 64, 96, 2},
      {DType::kQ8_0, 33, 1152, 5, false},
      {DType::kQ4_0, 45, 256, 8},
      {DType::kQ4_0, 45, 4128, 1, false},
      {DType::kQ4_0, 7, 32, 17, false},
      {DType::kBit, 65, 256, 1},
      {DType::kBit, 40, 1160, 11},
      {DType::kBit, 3, 8, 2},
      {DType::kF16, 64, 8, 2},
      {DType::kF32, 5, 3, 4},
  };
  uint32_t seed = 100;
  for (const ScoreCase& c : cases) {
    const std::string problem = check_score(c, seed += 10);
    if (!problem.empty()) return problem;
  }
  return std::string();
});

const Check cpu_signs("score: signs choose the neurons that the CPU's predictor chooses", [] {
  const int neurons = 70, cols = 136, rows = 4;
  const HostWeights w(DType::kBit, neurons, cols, 1);
  const DeviceWeights device_w = w.to_device();
  const Rows x(DType::kBit, rows, cols, 2);
  const std::vector<float> scale = random_vector(neurons, 3), bias = random_vector(neurons, 4);
  PredictorWeights predictor;
  static_cast<kernels::Matrix&>(predictor.signs) = {w.bytes.data(), DType::kBit, row_bytes(DType::kBit, cols), cols};
  predictor.signs.rows = neurons, predictor.signs_scale = scale.data(), predictor.signs_bias = bias.data();
  Predictor cpu(kernels::active());
  cpu.set_rows(predictor, {x.x.data(), size_t(cols), nullptr, rows}, Executor{});
  std::vector<float> scores(size_t(rows) * neurons);
  cpu.score(predictor, 0, neurons, scores.data(), neurons);
  const DeviceArray<float> device_scale(scale), device_bias(bias);
  const DeviceArray<uint8_t> modes(std::vector<uint8_t>(rows, 2));
  const DeviceArray<uint32_t> mask(size_t(rows) * mask_words(neurons));
  // A threshold that some scores equal: reaching it is enough.
  const float threshold = scores[5];
  const Lists lists(neurons, neurons);
  kernels_of_device().score(stream(), {device_w.view, device_scale.data(), device_bias.data(), x.view(), threshold,
                                       modes.data(), mask.data(), rows, lists.view(), lists.arrivals.data()});
  std::vector<uint32_t> expected;
  for (int t = 0; t < rows; ++t) {
    std::vector<bool> reach(neurons);
    for (int i = 0; i < neurons; ++i) reach[i] = scores[size_t(t) * neurons + i] >= threshold;
    for (uint32_t word : bit_words(reach)) expected.push_back(word);
  }
  return same_bits("word", expected, mask.get());
});

// --------------------------------------------------------------------------------------------------------------- lists

struct SelectCase {
  int neurons, rows;
  double resident, wanted;  // shares of the neurons
};

// Weights and rows whose scores are 1 where a row wants a neuron and -1 elsewhere: row t of x is 1 in column t alone.
HostWeights weights_of(const std::vector<std::vector<bool>>& wants) {
  const int rows = static_cast<int>(wants.size()), neurons = static_cast<int>(wants[0].size());
  HostWeights out(DType::kF32, neurons, rows, 1);
  for (size_t i = 0; i < out.values.size(); ++i) out.values[i] = wants[i % rows][i / rows] ? 1.0f : -1.0f;
  std::memcpy(out.bytes.data(), out.values.data(), out.bytes.size());
  return out;
}
std::vector<float> unit_rows(int n) {
  std::vector<float> out(size_t(n) * n);
  for (int t = 0; t < n; ++t) out[size_t(t) * n + t] = 1;
  return out;
}

std::string check_select(const SelectCase& c, uint32_t seed) {
  const int resident = static_cast<int>(std::lround(c.resident * c.neurons));
  std::vector<uint32_t> masks;
  std::vector<std::vector<bool>> wants;
  std::vector<bool> any(c.neurons);
  int cold = 0;
  for (int t = 0; t < c.rows; ++t) {
    wants.push_back(random_bits(c.neurons, seed + 1 + t, c.wanted));
    for (int i = 0; i < c.neurons; ++i) {
      any[i] = any[i] || wants[t][i];
      cold += wants[t][i] && i >= resident;
    }
    for (uint32_t word : bit_words(wants[t])) masks.push_back(word);
  }
  std::vector<int32_t> expected;
  for (int i = 0; i < resident; ++i) {
    if (any[i]) expected.push_back(i);
  }
  const HostWeights w = weights_of(wants);
  const DeviceWeights device_w = w.to_device();
  const Rows x(DType::kF32, c.rows, c.rows, unit_rows(c.rows));
  const DeviceArray<uint8_t> modes(std::vector<uint8_t>(c.rows, 2));
  const DeviceArray<uint32_t> mask(masks.size()), step(std::vector<uint32_t>{17});
  HostArray<uint32_t> host(masks.size() + 2);  // the copy, the flag, abort
  const Lists lists(c.neurons, resident);
  cuda::Select select = lists.view();
  select.host_mask = host.data(), select.signal = {&host[masks.size()], step.data(), &host[masks.size() + 1]};
  kernels_of_device().score(stream(), {device_w.view, nullptr, nullptr, x.view(), 0.0f, modes.data(), mask.data(),
                                       c.rows, select, lists.arrivals.data()});
  const std::vector<int32_t> found = lists.counts.get();
  const std::string name = std::to_string(c.neurons) + " neurons";
  if (found[0] != static_cast<int>(expected.size())) return differs(name + ", count", 0, expected.size(), found[0]);
  if (found[1] != cold) return differs(name + ", cold", 0, cold, found[1]);
  std::vector<int32_t> actual = lists.list.get();
  actual.resize(found[0]);
  std::string problem = same_bits(name + ", list", expected, actual);
  if (problem.empty())
    problem =
        same_bits(name + ", the host's copy", masks, std::vector<uint32_t>(host.data(), host.data() + masks.size()));
  if (problem.empty()) problem = same_bits(name + ", arrivals", {0}, lists.arrivals.get());
  if (host[masks.size()] != 17) problem += " no signal";
  return problem;
}

const Check lists("select: lists in order, cold neurons counted row by row, masks for the host", [] {
  uint32_t seed = 1000;
  for (int neurons : {1, 31, 32, 33, 1000, 17000}) {
    const SelectCase cases[] = {{neurons, 1, 0.5, 0.3}, {neurons, 3, 0.9, 0.1}, {neurons, 2, 0.4, 1},
                                {neurons, 2, 0, 1},     {neurons, 17, 1, 0.05}, {neurons, 1, 1, 0}};
    for (const SelectCase& c : cases) {
      if (neurons > 10000 && c.rows != 3) continue;
      const std::string problem = check_select(c, seed += 40);
      if (!problem.empty()) return problem;
    }
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
