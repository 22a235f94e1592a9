// Random weights and activations for checks, with the values that they stand for in f64.
#pragma once

#include <cmath>
#include <string>
#include <vector>

#include "checks/check.h"
#include "checks/cuda/device.h"
#include "quant/convert.h"

namespace pi::checks {

constexpr DType kWeightTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0};
inline const char* type_name(DType type) {
  constexpr const char* kNames[] = {"f32", "f16", "bf16", "q8_0", "q4_0", "i32", "bit"};
  return kNames[static_cast<int>(type)];
}

// Normally distributed, or, to overflow whatever can, numbers of one magnitude and either sign.
inline std::vector<float> random_values(size_t n, uint32_t seed, float scale, bool saturate) {
  std::vector<float> out = random_vector(n, seed, scale);
  for (float& x : out) x = saturate ? std::copysign(scale, x) : x;
  return out;
}

struct HostWeights {
  DType type;
  int rows, cols;
  std::vector<uint8_t> bytes;
  std::vector<float> values;  // exact: [rows, cols]

  HostWeights(DType type, int rows, int cols, uint32_t seed, bool saturate = false)
      : type(type), rows(rows), cols(cols), bytes(rows * row_bytes(type, cols)), values(size_t(rows) * cols) {
    const std::vector<float> x =
        random_values(values.size(), seed, saturate ? 1e4f : 1.0f / std::sqrt(static_cast<float>(cols)), saturate);
    quant::convert(reinterpret_cast<const uint8_t*>(x.data()), DType::kF32, bytes.data(), type, rows, cols, false,
                   quant::Scales::kPlain, 1);
    if (type == DType::kBit) {
      values = x;
    } else {
      quant::dequantize(bytes.data(), type, values.data(), rows, cols, 1);
    }
  }
  DeviceWeights to_device() const { return DeviceWeights(type, rows, cols, bytes.data()); }
};

// Rows of x on the device, and what weights of a type are multiplied with.
struct Rows {
  int n, cols;
  std::vector<float> x;
  std::vector<double> values;  // [n, cols]
  DeviceArray<float> device_x, device_scales;
  DeviceArray<int8_t> device_quants;

  Rows(DType type, int n, int cols, uint32_t seed, bool saturate = false)
      : Rows(type, n, cols, random_values(size_t(n) * cols, seed, saturate ? 1e3f : 1.0f, saturate)) {}
  Rows(DType type, int n, int cols, const std::vector<float>& from)
      : n(n),
        cols(cols),
        x(from),
        values(from.begin(), from.end()),
        device_x(from),
        device_scales(size_t(n) * cols / kQuantBlock),
        device_quants(size_t(n) * cols) {
    if (block_size(type) != kQuantBlock) return;
    std::vector<int8_t> quants(x.size());
    std::vector<float> scales(x.size() / kQuantBlock);
    for (size_t b = 0; b < scales.size(); ++b) {
      float high = 0;
      for (size_t i = b * kQuantBlock; i < (b + 1) * kQuantBlock; ++i) high = std::max(high, std::fabs(x[i]));
      scales[b] = high / 127.0f;
      for (size_t i = b * kQuantBlock; i < (b + 1) * kQuantBlock; ++i) {
        quants[i] = static_cast<int8_t>(std::nearbyint(x[i] * (high > 0 ? 127.0f / high : 0.0f)));
        values[i] = double(quants[i]) * scales[b];
      }
    }
    device_quants.set(quants);
    device_scales.set(scales);
  }
  cuda::DeviceRows view() const { return {device_x.data(), device_quants.data(), device_scales.data(), cols}; }
};

// w[row] · x[t] in f64, and the sum of magnitudes, which errors are relative to.
struct Dot {
  double sum = 0, magnitude = 0;
};
inline Dot dot(const HostWeights& w, int row, const Rows& x, int t) {
  Dot out;
  for (int c = 0; c < w.cols; ++c) {
    const double product = double(w.values[size_t(row) * w.cols + c]) * x.values[size_t(t) * x.cols + c];
    out.sum += product;
    out.magnitude += std::fabs(product);
  }
  return out;
}

// Rounding error of a sum of n products in f32, whatever its order: n * eps * sum |a b| (Higham, 2002), with slack for
// the products by scales.
inline double sum_tolerance(int n, double magnitude) { return (n + 8) * 6e-8 * magnitude + 1e-30; }

inline std::string differs(const std::string& what, size_t i, double expected, double actual) {
  return what + " " + std::to_string(i) + ": expected " + std::to_string(expected) + ", got " + std::to_string(actual);
}

// An empty string where all bits are the same.
template <typename T>
std::string same_bits(const std::string& what, const std::vector<T>& expected, const std::vector<T>& actual) {
  if (expected.size() != actual.size()) return differs(what + ": elements", 0, expected.size(), actual.size());
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::memcmp(&expected[i], &actual[i], sizeof(T)) != 0) return differs(what, i, expected[i], actual[i]);
  }
  return "";
}

// As many words of bits as n of them need.
inline std::vector<uint32_t> bit_words(const std::vector<bool>& bits) {
  std::vector<uint32_t> out(cuda::mask_words(static_cast<int>(bits.size())));
  for (size_t i = 0; i < bits.size(); ++i) out[i / 32] |= uint32_t{bits[i]} << (i % 32);
  return out;
}

}  // namespace pi::checks
