// A minimal harness for checks that run without Node: one line a check, exit code 1 when any failed.
#pragma once

#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <string>
#include <vector>

namespace pi::checks {

// Registers `body`, which returns an empty string or what is wrong.
struct Check {
  Check(std::string name, std::function<std::string()> body);
};

// Seeded, so that a failure can be looked at twice.
inline std::vector<float> random_vector(size_t n, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> out(n);
  for (float& x : out) x = normal(generator);
  return out;
}

}  // namespace pi::checks
