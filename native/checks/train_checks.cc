// The inner loops of predictor training, on every instruction set, against naive f64 twins.
#include <algorithm>

#include "checks/check.h"
#include "kernels/kernels.h"
#include "train/gemm.h"
#include "train/low_rank.h"

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

// A gate with structure (singular values that fall by `decay`), and inputs of unequal, correlated columns with a mean.
struct Layer {
  int n, dim, rows;
  std::vector<float> gate;       // [n, dim]
  std::vector<uint16_t> hidden;  // f16 [rows, dim]
  std::vector<double> moments;   // [dim + 1, dim + 1], by the twin
};

Layer make_layer(int n, int dim, int rows) {
  Layer layer{n, dim, rows, std::vector<float>(size_t(n) * dim), std::vector<uint16_t>(size_t(rows) * dim), {}};
  const std::vector<float> left = random_vector(size_t(n) * dim, 40), right = random_vector(size_t(dim) * dim, 41);
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k < dim; ++k) {
      for (int j = 0; j < dim; ++j)
        layer.gate[size_t(i) * dim + j] += left[size_t(i) * dim + k] * right[size_t(k) * dim + j] / (1.0f + k);
    }
  }
  const std::vector<float> noise = random_vector(size_t(rows) * dim, 42);
  const size_t width = dim + 1;
  layer.moments.assign(width * width, 0.0);
  std::vector<double> x(width);
  for (int r = 0; r < rows; ++r) {
    for (int j = 0; j < dim; ++j) {
      const float value =
          0.5f + noise[size_t(r) * dim + j] / (1.0f + j % 7) + (j > 0 ? 0.7f * noise[size_t(r) * dim + j - 1] : 0.0f);
      layer.hidden[size_t(r) * dim + j] = f32_to_f16(value);
      x[j] = f16_to_f32(layer.hidden[size_t(r) * dim + j]);
    }
    x[dim] = 1;
    for (size_t i = 0; i < width; ++i) {
      for (size_t j = 0; j < width; ++j) layer.moments[i * width + j] += x[i] * x[j];
    }
  }
  return layer;
}

std::string check_moments() {
  const Layer layer = make_layer(4, 19, 1100);
  std::vector<double> one(layer.moments.size()), three(one);
  train::add_moments(layer.hidden, layer.dim, one, 1);
  train::add_moments(layer.hidden, layer.dim, three, 3);
  if (one != three) return "depends on the threads";
  const double largest = layer.moments.back() * 16;
  for (size_t i = 0; i < one.size(); ++i) {
    if (std::fabs(one[i] - layer.moments[i]) > 1e-5 * largest)
      return "element " + std::to_string(i) + " is " + std::to_string(one[i]);
  }
  return "";
}

// Eigenvalues of a symmetric matrix [n, n], the largest first, by Jacobi's rotations.
std::vector<double> eigenvalues(std::vector<double> a, int n) {
  for (int sweep = 0; sweep < 30; ++sweep) {
    for (int p = 0; p < n; ++p) {
      for (int q = p + 1; q < n; ++q) {
        const double off = a[p * n + q];
        if (std::fabs(off) < 1e-300) continue;
        const double theta = (a[q * n + q] - a[p * n + p]) / (2 * off);
        const double t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1)),
                     c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (int k = 0; k < n; ++k) {
          const double x = a[k * n + p], y = a[k * n + q];
          a[k * n + p] = c * x - s * y, a[k * n + q] = s * x + c * y;
        }
        for (int k = 0; k < n; ++k) {
          const double x = a[p * n + k], y = a[q * n + k];
          a[p * n + k] = c * x - s * y, a[q * n + k] = s * x + c * y;
        }
      }
    }
  }
  std::vector<double> values(n);
  for (int i = 0; i < n; ++i) values[i] = a[i * n + i];
  std::sort(values.rbegin(), values.rend());
  return values;
}

// The error that u · v leaves of every neuron's output, its variance being 1, against the least that a product of this
// rank can leave: the sum of the other eigenvalues of D G C Gᵀ D (Eckart and Young).
std::string check_low_rank(int rank) {
  const Layer layer = make_layer(60, 24, 900);
  const int n = layer.n, dim = layer.dim;
  const size_t width = dim + 1;
  const auto covariance = [&](int i, int j) {
    const double rows = layer.rows;
    return layer.moments[i * width + j] / rows -
           layer.moments[i * width + dim] * layer.moments[j * width + dim] / rows / rows;
  };
  const auto inner = [&](const std::vector<double>& a, const std::vector<double>& b, int i, int j) {
    double sum = 0;
    for (int p = 0; p < dim; ++p) {
      for (int q = 0; q < dim; ++q) sum += a[i * dim + p] * covariance(p, q) * b[j * dim + q];
    }
    return sum;
  };
  std::vector<double> gate(layer.gate.begin(), layer.gate.end()), gram(n * n), weights(n);
  for (int i = 0; i < n; ++i) weights[i] = 1 / std::sqrt(inner(gate, gate, i, i));
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < n; ++j) gram[i * n + j] = weights[i] * weights[j] * inner(gate, gate, i, j);
  }
  const std::vector<double> values = eigenvalues(gram, n);
  double least = 0;
  for (int k = rank; k < n; ++k) least += std::max(0.0, values[k]);

  std::vector<float> u(size_t(n) * rank), v(size_t(rank) * dim), again_u(u), again_v(v);
  train::low_rank({n, dim, rank, 5, 1}, layer.gate, layer.moments, u, v);
  train::low_rank({n, dim, rank, 5, 3}, layer.gate, layer.moments, again_u, again_v);
  if (u != again_u || v != again_v) return "depends on the threads";
  std::vector<double> error = gate;
  for (int i = 0; i < n; ++i) {
    for (int k = 0; k < rank; ++k) {
      for (int j = 0; j < dim; ++j) error[i * dim + j] -= double(u[i * rank + k]) * v[k * dim + j];
    }
  }
  double left = 0;
  for (int i = 0; i < n; ++i) left += weights[i] * weights[i] * inner(error, error, i, i);
  // f32 loses what is below a millionth of the whole, which is n.
  if (left <= 1.005 * least + 1e-6 * n) return "";
  return "leaves " + std::to_string(left) + ", the best leaves " + std::to_string(least);
}

const bool registered = [] {
  for (const kernels::Table* table : kernels::available()) {
    const Math& isa = train::math_of(table->name);
    const auto name = [&](const char* what) { return std::string(isa.name) + " training " + what; };
    Check(name("product"), [&isa] { return check_products(isa); });
    Check(name("loss"), [&isa] { return check_losses(isa); });
    Check(name("adam"), [&isa] { return check_adam(isa); });
  }
  Check("second moments", check_moments);
  for (const int rank : {1, 4, 12, 24}) Check("low rank " + std::to_string(rank), [=] { return check_low_rank(rank); });
  return true;
}();

}  // namespace
}  // namespace pi::checks
