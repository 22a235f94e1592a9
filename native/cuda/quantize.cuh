// Activations to 8 bits, 32 at a time, as the CPU does it: scale = max|x| / 127, quants rounded to nearest even.
#pragma once

#include "cuda/kernels.h"
#include "cuda/reduce.cuh"

namespace pi::cuda {

// Columns of a block that one lane holds: eight neighbouring lanes have a whole one.
constexpr int kLaneColumns = 4;

// A lane's columns in 8 bits, and the scale of its block. All lanes of the warp call.
__device__ __forceinline__ unsigned quantize_columns(const float (&x)[kLaneColumns], float& scale) {
  const float high =
      lanes_max<kQuantBlock / kLaneColumns>(fmaxf(fmaxf(fabsf(x[0]), fabsf(x[1])), fmaxf(fabsf(x[2]), fabsf(x[3]))));
  const float inverse = high > 0 ? 127.0f / high : 0.0f;
  scale = high / 127.0f;
  unsigned packed = 0;
  for (int i = 0; i < kLaneColumns; ++i)
    packed |= (static_cast<unsigned>(__float2int_rn(x[i] * inverse)) & 255u) << (8 * i);
  return packed;
}

// Stores elements [at, at + 4) of `out`, counted over all its rows, in 8 bits. All lanes of the warp call; where not
// `inside`, nothing is stored, and then for none of a block's lanes.
__device__ __forceinline__ void store_quantized(const DeviceRows& out, size_t at, const float (&x)[kLaneColumns],
                                                bool inside) {
  float scale;
  const unsigned packed = quantize_columns(x, scale);
  if (!inside) return;
  *reinterpret_cast<unsigned*>(out.quants + at) = packed;
  if (threadIdx.x % (kQuantBlock / kLaneColumns) == 0) out.scales[at / kQuantBlock] = scale;
}

}  // namespace pi::cuda
