// New keys and values on their way into the cache: a warp a head's vector, in one pass over it.
#pragma once

#include "cuda/kv.cuh"
#include "cuda/reduce.cuh"

namespace pi::cuda {

constexpr int kMostPairs = 4;  // a lane's, of at most 256 / 2

// A lane has elements i and head_dim / 2 + i for i = lane, lane + 32, …: what is rotated together.
struct Pairs {
  float low[kMostPairs], high[kMostPairs];
};

__device__ __forceinline__ Pairs load_pairs(const float* x, int half, int lane) {
  Pairs p;
  for (int k = 0; k < kMostPairs; ++k) {
    const int i = lane + k * kWarp;
    p.low[k] = i < half ? x[i] : 0.0f;
    p.high[k] = i < half ? x[half + i] : 0.0f;
  }
  return p;
}

// One rounding each, whichever kernel does it.
__device__ __forceinline__ void rotate_pair(float& low, float& high, float cosine, float sine) {
  const float x = low, y = high;
  low = fmaf(x, cosine, -y * sine);
  high = fmaf(y, cosine, x * sine);
}

__device__ __forceinline__ void rotate(Pairs& p, const NewKv& now, int position, int half, int lane) {
  const float* cosine = now.cosine + size_t(position) * half;
  const float* sine = now.sine + size_t(position) * half;
  for (int k = 0; k < kMostPairs; ++k) {
    const int i = lane + k * kWarp;
    if (i >= half) continue;
    rotate_pair(p.low[k], p.high[k], cosine[i], sine[i]);
  }
}

template <KvType kType>
__device__ __forceinline__ void store_element(const KvTile& tile, int i, float x, float inverse) {
  if constexpr (kType == KvType::kF32) reinterpret_cast<float*>(tile.data)[i] = x;
  if constexpr (kType == KvType::kF16) reinterpret_cast<uint16_t*>(tile.data)[i] = f32_to_f16_bits(x);
  if constexpr (kType == KvType::kQ8)
    reinterpret_cast<int8_t*>(tile.data)[i] = static_cast<int8_t>(__float2int_rn(x * inverse));
}

template <KvType kType>
__device__ __forceinline__ void store_vector(const Pairs& p, const KvTile& tile, int slot, int half, int lane) {
  float inverse = 0;
  if constexpr (kType == KvType::kQ8) {
    float high = 0;
    for (int k = 0; k < kMostPairs; ++k) high = fmaxf(high, fmaxf(fabsf(p.low[k]), fabsf(p.high[k])));
    high = lanes_max(high);
    inverse = high > 0 ? 127.0f / high : 0.0f;
    if (lane == 0) tile.scales[slot] = high / 127.0f;
  }
  for (int k = 0; k < kMostPairs; ++k) {
    const int i = lane + k * kWarp;
    if (i >= half) continue;
    store_element<kType>(tile, slot * 2 * half + i, p.low[k], inverse);
    store_element<kType>(tile, slot * 2 * half + half + i, p.high[k], inverse);
  }
}

// The key, or the value, of a row's KV head. A warp calls.
template <KvType kType>
__device__ __forceinline__ void store_head(const NewKv& now, const KvPages& kv, Side side, int row, int head,
                                           int position, int block) {
  const int lane = threadIdx.x % kWarp, half = kv.head_dim / 2;
  Pairs p =
      load_pairs((side == kKeys ? now.key : now.value) + (size_t(row) * kv.kv_heads + head) * 2 * half, half, lane);
  if (now.cosine && side == kKeys) rotate(p, now, position, half, lane);
  store_vector<kType>(p, kv_tile<kType>(kv, block, side, head), position % kBlockTokens, half, lane);
}

}  // namespace pi::cuda
