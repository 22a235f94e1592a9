// The sparse FFN of the GPU: neurons, down and merge against f64 twins, and what must not matter for their bits.
#include <algorithm>

#include "checks/cuda/weights.h"
#include "engine/ffn.h"

namespace pi::checks {
namespace {

using cuda::mask_words;
using kernels::Unary;

constexpr float kUntouched = 77.0f;
constexpr float kFatThreshold = 0.2f;

struct Case {
  DType type = DType::kF16;
  int dim = 96, neurons = 50, rows = 1;
  Unary f = Unary::kRelu;
  bool gated = true, both = false, bias = true;
  double listed = 0.6;  // share of neurons that are listed
  bool masked = true, saturate = false;
  double wanted = 0.7;
  int parts = 3;
};

double unary(const Case& c, double x) {
  switch (c.f) {
    case Unary::kRelu:
      return std::max(x, 0.0);
    case Unary::kRelu2:
      return std::max(x, 0.0) * std::max(x, 0.0);
    case Unary::kFatRelu:
      return x >= kFatThreshold ? x : 0;
    case Unary::kSilu:
      return x / (1 + std::exp(-x));
    case Unary::kGelu:
      return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    case Unary::kGeluTanh:
      return 0.5 * x * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x)));
  }
  return x;
}
// How much f changes at most where its argument is off by `error`; magnitudes count for those that are not linear.
double slope(const Case& c, double x) { return c.f == Unary::kRelu2 ? 2 * std::fabs(x) + 1 : 1.2; }

// A layer's FFN on the device with everything a step of it reads and writes.
struct Layer {
  Case c;
  HostWeights gate, up, down;
  std::vector<int32_t> list;
  std::vector<float> gate_bias, up_bias;
  std::vector<std::vector<bool>> masks;
  Rows x;
  DeviceWeights device_gate, device_up, device_down;
  DeviceArray<float> device_gate_bias, device_up_bias, act, parts;
  DeviceArray<int32_t> device_list, count;
  DeviceArray<uint32_t> mask, active;
  DeviceArray<unsigned long long> counters;

  Layer(const Case& c, uint32_t seed)
      : c(c),
        gate(c.type, c.neurons, c.dim, seed, c.saturate),
        up(c.type, c.neurons, c.dim, seed + 1, c.saturate),
        down(c.type, c.neurons, c.dim, seed + 2, c.saturate),
        gate_bias(random_vector(c.neurons, seed + 4)),
        up_bias(random_vector(c.neurons, seed + 5)),
        x(c.type, c.rows, c.dim, seed + 6, c.saturate),
        device_gate(gate.to_device()),
        device_up(up.to_device()),
        device_down(down.to_device()),
        device_gate_bias(gate_bias),
        device_up_bias(up_bias),
        act(std::vector<float>(size_t(c.neurons) * c.rows, kUntouched)),
        parts(size_t(c.parts) * c.rows * c.dim),
        device_list(c.neurons),
        count(1),
        mask(size_t(c.rows) * mask_words(c.neurons)),
        active(std::vector<uint32_t>(mask_words(c.neurons) + 1)),
        counters(std::vector<unsigned long long>(2)) {
    std::mt19937 random(seed + 7);
    std::bernoulli_distribution listed(c.listed), wanted(c.wanted);
    for (int t = 0; t < c.rows; ++t) {
      masks.emplace_back(c.neurons);
      for (int i = 0; i < c.neurons; ++i) masks[t][i] = !c.masked || wanted(random);
    }
    for (int i = 0; i < c.neurons; ++i) {
      if (listed(random)) list.push_back(i);
    }
    set_masks();
    set_list(list);
  }
  void set_masks() {
    std::vector<uint32_t> words;
    for (const auto& row : masks) {
      for (uint32_t word : bit_words(row)) words.push_back(word);
    }
    mask.set(words);
  }
  void set_list(const std::vector<int32_t>& to) {
    list = to;
    std::vector<int32_t> padded = to;
    padded.resize(c.neurons, 1 << 30);  // never a neuron
    device_list.set(padded);
    count.set({static_cast<int32_t>(to.size())});
  }

