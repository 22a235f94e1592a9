// How kernels read the paged KV cache of cuda/kernels.h: eight neighbouring elements of a position at a time, an octet.
#pragma once

#include "cuda/kernels.h"
#include "cuda/language.h"

namespace pi::cuda {

using kernels::KvType;

constexpr int kBlockTokens = kernels::kKvBlockTokens;
constexpr int kOctet = 8;

// A layer's KV cache with what kernels would have to work out again and again.
struct KvPages {
  uint8_t* data;
  size_t side_bytes;  // of the keys, or values, of a block
  int kv_heads, head_dim;
};
inline KvPages pages_of(const DeviceKv& kv) {
  return {kv.data, device_kv_side_bytes(kv.type, kv.kv_heads, kv.head_dim), kv.kv_heads, kv.head_dim};
}

enum Side : int { kKeys = 0, kValues = 1 };

// One KV head's keys or values of a block: position p's element d is element p * head_dim + d.
struct KvTile {
  uint8_t* data;
  float* scales;  // [kBlockTokens] of q8
};
template <KvType kType>
__device__ __forceinline__ KvTile kv_tile(const KvPages& kv, int block, Side side, int head) {
  constexpr int kBytes = kType == KvType::kF32 ? 4 : kType == KvType::kF16 ? 2 : 1;
  const size_t head_elements = size_t(kBlockTokens) * kv.head_dim;
  uint8_t* const base = kv.data + (size_t(block) * 2 + side) * kv.side_bytes;
  return {base + head * head_elements * kBytes,
          reinterpret_cast<float*>(base + kv.kv_heads * head_elements) + head * kBlockTokens};
}

// An octet as it lies in memory. All types are read in 16-byte loads but q8, whose octets have 8.
template <KvType>
struct Octet;

template <>
struct Octet<KvType::kF32> {
  float4 low, high;
  __device__ __forceinline__ void clear() { low = high = make_float4(0, 0, 0, 0); }
  __device__ __forceinline__ void load(const KvTile& tile, int octet) {
    const float4* at = reinterpret_cast<const float4*>(tile.data) + 2 * octet;
    low = at[0], high = at[1];
  }
  __device__ __forceinline__ void unpack(float (&x)[kOctet]) const {
    x[0] = low.x, x[1] = low.y, x[2] = low.z, x[3] = low.w;
    x[4] = high.x, x[5] = high.y, x[6] = high.z, x[7] = high.w;
  }
};

template <>
struct Octet<KvType::kF16> {
  uint4 bits;
  __device__ __forceinline__ void clear() { bits = make_uint4(0, 0, 0, 0); }
  __device__ __forceinline__ void load(const KvTile& tile, int octet) {
    bits = reinterpret_cast<const uint4*>(tile.data)[octet];
  }
  __device__ __forceinline__ void unpack(float (&x)[kOctet]) const {
    const unsigned pairs[4] = {bits.x, bits.y, bits.z, bits.w};
    for (int i = 0; i < 4; ++i) {
      x[2 * i] = f16_bits_to_f32(static_cast<uint16_t>(pairs[i]));
      x[2 * i + 1] = f16_bits_to_f32(static_cast<uint16_t>(pairs[i] >> 16));
    }
  }
};

// Without the scales of its positions. A byte becomes the last one of 2^23 as f32: two cheap instructions, where
// conversions run at a quarter of the rate.
template <>
struct Octet<KvType::kQ8> {
  uint2 bits;
  __device__ __forceinline__ void clear() { bits = make_uint2(0, 0); }
  __device__ __forceinline__ void load(const KvTile& tile, int octet) {
    bits = reinterpret_cast<const uint2*>(tile.data)[octet];
  }
  __device__ __forceinline__ void unpack(float (&x)[kOctet]) const {
    const unsigned words[2] = {bits.x ^ 0x80808080u, bits.y ^ 0x80808080u};
    for (int i = 0; i < kOctet; ++i) {
      x[i] = __uint_as_float(__byte_perm(words[i / 4], 0x4b000000u, 0x7440u + i % 4)) - 8388736.0f;  // 2^23 + 128
    }
  }
};

}  // namespace pi::cuda
