// The words of cuda/language.h, and of CUDA's runtime as cuda/runtime.cu uses it, for AMD's HIP. Wavefronts of 64 lanes
// are two warps side by side: exchanges stay within 32 lanes. It compiles, and was never run: no test has an AMD GPU.
#pragma once

#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>
#include <unistd.h>

#include <cstdint>

#define cudaDeviceGetAttribute hipDeviceGetAttribute
#define cudaDeviceGetPCIBusId hipDeviceGetPCIBusId
#define cudaDeviceProp hipDeviceProp_t
#define cudaDevAttrComputeCapabilityMajor hipDeviceAttributeComputeCapabilityMajor
#define cudaDevAttrComputeCapabilityMinor hipDeviceAttributeComputeCapabilityMinor
#define cudaDriverGetVersion pi::cuda::driver_version
#define cudaErrorInsufficientDriver hipErrorInsufficientDriver
#define cudaErrorMemoryAllocation hipErrorOutOfMemory
#define cudaErrorNoDevice hipErrorNoDevice
#define cudaErrorNotReady hipErrorNotReady
#define cudaError_t hipError_t
#define cudaEventCreateWithFlags hipEventCreateWithFlags
#define cudaEventDestroy hipEventDestroy
#define cudaEventDisableTiming hipEventDisableTiming
#define cudaEventQuery hipEventQuery
#define cudaEventRecord hipEventRecord
#define cudaEvent_t hipEvent_t
#define cudaFree hipFree
#define cudaFreeHost hipHostFree
#define cudaFuncAttributeMaxDynamicSharedMemorySize hipFuncAttributeMaxDynamicSharedMemorySize
#define cudaFuncSetAttribute(kernel, attribute, value) \
  hipFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value)
#define cudaGetDeviceCount hipGetDeviceCount
#define cudaGetDeviceProperties hipGetDeviceProperties
#define cudaGetErrorName hipGetErrorName
#define cudaGetErrorString hipGetErrorString
#define cudaGetLastError hipGetLastError
#define cudaGraphDestroy hipGraphDestroy
#define cudaGraphExecDestroy hipGraphExecDestroy
#define cudaGraphExec_t hipGraphExec_t
#define cudaGraphGetNodes hipGraphGetNodes
#define cudaGraphInstantiate(program, graph, flags) hipGraphInstantiateWithFlags(program, graph, flags)
#define cudaGraphLaunch hipGraphLaunch
#define cudaGraphUpload pi::cuda::upload_graph
#define cudaGraph_t hipGraph_t
#define cudaHostAlloc hipHostMalloc
#define cudaHostAllocMapped (hipHostMallocMapped | hipHostMallocCoherent)
#define cudaHostAllocPortable hipHostMallocPortable
#define cudaMalloc hipMalloc
#define cudaMemGetInfo hipMemGetInfo
#define cudaMemcpyAsync hipMemcpyAsync
#define cudaMemcpyDeviceToHost hipMemcpyDeviceToHost
#define cudaMemcpyHostToDevice hipMemcpyHostToDevice
#define cudaMemsetAsync hipMemsetAsync
#define cudaRuntimeGetVersion(version) pi::cuda::as_cuda_numbers(hipRuntimeGetVersion, version)
#define cudaSetDevice hipSetDevice
#define cudaStreamBeginCapture hipStreamBeginCapture
#define cudaStreamCaptureModeThreadLocal hipStreamCaptureModeThreadLocal
#define cudaStreamCreateWithFlags hipStreamCreateWithFlags
#define cudaStreamDestroy hipStreamDestroy
#define cudaStreamEndCapture hipStreamEndCapture
#define cudaStreamNonBlocking hipStreamNonBlocking
#define cudaStreamSynchronize hipStreamSynchronize
#define cudaStreamWaitEvent hipStreamWaitEvent
#define cudaStream_t hipStream_t
#define cudaSuccess hipSuccess