  cuda::Neurons neurons_args() {
    cuda::Neurons a;
    if (c.gated) a.gate = device_gate.view;
    a.up = device_up.view;
    if (c.bias) a.gate_bias = device_gate_bias.data(), a.up_bias = device_up_bias.data();
    a.f = c.f, a.both = c.both, a.threshold = kFatThreshold;
    a.list = device_list.data(), a.count = count.data();
    a.mask = c.masked ? mask.data() : nullptr;
    a.n_neurons = c.neurons, a.x = x.view(), a.rows = c.rows, a.act = act.data(), a.active = active.data();
    a.counters = counters.data();
    return a;
  }
  void neurons() { kernels_of_device().neurons(stream(), neurons_args()); }
  void run_down() {
    kernels_of_device().down(stream(), {device_down.view, active.data(), act.data(), c.neurons, c.rows, c.parts, parts.data(), {}, nullptr});
  }
  // What the layer adds to the stream: everything, from the list on.
  std::vector<float> run() {
    neurons();
    run_down();
    DeviceArray<float> y(size_t(c.rows) * c.dim);
    cuda::Merge m;
    m.parts = parts.data(), m.n_parts = c.parts, m.y = y.data(), m.rows = c.rows, m.dim = c.dim;
    kernels_of_device().merge(stream(), m);
    return y.get();
  }
};

std::string name_of(const Case& c) {
  return std::string(type_name(c.type)) + ", dim " + std::to_string(c.dim) + ", " + std::to_string(c.neurons) +
         " neurons, " + std::to_string(c.rows) + " rows";
}

// ------------------------------------------------------------------------------------------------------------- neurons

// What neuron i contributes with in row t, and how far rounding may be off.
struct Act {
  double value, tolerance;
};
Act twin_of(const Layer& layer, int i, int t) {
  const Case& c = layer.c;
  const Dot u = dot(layer.up, i, layer.x, t);
  const double up = u.sum + (c.bias ? layer.up_bias[i] : 0.0),
               up_error = sum_tolerance(c.dim, u.magnitude + std::fabs(up));
  if (!c.gated) return {unary(c, up), slope(c, up) * up_error + 1e-6 * std::fabs(unary(c, up))};
  const Dot g = dot(layer.gate, i, layer.x, t);
  const double gate = g.sum + (c.bias ? layer.gate_bias[i] : 0.0),
               gate_error = sum_tolerance(c.dim, g.magnitude + std::fabs(gate));
  const double f = unary(c, gate), factor = c.both ? unary(c, up) : up;
  double tolerance = slope(c, gate) * gate_error * (std::fabs(factor) + up_error) +
                     slope(c, up) * up_error * std::fabs(f) + 2e-6 * std::fabs(f * factor);
  if (c.f == Unary::kFatRelu && std::fabs(gate - kFatThreshold) <= gate_error) tolerance += std::fabs(gate * factor);
  return {f * factor, tolerance};
}

std::string check_neurons(const Case& c, uint32_t seed) {
  Layer layer(c, seed);
  layer.neurons();
  const std::vector<float> act = layer.act.get();
  unsigned long long asked = 0, fired = 0;
  std::vector<bool> is_listed(c.neurons), is_active(c.neurons);
  for (int i : layer.list) is_listed[i] = true;
  for (int i = 0; i < c.neurons; ++i) {
    for (int t = 0; t < c.rows; ++t) {
      const size_t at = size_t(i) * c.rows + t;
      const std::string where = name_of(c) + ": neuron " + std::to_string(i) + ", row";
      if (!is_listed[i]) {
        if (act[at] != kUntouched) return differs(where + " (not listed)", t, kUntouched, act[at]);
        continue;
      }
      if (!layer.masks[t][i]) {
        if (act[at] != 0) return differs(where + " (not asked for)", t, 0, act[at]);
        continue;
      }
      const Act twin = twin_of(layer, i, t);
      if (!(std::fabs(act[at] - twin.value) <= twin.tolerance)) return differs(where, t, twin.value, act[at]);
      ++asked;
      fired += act[at] != 0;
      is_active[i] = is_active[i] || act[at] != 0;
    }
  }
  std::vector<uint32_t> active = bit_words(is_active);
  active.push_back(0);
  std::string problem = same_bits(name_of(c) + ": word of active neurons", active, layer.active.get());
  if (problem.empty()) problem = same_bits(name_of(c) + ": counter", {asked, fired}, layer.counters.get());
  return problem;
}

