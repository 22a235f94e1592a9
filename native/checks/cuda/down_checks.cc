// The down projection of active neurons, against a twin in f64.
#include <cmath>

#include "checks/cuda/ffn_layer.h"

namespace pi::checks {
namespace {

std::string check_down(const FfnCase& c, uint32_t seed) {
  FfnLayer layer(c, seed);
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
      const FfnCase cases[] = {
          {.type = type, .dim = 32, .neurons = 37, .rows = rows, .parts = 1},
          {.type = type, .dim = rows == 3 ? 1152 : 288, .neurons = rows == 3 ? 40 : 300, .rows = rows, .parts = 4}};
      for (const FfnCase& c : cases) {
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

}  // namespace
}  // namespace pi::checks
