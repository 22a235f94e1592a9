// How kernels read rows of weights (cuda/layout.h). A row is cut into chunks of 16 bytes of elements, one a lane and load;
// what x has at a chunk's columns lies in `kUnits` units of 16 bytes: floats, quants or, for signs, bits.
#pragma once

#include "base/types.h"
#include "cuda/language.h"
#include "cuda/layout.h"

namespace pi::cuda {

// Weights are streamed: a step reads each byte once, so that they need no place in L1.
__device__ __forceinline__ uint4 load_once(const uint4* p) {
#if defined(__CUDA_ARCH__)
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
#else
  return *p;
#endif
}

// Asks for the line of L2 that holds p.
__device__ __forceinline__ void prefetch_line(const void* p) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
#endif
}

__device__ __forceinline__ float low_half(uint32_t x, DType type) {
  return type == DType::kF16 ? f16_bits_to_f32(static_cast<uint16_t>(x)) : __uint_as_float(x << 16);
}
__device__ __forceinline__ float high_half(uint32_t x, DType type) {
  return type == DType::kF16 ? f16_bits_to_f32(static_cast<uint16_t>(x >> 16)) : __uint_as_float(x & 0xffff0000u);
}

// Per type:
//   kColumns, kUnits       of a chunk
//   kBlocks                true where x comes as quants and scales
//   Sum                    what a dot product is summed in
//   Chunk load(…)          chunk c of a row of `cols` columns
//   Chunk::dot(…)          sum + chunk · x, as a fixed sequence of roundings
template <DType>
struct Weights;

template <DType kType>
struct HalfWeights {
  static constexpr int kColumns = 8, kUnits = 2;
  static constexpr bool kBlocks = false;
  using Sum = float;
  struct Chunk {
    uint4 w;
    __device__ __forceinline__ float dot(const uint4 (&x)[kUnits], float, float sum) const {
      sum = fmaf(low_half(w.x, kType), __uint_as_float(x[0].x), sum);
      sum = fmaf(high_half(w.x, kType), __uint_as_float(x[0].y), sum);
      sum = fmaf(low_half(w.y, kType), __uint_as_float(x[0].z), sum);
      sum = fmaf(high_half(w.y, kType), __uint_as_float(x[0].w), sum);
      sum = fmaf(low_half(w.z, kType), __uint_as_float(x[1].x), sum);
      sum = fmaf(high_half(w.z, kType), __uint_as_float(x[1].y), sum);
      sum = fmaf(low_half(w.w, kType), __uint_as_float(x[1].z), sum);
      return fmaf(high_half(w.w, kType), __uint_as_float(x[1].w), sum);
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int c) {
    return {load_once(reinterpret_cast<const uint4*>(row) + c)};
  }
};
template <>
struct Weights<DType::kF16> : HalfWeights<DType::kF16> {};
template <>
struct Weights<DType::kBF16> : HalfWeights<DType::kBF16> {};

template <>
struct Weights<DType::kF32> {
  static constexpr int kColumns = 4, kUnits = 1;
  static constexpr bool kBlocks = false;
  using Sum = float;
  struct Chunk {
    uint4 w;
    __device__ __forceinline__ float dot(const uint4 (&x)[kUnits], float, float sum) const {
      sum = fmaf(__uint_as_float(w.x), __uint_as_float(x[0].x), sum);
      sum = fmaf(__uint_as_float(w.y), __uint_as_float(x[0].y), sum);
      sum = fmaf(__uint_as_float(w.z), __uint_as_float(x[0].z), sum);
      return fmaf(__uint_as_float(w.w), __uint_as_float(x[0].w), sum);
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int c) {
    return {load_once(reinterpret_cast<const uint4*>(row) + c)};
  }
};

// 16 products of bytes, added to `sum`.
__device__ __forceinline__ int dot_bytes(uint4 a, uint4 b, int sum) {
  sum = __dp4a(static_cast<int>(a.x), static_cast<int>(b.x), sum);
  sum = __dp4a(static_cast<int>(a.y), static_cast<int>(b.y), sum);
  sum = __dp4a(static_cast<int>(a.z), static_cast<int>(b.z), sum);
  return __dp4a(static_cast<int>(a.w), static_cast<int>(b.w), sum);
}

__device__ __forceinline__ uint16_t block_scale(DType type, const uint8_t* row, int cols, int block) {
  return __ldg(reinterpret_cast<const uint16_t*>(row + scales_offset(type, cols)) + block);
}

// Half a block: two neighbouring lanes have one.
template <>
struct Weights<DType::kQ8_0> {
  static constexpr int kColumns = 16, kUnits = 1;
  static constexpr bool kBlocks = true;
  using Sum = float;
  struct Chunk {
    uint4 w;
    uint16_t d;
    __device__ __forceinline__ float dot(const uint4 (&x)[kUnits], float scale, float sum) const {
      return fmaf(static_cast<float>(dot_bytes(w, x[0], 0)), f16_bits_to_f32(d) * scale, sum);
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int c) {
    return {load_once(reinterpret_cast<const uint4*>(row) + c), block_scale(DType::kQ8_0, row, cols, c / 2)};
  }
};

// A whole block. As the high half of a byte, and with its sign turned, a nibble n is 16 * (n - 8): the offset costs
// nothing, and the sixteenth that is left of a sum of integers is exact.
template <>
struct Weights<DType::kQ4_0> {
  static constexpr int kColumns = 32, kUnits = 2;
  static constexpr bool kBlocks = true;
  using Sum = float;
  static __device__ __forceinline__ unsigned high_nibbles(unsigned x) { return (x & 0xf0f0f0f0u) ^ 0x80808080u; }
  static __device__ __forceinline__ uint4 high_nibbles(uint4 x) {
    return make_uint4(high_nibbles(x.x), high_nibbles(x.y), high_nibbles(x.z), high_nibbles(x.w));
  }
  struct Chunk {
    uint4 w;
    uint16_t d;
    __device__ __forceinline__ float dot(const uint4 (&x)[kUnits], float scale, float sum) const {
      const uint4 low = high_nibbles(make_uint4(w.x << 4, w.y << 4, w.z << 4, w.w << 4));
      const int sixteenths = dot_bytes(high_nibbles(w), x[1], dot_bytes(low, x[0], 0));
      return fmaf(static_cast<float>(sixteenths), f16_bits_to_f32(d) * 0.0625f * scale, sum);
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int c) {
    return {load_once(reinterpret_cast<const uint4*>(row) + c), block_scale(DType::kQ4_0, row, cols, c)};
  }
};

// Signs of weights and of x: counts the columns where they differ.
template <>
struct Weights<DType::kBit> {
  static constexpr int kColumns = 128, kUnits = 1;
  static constexpr bool kBlocks = false;
  using Sum = int;
  struct Chunk {
    uint4 w;
    __device__ __forceinline__ int dot(const uint4 (&x)[kUnits], float, int sum) const {
      return sum + __popc(w.x ^ x[0].x) + __popc(w.y ^ x[0].y) + __popc(w.z ^ x[0].z) + __popc(w.w ^ x[0].w);
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int c) {
    return {load_once(reinterpret_cast<const uint4*>(row) + c)};
  }
};

template <DType kType>
__host__ __device__ constexpr int chunks_of(int cols) {
  return (cols + Weights<kType>::kColumns - 1) / Weights<kType>::kColumns;
}

}  // namespace pi::cuda
