// The inner loops of predictor training, on every instruction set, against naive f64 twins.
#include <algorithm>

#include "checks/check.h"
#include "kernels/kernels.h"
#include "train/gemm.h"

namespace pi::checks {
namespace {

using train::Math;
using train::Operand;

// Worst difference of a product from its twin, over the bound of its rounding: k + 1 roundings of sums of |a||b|.
std::string check_product(const Math& isa, int m, int n, int k, bool transpose_a, bool transpose_b) {
  const std::vector<float> a = random_vector(size_t(m) * k, 1), b = random_vector(size_t(k) * n, 2);
  const Operand left = transpose_a ? train::transposed(a.data(), m) : train::plain(a.data(), k);
  const Operand right = transpose_b ? train::transposed(b.data(), k) : train::plain(b.data(), n);
  std::vector<float> c(size_t(m) * n, 7.0f), threaded(c);
  ThreadPool one(1), three(3);
  train::Gemm(one, isa).multiply(left, right, c.data(), m, n, k);
  train::Gemm(three, isa).multiply(left, right, threaded.data(), m, n, k);
  if (c != threaded) return "depends on the threads";
  for (int i = 0; i < m; ++i) {
    for (int j = 0; j < n; ++j) {
      double exact = 0, size = 0;
      for (int p = 0; p < k; ++p) {
        const double term = double(left.data[i * left.row_stride + p * left.col_stride]) *
                            right.data[p * right.row_stride + j * right.col_stride];
        exact += term, size += std::fabs(term);
      }
      const double error = std::fabs(c[size_t(i) * n + j] - exact);
      if (error <= (k + 1) * size * 0x1p-24) continue;
      return std::to_string(error) + " off at " + std::to_string(i) + ", " + std::to_string(j);
    }
  }
  return "";
}

std::string check_products(const Math& isa) {
  const int sizes[][3] = {{1, 1, 1}, {6, 16, 8}, {7, 33, 300}, {61, 97, 257}, {100, 530, 31}};
  for (const auto& [m, n, k] : sizes) {
    for (const int shape : {0, 1, 2}) {  // plain · plain, plain · transposed, transposed · plain
      const std::string problem = check_product(isa, m, n, k, shape == 2, shape == 1);
      if (problem.empty()) continue;
      return problem + " of [" + std::to_string(m) + ", " + std::to_string(n) + "], shape " + std::to_string(shape);
    }
  }
  return "";
}

// `scale` 100 saturates every sigmoid.
std::string check_loss(const Math& isa, int n, float scale) {
  std::vector<float> scores = random_vector(n, 3, scale);
  std::vector<uint8_t> contributions(n);
  for (int i = 0; i < n; ++i) contributions[i] = i % 3 ? 0 : static_cast<uint8_t>(1 + i % 255);
  const std::vector<float> before = scores;
  const train::LossRow row{scores.data(), contributions.data(), n, 0.1f, 0.5f, 0.01f, 0.25f};
  const double total = isa.loss(row);
  double exact = 0;
  for (int i = 0; i < n; ++i) {
    const bool active = contributions[i] > 0;
    const double weight = active ? 0.5 + 0.01 * contributions[i] : 0.1, z = active ? -before[i] : before[i];
    exact += weight * (std::max(z, 0.0) + std::log1p(std::exp(-std::fabs(z))));
    const double gradient = 0.25 * weight * (active ? -1 : 1) / (1 + std::exp(-z));
    if (std::fabs(scores[i] - gradient) <= 2e-6 * weight) continue;
    return "gradient " + std::to_string(i) + " is " + std::to_string(scores[i]);
  }
  if (std::fabs(total - exact) <= 1e-5 * exact + 1e-6) return "";
  return std::to_string(total) + " instead of " + std::to_string(exact);
}

std::string check_losses(const Math& isa) {
  for (const int n : {1, 63, 64, 65, 1000}) {
    for (const float scale : {1.0f, 100.0f}) {
      const std::string problem = check_loss(isa, n, scale);
      if (!problem.empty()) return problem + ", n = " + std::to_string(n) + ", scale " + std::to_string(scale);
    }
  }
  return "";
}

std::string check_adam(const Math& isa) {
  constexpr int n = 37;
  std::vector<float> weights = random_vector(n, 4), gradient = random_vector(n, 5), mean = random_vector(n, 6);
  std::vector<float> square = random_vector(n, 7);
  for (float& x : square) x *= x;
  const std::vector<float> w = weights, m = mean, v = square;
  isa.adam({weights.data(), gradient.data(), mean.data(), square.data(), n, 0.01f, 0.1f, 1.5f, 30.0f});
  for (int i = 0; i < n; ++i) {
    const double g = gradient[i], new_mean = 0.9 * m[i] + 0.1 * g, new_square = 0.999 * v[i] + 0.001 * g * g;
    const double exact = w[i] * (1 - 0.01 * 0.1) - 0.01 * 1.5 * new_mean / (std::sqrt(30 * new_square) + 1e-8);
    const auto off = [](float found, double expected) { return std::fabs(found - expected) > 1e-6; };
    if (off(weights[i], exact)) return "weight " + std::to_string(i) + " is " + std::to_string(weights[i]);
    if (off(mean[i], new_mean) || off(square[i], new_square)) return "moments of " + std::to_string(i);
  }
  return "";
}

const bool registered = [] {
  for (const kernels::Table* table : kernels::available()) {
    const Math& isa = train::math_of(table->name);
    const auto name = [&](const char* what) { return std::string(isa.name) + " training " + what; };
    Check(name("product"), [&isa] { return check_products(isa); });
    Check(name("loss"), [&isa] { return check_losses(isa); });
    Check(name("adam"), [&isa] { return check_adam(isa); });
  }
  return true;
}();

}  // namespace
}  // namespace pi::checks
