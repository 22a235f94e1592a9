// Rows, words and quants that cross between host and device.
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "checks/check.h"
#include "checks/cuda/device.h"
#include "kernels/kernels.h"

namespace pi::checks {
namespace {

using namespace pi::cuda;

// Quants and scales of a row as the CPU's scalar kernel makes them.
void quantize_row(const float* x, int cols, int8_t* quants, float* scales) {
  const kernels::Table& k = *kernels::available().front();
  std::vector<uint8_t> packed(kernels::quantized_bytes(cols));
  k.quantize(x, cols, packed.data());
  const int blocks = k.lanes / 4;
  for (int b = 0; b < cols / 32; ++b) {
    const uint8_t* const group = packed.data() + b / blocks * 64 * blocks;
    std::memcpy(quants + b * 32, group + b % blocks * 16, 16);
    std::memcpy(quants + b * 32 + 16, group + 16 * blocks + b % blocks * 16, 16);
    std::memcpy(&scales[b], group + 48 * blocks + b % blocks * 16, 4);
  }
}

std::string expect_quants(const std::vector<float>& x, int rows, int cols, const std::vector<int8_t>& quants, const std::vector<float>& scales) {
  std::vector<int8_t> q(cols);
  std::vector<float> d(cols / 32);
  for (int t = 0; t < rows; ++t) {
    quantize_row(&x[size_t(t) * cols], cols, q.data(), d.data());
    for (int j = 0; j < cols; ++j) {
      if (q[j] != quants[size_t(t) * cols + j]) {
        return "row " + std::to_string(t) + ", column " + std::to_string(j) + ": expected " + std::to_string(q[j]) + ", got " +
               std::to_string(quants[size_t(t) * cols + j]);
      }
    }
    if (std::memcmp(d.data(), &scales[size_t(t) * (cols / 32)], d.size() * 4) != 0) return "row " + std::to_string(t) + ": other scales";
  }
  return "";
}

std::vector<float> awkward_rows(int rows, int cols) {
  std::vector<float> x = random_vector(size_t(rows) * cols, 3, 5.0f);
  for (int j = 0; j < 32; ++j) x[j] = 0;
  x.back() = 1e30f;
  // Halves, which round to even: the block's largest is 127.
  for (int j = 0; cols >= 64 && j < 32; ++j) x[32 + j] = j == 0 ? 127.0f : 0.5f + static_cast<float>(j - 16);
  return x;
}

std::string check_quantize(int rows, int cols) {
  const std::vector<float> x = awkward_rows(rows, cols);
  const DeviceArray<float> in(x), scales(x.size() / 32);
  const DeviceArray<int8_t> quants(x.size());
  kernels_of_device().quantize(stream(), {{in.data(), quants.data(), scales.data(), cols}, rows});
  return expect_quants(x, rows, cols, quants.get(), scales.get());
}

const Check quantize("device: quantize, bit for bit as the CPU", [] {
  for (const auto& [rows, cols] : {std::pair{1, 32}, {3, 96}, {2, 1024}, {1, 1056}, {5, 2080}}) {
    const std::string wrong = check_quantize(rows, cols);
    if (!wrong.empty()) return std::to_string(rows) + " x " + std::to_string(cols) + ": " + wrong;
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
