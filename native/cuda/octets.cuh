// How the down projection reads rows of weights: each lane eight columns, the same of one row after the other. They are
// two runs of four; in q4_0 the low and the high halves of four bytes.
#pragma once

#include "cuda/weights.cuh"

namespace pi::cuda {

constexpr int kOctet = 8;

// The first column of run `run` (0 or 1) of octet o.
__device__ __forceinline__ int octet_column(DType type, int o, int run) {
  return type == DType::kQ4_0 ? o / 4 * kQuantBlock + o % 4 * 4 + 16 * run : o * kOctet + 4 * run;
}

// Bytes b0 … b3 of x, less `offset` each, as floats: as the low bits of a float's mantissa, at the place of the units.
__device__ __forceinline__ void bytes_to_floats(unsigned x, float offset, float* out) {
#pragma unroll
  for (int i = 0; i < 4; ++i)
    out[i] = __uint_as_float(__byte_perm(x, 0x4b000000u, 0x7440u | i)) - (8388608.0f + offset);
}

// Per type: load (octet o of a row of `cols` columns), and the values [8] with a factor, the scale of block types.
template <DType>
struct Octets;

template <DType kType>
struct HalfOctets {
  struct Chunk {
    uint4 w;
    __device__ __forceinline__ float values(float (&out)[kOctet]) const {
      const unsigned words[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        out[2 * i] = low_half(words[i], kType);
        out[2 * i + 1] = high_half(words[i], kType);
      }
      return 1.0f;
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int o) {
    return {load_once(reinterpret_cast<const uint4*>(row) + o)};
  }
};
template <>
struct Octets<DType::kF16> : HalfOctets<DType::kF16> {};
template <>
struct Octets<DType::kBF16> : HalfOctets<DType::kBF16> {};

template <>
struct Octets<DType::kF32> {
  struct Chunk {
    uint4 w[2];
    __device__ __forceinline__ float values(float (&out)[kOctet]) const {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        out[4 * i] = __uint_as_float(w[i].x);
        out[4 * i + 1] = __uint_as_float(w[i].y);
        out[4 * i + 2] = __uint_as_float(w[i].z);
        out[4 * i + 3] = __uint_as_float(w[i].w);
      }
      return 1.0f;
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int o) {
    const uint4* const at = reinterpret_cast<const uint4*>(row) + 2 * o;
    return {{load_once(at), o * kOctet + 4 < cols ? load_once(at + 1) : make_uint4(0, 0, 0, 0)}};
  }
};

template <>
struct Octets<DType::kQ8_0> {
  struct Chunk {
    uint2 w;
    uint16_t d;
    __device__ __forceinline__ float values(float (&out)[kOctet]) const {
      bytes_to_floats(w.x ^ 0x80808080u, 128.0f, out);
      bytes_to_floats(w.y ^ 0x80808080u, 128.0f, out + 4);
      return f16_bits_to_f32(d);
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int o) {
    return {__ldg(reinterpret_cast<const uint2*>(row) + o), block_scale(DType::kQ8_0, row, cols, o / 4)};
  }
};

template <>
struct Octets<DType::kQ4_0> {
  struct Chunk {
    unsigned w;
    uint16_t d;
    __device__ __forceinline__ float values(float (&out)[kOctet]) const {
      bytes_to_floats(w & 0x0f0f0f0fu, 8.0f, out);
      bytes_to_floats(w >> 4 & 0x0f0f0f0fu, 8.0f, out + 4);
      return f16_bits_to_f32(d);
    }
  };
  static __device__ __forceinline__ Chunk load(const uint8_t* row, int cols, int o) {
    return {__ldg(reinterpret_cast<const unsigned*>(row) + o), block_scale(DType::kQ4_0, row, cols, o / 4)};
  }
};

}  // namespace pi::cuda
