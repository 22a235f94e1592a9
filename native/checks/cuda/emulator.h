// What checks of the emulator share: kernels' arguments, launches on devices of their own, for an error ends one, and
// what is expected of errors.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "cuda/emulator_device.h"
#include "cuda/kernels.h"
#include "cuda/language.h"

namespace pi::checks::emulated {

using namespace pi::cuda;

struct Args {
  int* out = nullptr;
  int n = 0;
  Meeting meeting = {};
};

// A barrier of half a warp that all of it comes to, which is undefined on a GPU; and no work at all.
inline __global__ void half_a_mask(Args) { __syncwarp(0xffff); }
inline __global__ void nothing(Args) {}

inline constexpr Kernels kNoKernels{};

// The error of `work`, or an empty string.
template <typename Work>
std::string error_of(Work&& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// Runs one launch on a device of its own; returns the error that shows when it is waited for.
inline std::string run(void (*kernel)(Args), dim3 grid, dim3 block, size_t shared = 0, Args args = {}) {
  const auto device = emulator::make_device(kNoKernels);
  return error_of([&] {
    PI_LAUNCH(kernel, grid, block, shared, device->stream(), args);
    device->synchronize(Queue::kCompute);
  });
}

inline std::string expect_error(const std::string& error, std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    if (error.find(part) == std::string::npos)
      return "expected an error with '" + std::string(part) + "', got '" + error + "'";
  }
  return "";
}

inline std::string expect_equal(const char* what, int64_t expected, int64_t actual) {
  return expected == actual
             ? ""
             : std::string(what) + ": expected " + std::to_string(expected) + ", got " + std::to_string(actual);
}

}  // namespace pi::checks::emulated
