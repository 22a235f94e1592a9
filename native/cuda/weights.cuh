// How kernels read rows of weights (cuda/layout.h). A row is cut into chunks of 16 bytes of elements, one a lane and
// load; what x has at a chunk's columns lies in `kUnits` units of 16 bytes: floats, quants or, for signs, bits.
#pragma once

#include "base/types.h"
#include "cuda/language.h"
#include "cuda/layout.h"

namespace pi::cuda {

// Weights are streamed: a step reads each byte once, so that they need no place in L1.
__device__ __forceinline__ uint4 load_once(const uint4* p) {
#if defined(__CUDA_ARCH__)
  uint4 v;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
      : "l"(p));
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

// sum + four products, one after the other.
__device__ __forceinline__ float add_products(const float* w, const uint4& x, float sum) {
  sum = fmaf(w[0], __uint_as_float(x.x), sum);
  sum = fmaf(w[1], __uint_as_float(x.y), sum);
  sum = fmaf(w[2], __uint_as_float(x.z), sum);
  return fmaf(w[3], __uint_as_float(x.w), sum);
}

// Per type:
//   kColumns, kUnits       of a chunk
//   kBlocks                true where x comes as quants and scales
//   Sum                    what a dot product is summed in
//   Chunk load(…)          chunk c of a row of `cols` columns, as it lies there
//   Values::unpack(…)      the same, ready to be multiplied with several rows of x
//   Values::dot(…)         sum + values · x, as a fixed sequence of roundings
template <DType>
struct Weights;

template <DType kType>
struct HalfWeights {
  static constexpr int kColumns = 8, kUnits = 2;
  static constexpr bool kBlocks = false;
  using Sum = float;
  using Chunk = uint4;
  struct Values {
    float w[kColumns];
    __device__ __forceinline__ void unpack(const Chunk& c) {
      const unsigned words[4] = {c.x, c.y, c.z, c.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[2 * i] = low_half(words[i], kType);
        w[2 * i + 1] = high_half(words[i], kType);
      }
    }
    __device__ __forceinline__ float dot(const uint4 (&x)[kUnits], float, float sum) const {
      return add_products(w + 4, x[1], add_products(w, x[0], sum));
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int c) {
    return load_once(reinterpret_cast<const uint4*>(row) + c);
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
  using Chunk = uint4;
  struct Values {
    float w[kColumns];
    __device__ __forceinline__ void unpack(const Chunk& c) {
      w[0] = __uint_as_float(c.x), w[1] = __uint_as_float(c.y), w[2] = __uint_as_float(c.z),
      w[3] = __uint_as_float(c.w);
    }
    __device__ __forceinline__ float dot(const uint4 (&x)[kUnits], float, float sum) const {
      return add_products(w, x[0], sum);
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int c) {
    return load_once(reinterpret_cast<const uint4*>(row) + c);
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

// 16 bytes of a block type, with the block's scale in f16.
struct ScaledChunk {
  uint4 w;
  uint16_t d;
};

// Half a block: two neighbouring lanes have one.
template <>
struct Weights<DType::kQ8_0> {
  static constexpr int kColumns = 16, kUnits = 1;
  static constexpr bool kBlocks = true;
  using Sum = float;
  using Chunk = ScaledChunk;
  struct Values {
    uint4 w;
    float d;
    __device__ __forceinline__ void unpack(const Chunk& c) { w = c.w, d = f16_bits_to_f32(c.d); }
    __device__ __forceinline__ float dot(const uint4 (&x)[kUnits], float scale, float sum) const {
      return fmaf(static_cast<float>(dot_bytes(w, x[0], 0)), d * scale, sum);
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
  using Chunk = ScaledChunk;
  struct Values {
    uint4 low, high;
    float d;
    static __device__ __forceinline__ unsigned nibbles(unsigned x) { return (x & 0xf0f0f0f0u) ^ 0x80808080u; }
    __device__ __forceinline__ void unpack(const Chunk& c) {
      low = make_uint4(nibbles(c.w.x << 4), nibbles(c.w.y << 4), nibbles(c.w.z << 4), nibbles(c.w.w << 4));
      high = make_uint4(nibbles(c.w.x), nibbles(c.w.y), nibbles(c.w.z), nibbles(c.w.w));
      d = f16_bits_to_f32(c.d) * 0.0625f;
    }
    __device__ __forceinline__ float dot(const uint4 (&x)[kUnits], float scale, float sum) const {
      return fmaf(static_cast<float>(dot_bytes(high, x[1], dot_bytes(low, x[0], 0))), d * scale, sum);
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
  using Chunk = uint4;
  struct Values {
    uint4 w;
    __device__ __forceinline__ void unpack(const Chunk& c) { w = c; }
    __device__ __forceinline__ int dot(const uint4 (&x)[kUnits], float, int sum) const {
      return sum + __popc(w.x ^ x[0].x) + __popc(w.y ^ x[0].y) + __popc(w.z ^ x[0].z) + __popc(w.w ^ x[0].w);
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int c) {
    return load_once(reinterpret_cast<const uint4*>(row) + c);
  }
};

template <DType kType>
PI_HOST_DEVICE constexpr int chunks_of(int cols) {
  return (cols + Weights<kType>::kColumns - 1) / Weights<kType>::kColumns;
}

}  // namespace pi::cuda