#define __shfl_sync(mask, x, source, ...) __shfl((x), (source), pi::cuda::lanes_of(__VA_ARGS__))
#define __shfl_xor_sync(mask, x, with, ...) __shfl_xor((x), (with), pi::cuda::lanes_of(__VA_ARGS__))
#define __shfl_down_sync(mask, x, by, ...) __shfl_down((x), (by), pi::cuda::lanes_of(__VA_ARGS__))
#define __shfl_up_sync(mask, x, by, ...) __shfl_up((x), (by), pi::cuda::lanes_of(__VA_ARGS__))
#define __ballot_sync(mask, predicate) pi::cuda::warp_ballot(predicate)
#define __any_sync(mask, predicate) (pi::cuda::warp_ballot(predicate) != 0)
#define __all_sync(mask, predicate) (pi::cuda::warp_ballot(!(predicate)) == 0)
#define __syncwarp(...) pi::cuda::warp_barrier()
#define __nanosleep(ns) __builtin_amdgcn_s_sleep(2)
#define __dp4a pi::cuda::dot4
#define __fmul_rn pi::cuda::rounded_product
#define __fadd_rn pi::cuda::rounded_sum

// HIP's second bound counts waves of a SIMD, not blocks of a multiprocessor, and would cost registers.
#undef __launch_bounds__
#define __launch_bounds__(threads, ...) __attribute__((amdgpu_flat_work_group_size(1, threads)))

#include "cuda/language_gpu.h"

namespace pi::cuda {

constexpr const char *kBackend = "hip", *kVendor = "AMD";
constexpr const char* kLoadAtOnce[] = {"HIP_ENABLE_DEFERRED_LOADING", "0"};

// HIP's 50221153 is 5.2, which CUDA would call 5020.
inline hipError_t as_cuda_numbers(hipError_t (*get)(int*), int* version) {
  const hipError_t status = get(version);
  *version = *version / 10'000'000 * 1000 + *version / 100'000 % 100 * 10;
  return status;
}

// HIP tells its own version where there is no driver, too; the driver is there where its device is.
inline hipError_t driver_version(int* version) {
  return ::access("/dev/kfd", F_OK) == 0 ? as_cuda_numbers(hipDriverGetVersion, version) : hipErrorNoDevice;
}

// HIP 5.2 has no hipGraphUpload: there a program takes its memory when it is first launched.
template <typename Program>
hipError_t upload_graph(Program program, hipStream_t stream) {
  if constexpr (requires { hipGraphUpload(program, stream); }) return hipGraphUpload(program, stream);
  return hipSuccess;
}

__device__ __forceinline__ constexpr int lanes_of(int width = 32) { return width; }
__device__ __forceinline__ unsigned warp_ballot(int predicate) {
  return static_cast<unsigned>(__ballot(predicate) >> (__lane_id() & 32));
}
__device__ __forceinline__ void warp_barrier() {
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  __builtin_amdgcn_wave_barrier();
}

// HIP's own are plain operators, which the compiler fuses into one multiply-add of one rounding.
__device__ __forceinline__ float rounded_product(float x, float y) {
#pragma clang fp contract(off)
  return x * y;
}
__device__ __forceinline__ float rounded_sum(float x, float y) {
#pragma clang fp contract(off)
  return x + y;
}

__device__ __forceinline__ int dot4(int a, int b, int c) {
#if __has_builtin(__builtin_amdgcn_sdot4)
  return __builtin_amdgcn_sdot4(a, b, c, false);
#elif __has_builtin(__builtin_amdgcn_sudot4)
  return __builtin_amdgcn_sudot4(true, a, true, b, c, false);
#else
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return c;
#endif
}

// The counter of real time runs at 100 MHz; of CDNA, CDNA 2 and Vega 20 at 25 MHz (their ISA manuals, S_MEMREALTIME).
__device__ __forceinline__ uint64_t device_clock_ns() {
#if defined(__gfx906__) || defined(__gfx908__) || defined(__gfx90a__)
  constexpr uint64_t kTick = 40;
#else
  constexpr uint64_t kTick = 10;
#endif
#if HIP_VERSION < 50400000  // nor any GPU without the instruction
  return __builtin_amdgcn_s_memrealtime() * kTick;
#else
  return static_cast<uint64_t>(wall_clock64()) * kTick;
#endif
}

template <typename T>
__device__ __forceinline__ T load_system(const T* p) {
  return __hip_atomic_load(p, __ATOMIC_ACQUIRE, __HIP_MEMORY_SCOPE_SYSTEM);
}
template <typename T>
__device__ __forceinline__ void store_system(T* p, T x) {
  __hip_atomic_store(p, x, __ATOMIC_RELEASE, __HIP_MEMORY_SCOPE_SYSTEM);
}

}  // namespace pi::cuda
