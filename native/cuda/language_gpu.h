// The words of cuda/language.h that CUDA and HIP lack and can be told alike.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pi::cuda {

// The first launch that failed is named at the next synchronize (cuda/runtime.cu).
void note_launch(const char* kernel, cudaError_t status);

constexpr size_t kUsualShared = 48 << 10;

template <typename Kernel>
void allow_shared(Kernel* kernel, size_t bytes) {
  if (bytes > kUsualShared)
    (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
}

__device__ __forceinline__ float f16_bits_to_f32(uint16_t h) { return __half2float(__ushort_as_half(h)); }
__device__ __forceinline__ uint16_t f32_to_f16_bits(float x) { return __half_as_ushort(__float2half_rn(x)); }
__device__ __forceinline__ float bf16_bits_to_f32(uint16_t h) {
  return __uint_as_float(static_cast<uint32_t>(h) << 16);
}

}  // namespace pi::cuda

#define PI_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                  \
  do {                                                                                             \
    ::pi::cuda::allow_shared(kernel, (shared_bytes));                                              \
    (kernel)<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__); \
    ::pi::cuda::note_launch(#kernel, cudaGetLastError());                                          \
  } while (0)

#define PI_DYNAMIC_SHARED(T, name)                                   \
  extern __shared__ __align__(16) unsigned char pi_dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(pi_dynamic_shared)
