// Gate, activation and up of listed neurons, against a twin in f64.
#include <algorithm>
#include <cmath>

#include "checks/cuda/ffn_layer.h"

namespace pi::checks {
namespace {

using kernels::Unary;

double unary(const FfnCase& c, double x) {
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
double slope(const FfnCase& c, double x) { return c.f == Unary::kRelu2 ? 2 * std::fabs(x) + 1 : 1.2; }

// What neuron i contributes with in row t, and how far rounding may be off.
struct Act {
  double value, tolerance;
};
Act twin_of(const FfnLayer& layer, int i, int t) {
  const FfnCase& c = layer.c;
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

std::string check_neurons(const FfnCase& c, uint32_t seed) {
  FfnLayer layer(c, seed);
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
      std::vector<FfnCase> cases;
      for (DType type : kWeightTypes) {
        for (int dim : {32, 256}) {
          for (int rows : {1, 3, 8}) cases.push_back({.type = type, .dim = dim, .neurons = 21, .rows = rows});
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
      for (const FfnCase& c : cases) {
        const std::string problem = check_neurons(c, seed += 10);
        if (!problem.empty()) return problem;
      }
      return std::string();
    });

const Check no_list("neurons: no list is a list of all", [] {
  for (const int neurons : {1, 40, 4200}) {
    FfnLayer layer({.dim = 8, .neurons = neurons, .rows = 2, .listed = 1}, 3);
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

}  // namespace
}  // namespace pi::checks
