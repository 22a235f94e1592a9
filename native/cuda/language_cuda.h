// CUDA, and what of cuda/language.h is its own way of saying it.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/language_gpu.h"

namespace pi::cuda {

constexpr const char *kBackend = "cuda", *kVendor = "NVIDIA";

__device__ __forceinline__ uint64_t device_clock_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

}  // namespace pi::cuda
