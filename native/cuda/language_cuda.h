// CUDA, and what of cuda/language.h is its own way of saying it.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/language_gpu.h"

namespace pi::cuda {

constexpr const char *kBackend = "cuda", *kVendor = "NVIDIA";
constexpr const char* kLoadAtOnce[] = {"CUDA_MODULE_LOADING", "EAGER"};

__device__ __forceinline__ uint64_t device_clock_ns() {
  uint64_t ns;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
  return ns;
}

template <typename T>
__device__ __forceinline__ T load_system(const T* p) {
  const T x = *static_cast<const volatile T*>(p);
  __threadfence_system();
  return x;
}

template <typename T>
__device__ __forceinline__ void store_system(T* p, T x) {
  __threadfence_system();
  *static_cast<volatile T*>(p) = x;
}

}  // namespace pi::cuda
