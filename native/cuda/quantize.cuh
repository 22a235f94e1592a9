// Activations to 8 bits, 32 at a time, as the CPU does it: scale = max|x| / 127, quants rounded to nearest even.
#pragma once

#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace pi::cuda {

// Columns of a block that one lane holds: eight neighbouring lanes have a whole one.
constexpr int kLaneColumns = 4;

// Stores elements [at, at + 4) of `out`, counted over all its rows, in 8 bits. All lanes of the warp call; where not
// `inside`, nothing is stored, and then for none of a block's lanes.
__device__ __forceinline__ void store_quantized(const DeviceRows& out, size_t at, const float (&x)[kLaneColumns], bool inside) {
  constexpr int kLanes = kQuantBlock / kLaneColumns;
  const float high = lanes_max<kLanes>(fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3]))));
  const float inverse = high > 0 ? 127.0f / high : 0.0f;
  if (!inside) return;
  unsigned packed = 0;
  for (int i = 0; i < kLaneColumns; ++i) packed |= (static_cast<unsigned>(__float2int_rn(x[i] * inverse)) & 255u) << (8 * i);
  *reinterpret_cast<unsigned*>(out.quants + at) = packed;
  if (threadIdx.x % kLanes == 0) out.scales[at / kQuantBlock] = high / 127.0f;
}

}  // namespace pi::cuda
