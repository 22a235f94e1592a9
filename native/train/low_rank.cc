#include "train/low_rank.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/random.h"
#include "base/types.h"

namespace pi::train {
namespace {

// Rows of samples whose moments are one product.
constexpr size_t kMomentRows = 512;

// Rounds of subspace iteration, and vectors beyond those wanted: the error is then within half a
// per cent of the least there is (checks/train_checks.cc).
constexpr int kRounds = 10;
constexpr int kExtra = 16;

double dot(const float* a, const float* b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += double(a[i]) * b[i];
  return sum;
}

std::vector<float> covariance(std::span<const double> moments, int dim) {
  const size_t stride = dim + 1;
  const double rows = std::max(1.0, moments[stride * stride - 1]);
  std::vector<float> c(size_t(dim) * dim);
  for (int i = 0; i < dim; ++i) {
    for (int j = 0; j < dim; ++j) {
      const double means = moments[i * stride + dim] / rows * (moments[j * stride + dim] / rows);
      c[size_t(i) * dim + j] = static_cast<float>(moments[i * stride + j] / rows - means);
    }
  }
  return c;
}

// One pass of Gram-Schmidt over the rows of q [count, n], in order, so that the first ones span what they would span
// alone. Each row is taken out of all later ones at once: these are independent, whoever computes them.
void gram_schmidt(std::vector<float>& q, int count, size_t n, ThreadPool& pool) {
  for (int i = 0; i < count; ++i) {
    float* const row = &q[i * n];
    const double length = std::sqrt(dot(row, row, n));
    const float scale = length > 0 ? static_cast<float>(1 / length) : 0.0f;
    for (size_t j = 0; j < n; ++j) row[j] *= scale;
    pool.parallel_for(count - i - 1, [&](int later) {
      float* const other = &q[(i + 1 + later) * n];
      const float part = static_cast<float>(dot(row, other, n));
      for (size_t j = 0; j < n; ++j) other[j] -= part * row[j];
    });
  }
}

// What the first pass leaves of a row that those before it nearly span is mostly rounding, which may be anything, along
// these rows too; the second makes it orthogonal to them (Giraud, Langou and Rozloznik 2005: twice is enough).
void orthonormalise(std::vector<float>& q, int count, size_t n, ThreadPool& pool) {
  gram_schmidt(q, count, n, pool);
  gram_schmidt(q, count, n, pool);
}

// 1 / standard deviation of each neuron's gate over the inputs; 0 where it never varies.
std::vector<float> weights_of(std::span<const float> gate, const std::vector<float>& c, int n, int dim, Gemm& gemm) {
  std::vector<float> product(gate.size()), weights(n);
  gemm.multiply(plain(gate.data(), dim), plain(c.data(), dim), product.data(), n, dim, dim);
  for (int i = 0; i < n; ++i) {
    const double variance = dot(&gate[size_t(i) * dim], &product[size_t(i) * dim], dim);
    weights[i] = variance > 1e-20 ? static_cast<float>(1 / std::sqrt(variance)) : 0.0f;
  }
  return weights;
}

}  // namespace

void add_moments(std::span<const uint16_t> hidden, int dim, std::span<double> moments, int threads) {
  ThreadPool pool(threads);
  Gemm gemm(pool);
  const size_t width = dim + 1, rows = hidden.size() / dim;
  std::vector<float> x(kMomentRows * width), product(width * width);
  for (size_t start = 0; start < rows; start += kMomentRows) {
    const int n = static_cast<int>(std::min(kMomentRows, rows - start));
    pool.parallel_for(n, [&](int r) {
      const uint16_t* from = hidden.data() + (start + r) * dim;
      std::transform(from, from + dim, &x[r * width], f16_to_f32);
      x[r * width + dim] = 1;
    });
    gemm.multiply(transposed(x.data(), dim + 1), plain(x.data(), dim + 1), product.data(), dim + 1, dim + 1, n);
    for (size_t i = 0; i < moments.size(); ++i) moments[i] += product[i];
  }
}

void low_rank(const LowRankOptions& o, std::span<const float> gate, std::span<const double> moments, std::span<float> u,
              std::span<float> v) {
  ThreadPool pool(o.threads);
  Gemm gemm(pool);
  const int n = o.n_neurons, dim = o.dim, count = std::min({o.rank + kExtra, n, dim});
  const std::vector<float> c = covariance(moments, dim);
  const std::vector<float> weights = weights_of(gate, c, n, dim, gemm);
  std::vector<float> scaled(gate.begin(), gate.end());
  pool.parallel_for(n, [&](int i) {
    for (int j = 0; j < dim; ++j) scaled[size_t(i) * dim + j] *= weights[i];
  });

  // Rows of q are the left singular vectors of scaled · c^½, that is the eigenvectors of scaled · c · scaledᵀ.
  std::vector<float> q(size_t(count) * n), down(size_t(count) * dim), mixed(down.size());
  uint64_t state = o.seed;
  for (float& value : q) value = static_cast<float>(next_random(state) >> 40) * 0x1p-23f - 1.0f;
  for (int round = 0; round < kRounds; ++round) {
    orthonormalise(q, count, n, pool);
    gemm.multiply(plain(q.data(), n), plain(scaled.data(), dim), down.data(), count, dim, n);
    gemm.multiply(plain(down.data(), dim), plain(c.data(), dim), mixed.data(), count, dim, dim);
    gemm.multiply(plain(mixed.data(), dim), transposed(scaled.data(), dim), q.data(), count, n, dim);
  }
  orthonormalise(q, count, n, pool);
  gemm.multiply(plain(q.data(), n), plain(scaled.data(), dim), v.data(), o.rank, dim, n);
  for (int i = 0; i < n; ++i) {
    const float back = weights[i] > 0 ? 1 / weights[i] : 0.0f;
    for (int r = 0; r < o.rank; ++r) u[size_t(i) * o.rank + r] = back * q[size_t(r) * n + i];
  }
}

}  // namespace pi::train
