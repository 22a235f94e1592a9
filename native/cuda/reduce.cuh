// Sums and maxima over lanes in one fixed order; every lane gets the result.
#pragma once

#include "cuda/language.h"

namespace pi::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

// Over the `kLanes` neighbouring lanes that begin at a multiple of it. All lanes of the warp call.
template <int kLanes = kWarp>
__device__ __forceinline__ float lanes_sum(float x) {
  for (int with = kLanes / 2; with > 0; with /= 2) x += __shfl_xor_sync(kAllLanes, x, with);
  return x;
}

template <int kLanes = kWarp>
__device__ __forceinline__ float lanes_max(float x) {
  for (int with = kLanes / 2; with > 0; with /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, with));
  return x;
}

// Over a block of whole warps, threads along x. `shared` [32] is used by one sum only.
__device__ __forceinline__ float block_sum(float x, float* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  x = lanes_sum(x);
  if (lane == 0) shared[warp] = x;
  __syncthreads();
  return lanes_sum(lane < static_cast<int>(blockDim.x) / kWarp ? shared[lane] : 0.0f);
}

}  // namespace pi::cuda
