// Norms on the device against an f64 twin.
#include <algorithm>
#include <cstring>

#include "checks/check.h"
#include "checks/cuda/device.h"

namespace pi::checks {
namespace {

std::string expected_got(const char* what, size_t i, double expected, double actual) {
  return std::string(what) + " " + std::to_string(i) + ": expected " + std::to_string(expected) + ", got " +
         std::to_string(actual);
}

struct Normed {
  std::vector<float> x, scales;
  std::vector<int8_t> quants;
};

Normed run(const std::vector<float>& x, const std::vector<float>& weight, const std::vector<float>& bias, float eps,
           bool quants) {
  const int cols = static_cast<int>(weight.size()), rows = static_cast<int>(x.size()) / cols;
  DeviceArray<float> in(x), w(weight), b(bias), out(x.size()), scales(x.size() / 32 + 1);
  DeviceArray<int8_t> q(x.size());
  cuda::Norm a{
      in.data(), w.data(), bias.empty() ? nullptr : b.data(), eps, {out.data(), nullptr, nullptr, cols}, rows, nullptr,
      {},        nullptr};
  if (quants) a.out.quants = q.data(), a.out.scales = scales.data();
  kernels_of_device().norm(stream(), a);
  return {out.get(), scales.get(), q.get()};
}

// Of one row, in f64; `size` is what an error is relative to.
struct Twin {
  std::vector<double> y, size;
};
Twin twin(const float* x, const std::vector<float>& weight, const std::vector<float>& bias, double eps) {
  const size_t n = weight.size();
  double mean = 0, squares = 0;
  for (size_t i = 0; i < n && !bias.empty(); ++i) mean += x[i] / double(n);
  for (size_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean) / double(n);
  Twin out;
  for (size_t i = 0; i < n; ++i) {
    const double scale = weight[i] / std::sqrt(squares + eps), shift = bias.empty() ? 0 : bias[i];
    out.y.push_back((x[i] - mean) * scale + shift);
    out.size.push_back((std::fabs(x[i]) + std::fabs(mean)) * std::fabs(scale) + std::fabs(shift));
  }
  return out;
}

// Sums of n squares along a tree of depth log2(n) behind at most 64 in a row; then a root, a division and three
// products.
constexpr double kTolerance = (64 + 15 + 8) * 6e-8;

std::string check_norm(int rows, int cols, bool bias, float scale) {
  const std::vector<float> x = random_vector(size_t(rows) * cols, 41, scale), weight = random_vector(cols, 42);
  const std::vector<float> shift = bias ? random_vector(cols, 43) : std::vector<float>();
  const bool quants = cols % kQuantBlock == 0;
  const Normed out = run(x, weight, shift, 1e-5f, quants);
  for (int t = 0; t < rows; ++t) {
    const size_t at = size_t(t) * cols;
    const Twin expected = twin(&x[at], weight, shift, 1e-5f);
    for (int i = 0; i < cols; ++i) {
      if (!(std::fabs(out.x[at + i] - expected.y[i]) <= kTolerance * expected.size[i])) {
        return expected_got("element", at + i, expected.y[i], out.x[at + i]);
      }
    }
  }
  for (size_t i = 0; quants && i < x.size(); ++i) {
    const size_t block = i / kQuantBlock * kQuantBlock;
    float high = 0;
    for (int j = 0; j < kQuantBlock; ++j) high = std::max(high, std::fabs(out.x[block + j]));
    if (std::fabs(out.scales[i / kQuantBlock] - high / 127) > 1e-7f * high)
      return expected_got("scale of", i, high / 127, out.scales[i / kQuantBlock]);
    const float expected = high > 0 ? out.x[i] * 127 / high : 0;
    if (std::fabs(out.quants[i] - expected) > 0.5001f) return expected_got("quant", i, expected, out.quants[i]);
  }
  // The last row alone.
  const std::vector<float> last(x.end() - cols, x.end());
  const Normed alone = run(last, weight, shift, 1e-5f, quants);
  if (std::memcmp(alone.x.data(), &out.x[out.x.size() - cols], cols * sizeof(float)) != 0)
    return "bits depend on the other rows";
  return "";
}

std::string check_zeros() {
  const Normed out = run(std::vector<float>(64), std::vector<float>(64, 1.0f), {}, 1e-5f, true);
  for (const float x : out.x) {
    if (x != 0) return "not zero";
  }
  for (const int8_t q : out.quants) {
    if (q != 0) return "quants are not zero";
  }
  return out.scales[0] == 0 && out.scales[1] == 0 ? "" : "scales are not zero";
}

struct Registration {
  Registration() {
    for (const bool bias : {false, true}) {
      const std::string kind = bias ? "device: layer norm of " : "device: RMS norm of ";
      for (const int cols : {1, 3, 32, 100, 896, 1001, 4096, 4099, 4128, 16384}) {
        const int rows = cols > 2000 ? 2 : 5;
        Check(kind + std::to_string(cols), [=] { return check_norm(rows, cols, bias, 1.0f); });
        // A square of these is far from f32's largest number, their sum is not.
        Check(kind + std::to_string(cols) + ", large", [=] { return check_norm(rows, cols, bias, 1e16f); });
      }
    }
    Check("device: RMS norm of zeros", check_zeros);
  }
} const registration;

}  // namespace
}  // namespace pi::checks