const Check neuron_checks(
    "neurons: every type, activation and list; a neuron nobody asked for is 0 whatever its bias", [] {
      std::vector<Case> cases;
      for (DType type : kWeightTypes) {
        for (int dim : {32, 256}) {
          for (int rows : {1, 3, 8})
            cases.push_back({.type = type, .dim = dim, .neurons = 21, .rows = rows});
        }
        cases.push_back({.type = type, .dim = 1152, .neurons = 9, .rows = 17});
        cases.push_back({.type = type, .dim = 256, .neurons = 9, .rows = 2, .masked = false, .saturate = true});
      }
      for (Unary f : {Unary::kRelu, Unary::kRelu2, Unary::kFatRelu, Unary::kSilu, Unary::kGelu, Unary::kGeluTanh}) {
        for (bool gated : {false, true})
          cases.push_back(
              {.type = DType::kF32, .neurons = 40, .rows = 2, .f = f, .gated = gated, .bias = f != Unary::kRelu2});
      }
      cases.push_back({.neurons = 40, .rows = 3, .both = true});
      for (double listed : {0.0, 0.03, 1.0}) cases.push_back({.neurons = 65, .rows = 2, .listed = listed});
      cases.push_back({.dim = 8, .neurons = 4200});  // more than all blocks take at once
      uint32_t seed = 1;
      for (const Case& c : cases) {
        const std::string problem = check_neurons(c, seed += 10);
        if (!problem.empty()) return problem;
      }
      return std::string();
    });

const Check no_list("neurons: no list is a list of all", [] {
  for (const int neurons : {1, 40, 4200}) {
    Layer layer({.dim = 8, .neurons = neurons, .rows = 2, .listed = 1}, 3);
    layer.neurons();
    const std::vector<float> expected = layer.act.get();
    layer.act.set(std::vector<float>(expected.size(), kUntouched));
    cuda::Neurons a = layer.neurons_args();
    a.list = nullptr, a.count = nullptr;
    kernels_of_device().neurons(stream(), a);
    const std::string problem = same_bits(name_of(layer.c), expected, layer.act.get());
    if (!problem.empty()) return problem;
  }
  return std::string();
});

// ---------------------------------------------------------------------------------------------------------------- down

std::string check_down(const Case& c, uint32_t seed) {
  Layer layer(c, seed);
  std::vector<float> act = random_vector(size_t(c.neurons) * c.rows, seed + 8);
  std::vector<bool> active(c.neurons);
  for (int i : layer.list) active[i] = true;
  for (size_t i = 0; i < act.size(); ++i)
    act[i] = !active[i / c.rows] ? NAN : i % 3 ? act[i] : 0.0f;  // what is idle is not read
  layer.act.set(act);
  std::vector<uint32_t> words = bit_words(active);
  words.push_back(0);
  layer.active.set(words);
  layer.run_down();
  const std::vector<float> parts = layer.parts.get();
  for (int t = 0; t < c.rows; ++t) {
    for (int col = 0; col < c.dim; ++col) {
      double expected = 0, magnitude = 0, actual = 0;
      for (int i : layer.list) {
        const double product = double(act[size_t(i) * c.rows + t]) * layer.down.values[size_t(i) * c.dim + col];
        expected += product, magnitude += std::fabs(product);
      }
      for (int s = 0; s < c.parts; ++s) actual += parts[(size_t(s) * c.rows + t) * c.dim + col];
      if (!(std::fabs(actual - expected) <= sum_tolerance(c.neurons, magnitude))) {
        return differs(name_of(c) + ", " + std::to_string(c.parts) + " parts: row " + std::to_string(t) + ", column",
                       col, expected, actual);
      }
    }
  }
  return same_bits(name_of(c) + ": active neurons' words afterwards", std::vector<uint32_t>(words.size()),
                   layer.active.get());
}

const Check down_checks("down: every type, any number of active neurons; the active bits are cleared", [] {
  uint32_t seed = 1;
  for (DType type : kWeightTypes) {
    for (int rows : {1, 2, 3, 8, 17}) {
      const Case cases[] = {{.type = type, .dim = 32, .neurons = 37, .rows = rows, .parts = 1},
                            {.type = type,
                             .dim = rows == 3 ? 1152 : 288,
                             .neurons = rows == 3 ? 40 : 300,
                             .rows = rows,
                             .parts = 4}};
      for (const Case& c : cases) {
        const std::string problem = check_down(c, seed += 10);
        if (!problem.empty()) return problem;
      }
    }
  }
  for (double listed : {0.0, 0.001, 1.0}) {
    for (int parts : {1, 16}) {
      const std::string problem =
          check_down({.dim = 64, .neurons = 5000, .rows = 1, .listed = listed, .parts = parts}, seed += 10);
      if (!problem.empty()) return problem;
    }
  }
  for (DType type : {DType::kF32, DType::kF16}) {
    const std::string problem = check_down({.type = type, .dim = 103, .neurons = 20, .rows = 2}, seed += 10);
    if (!problem.empty()) return problem;
  }
  return std::string();
});

// ------------------------------------------------------------------------------------------- what must not change a
// bit

