// The words of cuda/language.h, and of CUDA's runtime as cuda/runtime.cu uses it, for AMD's HIP. Wavefronts of 64 lanes are
// two warps side by side: exchanges stay within 32 lanes.
#pragma once

#include <hip/hip_fp16.h>
#include <hip/hip_runtime.h>

#include <cstdint>

#define cudaDeviceGetAttribute hipDeviceGetAttribute
#define cudaDeviceGetPCIBusId hipDeviceGetPCIBusId
#define cudaDeviceProp hipDeviceProp_t
#define cudaDevAttrComputeCapabilityMajor hipDeviceAttributeComputeCapabilityMajor
#define cudaDevAttrComputeCapabilityMinor hipDeviceAttributeComputeCapabilityMinor
#define cudaDriverGetVersion hipDriverGetVersion
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
#define cudaFuncSetAttribute(kernel, attribute, value) hipFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value)
#define cudaGetDeviceCount hipGetDeviceCount
#define cudaGetDeviceProperties hipGetDeviceProperties
#define cudaGetErrorName hipGetErrorName
#define cudaGetErrorString hipGetErrorString
#define cudaGetLastError hipGetLastError
#define cudaGraphDestroy hipGraphDestroy
#define cudaGraphExecDestroy hipGraphExecDestroy
#define cudaGraphExec_t hipGraphExec_t
#define cudaGraphInstantiate(program, graph, flags) hipGraphInstantiateWithFlags(program, graph, flags)
#define cudaGraphLaunch hipGraphLaunch
#define cudaGraphUpload hipGraphUpload
#define cudaGraph_t hipGraph_t
#define cudaHostAlloc hipHostMalloc
#define cudaHostAllocMapped hipHostMallocMapped
#define cudaHostAllocPortable hipHostMallocPortable
#define cudaMalloc hipMalloc
#define cudaMemGetInfo hipMemGetInfo
#define cudaMemcpyAsync hipMemcpyAsync
#define cudaMemcpyDeviceToHost hipMemcpyDeviceToHost
#define cudaMemcpyHostToDevice hipMemcpyHostToDevice
#define cudaMemsetAsync hipMemsetAsync
#define cudaRuntimeGetVersion hipRuntimeGetVersion
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

#include "cuda/language_gpu.h"

namespace pi::cuda {

constexpr const char *kBackend = "hip", *kVendor = "AMD";

__device__ __forceinline__ constexpr int lanes_of(int width = 32) { return width; }
__device__ __forceinline__ unsigned warp_ballot(int predicate) {
  return static_cast<unsigned>(__ballot(predicate) >> (__lane_id() & 32));
}
__device__ __forceinline__ void warp_barrier() {
  __builtin_amdgcn_fence(__ATOMIC_ACQ_REL, "wavefront");
  __builtin_amdgcn_wave_barrier();
}
// The compiler makes the machine's dot product of it, where there is one.
__device__ __forceinline__ int dot4(int a, int b, int c) {
  for (int i = 0; i < 32; i += 8) c += static_cast<int8_t>(a >> i) * static_cast<int8_t>(b >> i);
  return c;
}

__device__ __forceinline__ uint64_t device_clock_ns() { return wall_clock64() * 10; }  // of 100 MHz

}  // namespace pi::cuda