const Check idle("ffn: which idle neurons are listed changes nothing, nor do masks of ones, nor another run", [] {
  for (DType type : kWeightTypes) {
    Layer layer({.type = type, .dim = 160, .neurons = 300, .rows = 3, .listed = 1, .masked = false, .parts = 4}, 5);
    const std::vector<float> dense = layer.run();
    std::string problem = same_bits("again", dense, layer.run());
    layer.c.masked = true;  // all of whose bits are set
    if (problem.empty()) problem = same_bits("masks of ones", dense, layer.run());
    const std::vector<float> act = layer.act.get();
    std::vector<int32_t> firing;
    for (int i = 0; i < layer.c.neurons; ++i) {
      bool fires = false;
      for (int t = 0; t < 3; ++t) fires = fires || act[i * 3 + t] != 0;
      if (fires) firing.push_back(i);
      for (int t = 0; t < 3; ++t) layer.masks[t][i] = act[i * 3 + t] != 0;
    }
    layer.set_list(firing);
    if (problem.empty()) problem = same_bits("active neurons only", dense, layer.run());
    layer.set_masks();
    if (problem.empty()) problem = same_bits("each row's active neurons only", dense, layer.run());
    if (!problem.empty()) return std::string(type_name(type)) + ", " + problem;
  }
  return std::string();
});

const Check alone("ffn: a row's bits do not depend on the rows beside it", [] {
  for (DType type : kWeightTypes) {
    Layer all({.type = type, .dim = 1120, .neurons = 40, .rows = 11, .listed = 1}, 6);
    const std::vector<float> together = all.run();
    for (int t = 0; t < 11; ++t) {
      const std::vector<float> x(all.x.x.begin() + t * 1120, all.x.x.begin() + (t + 1) * 1120);
      Layer one({.type = type, .dim = 1120, .neurons = 40, .listed = 1}, 6);
      const Rows row(type, 1, 1120, x);
      one.x.device_x.set(x), one.x.device_quants.set(row.device_quants.get()),
          one.x.device_scales.set(row.device_scales.get());
      one.masks = {all.masks[t]};
      one.set_masks();
      const std::string problem =
          same_bits(std::string(type_name(type)) + ", row " + std::to_string(t),
                    std::vector<float>(together.begin() + t * 1120, together.begin() + (t + 1) * 1120), one.run());
      if (!problem.empty()) return problem;
    }
  }
  return std::string();
});

// ------------------------------------------------------------------------------------------------------------ the
// CPU's

MatrixView view_of(const HostWeights& w) {
  MatrixView out;
  static_cast<kernels::Matrix&>(out) = {w.bytes.data(), w.type, row_bytes(w.type, w.cols), w.cols};
  out.rows = w.rows;
  return out;
}

const Check cpu("ffn: what the CPU's FFN computes", [] {
  for (DType type : kWeightTypes) {
    for (Activation activation : {Activation::kRelu, Activation::kDRelu, Activation::kFatRelu}) {
      Layer layer({.type = type,
                   .dim = 288,
                   .neurons = 200,
                   .rows = 2,
                   .both = activation == Activation::kDRelu,
                   .listed = 1,
                   .masked = false},
                  9);
      layer.c.f = activation == Activation::kFatRelu ? Unary::kFatRelu : Unary::kRelu;
      ModelConfig config;
      config.dim = 288, config.n_neurons = 200, config.activation = activation,
      config.fatrelu_threshold = kFatThreshold;
      LayerWeights weights;
      weights.gate = view_of(layer.gate), weights.up = view_of(layer.up), weights.down_t = view_of(layer.down);
      weights.gate_bias = layer.gate_bias.data(), weights.up_bias = layer.up_bias.data();
      std::vector<float> expected(2 * 288);
      std::vector<SparseRow> rows{{layer.x.x.data(), expected.data(), false, {}, {}},
                                  {layer.x.x.data() + 288, expected.data() + 288, false, {}, {}}};
      Ffn(config, kernels::active()).sparse(weights, 0, rows, Executor{});
      const std::vector<float> actual = layer.run();
      double squares = 0, errors = 0;
      for (size_t i = 0; i < actual.size(); ++i)
        squares += double(expected[i]) * expected[i], errors += std::pow(double(actual[i]) - expected[i], 2);
      // Sums of 288 and 200 products, each rounded once, relative to the output's norm.
      if (!(errors <= squares * 1e-10) || squares == 0)
        return differs(std::string(type_name(type)) + ": relative error of activation", size_t(activation), 0,
                       std::sqrt(errors / squares));
    }
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
