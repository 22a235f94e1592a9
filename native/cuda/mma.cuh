// Matrix products of a warp on the tensor cores, pairs of 16-bit floats, and copies to shared memory that do not wait:
// what has no spelling in CUDA C++ is PTX, with a twin in plain C++ beside it for the emulator and for HIP.
//
// Written against mma.sync instead of nvcuda::wmma because its registers have a published layout (PTX ISA, "Matrix
// Fragments for mma.m16n8k16"): weights are unpacked straight into them, and sums are scaled per column where they lie.
#pragma once

#include "cuda/language.h"

#if defined(__CUDA_ARCH__)
#define PI_TENSOR_CORES 1
#if __CUDA_ARCH__ >= 800
#define PI_ASYNC_COPY 1
#endif
#endif
// 7.5 has no products of bf16.
#if defined(PI_ASYNC_COPY) || !defined(PI_TENSOR_CORES)
#define PI_BF16_PRODUCTS 1
#endif

namespace pi::cuda {

// ------------------------------------------------------------------------------------------------------ 16-bit floats

// Two f16 in a word, the lower one first in memory. All three round once, to nearest even, and keep subnormals.
#if defined(PI_TENSOR_CORES)
__device__ __forceinline__ uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}
#else
// Sums and products of two f16 are exact in f32, but for sums of far apart exponents, whose second rounding does
// nothing.
template <typename F>
__device__ __forceinline__ uint32_t map_f16x2(F&& f) {
  return f32_to_f16_bits(f(0)) | static_cast<uint32_t>(f32_to_f16_bits(f(16))) << 16;
}
__device__ __forceinline__ float half_of(uint32_t pair, int shift) {
  return f16_bits_to_f32(static_cast<uint16_t>(pair >> shift));
}
__device__ __forceinline__ uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  return map_f16x2([=](int i) { return half_of(a, i) - half_of(b, i); });
}
__device__ __forceinline__ uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  return map_f16x2([=](int i) { return half_of(a, i) * half_of(b, i); });
}
__device__ __forceinline__ uint32_t fma_f16x2(uint32_t a, uint32_t b, uint32_t c) {
  return map_f16x2([=](int i) { return fmaf(half_of(a, i), half_of(b, i), half_of(c, i)); });
}
#endif

// Round to nearest even; x is a number.
__device__ __forceinline__ uint16_t f32_to_bf16_bits(float x) {
  const uint32_t u = __float_as_uint(x);
  return static_cast<uint16_t>((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

// ----------------------------------------------------------------------------------------------------------- products

// What a lane holds of A [16, 16] (row major) and B [16, 8] (column major), g = lane / 4, c = lane % 4, two elements a
// word:
//   a[0] = A[g][2c..], a[1] = A[g + 8][2c..], a[2] = A[g][2c + 8..], a[3] = A[g + 8][2c + 8..]
//   b[0] = B[2c..][g], b[1] = B[2c + 8..][g]
// and of C and D [16, 8] in f32: {[g][2c], [g][2c + 1], [g + 8][2c], [g + 8][2c + 1]}.
struct Fragments {
  uint32_t a[4], b[2];
};

#if !defined(PI_TENSOR_CORES)
template <bool kBF16>
__device__ __forceinline__ float value_of(uint16_t bits) {
  return kBF16 ? bf16_bits_to_f32(bits) : f16_bits_to_f32(bits);
}
__device__ __forceinline__ uint16_t element(uint32_t word, int i) { return static_cast<uint16_t>(word >> (16 * i)); }
#endif

#if defined(PI_EMULATED)
// The lane that runs first once all have come computes for all: an exchange is a switch of stacks, and 32 lanes need 24
// words of each other.
struct Met {
  const Fragments* in;
  float* c;
  bool done;
};

template <bool kBF16>
void multiply_met(const uint64_t* lanes) {
  const auto lane = [&](int i) { return reinterpret_cast<Met*>(lanes[i]); };
  uint16_t a_bits[16][16], b_bits[16][8];
  float a[16][16], b[16][8], d[16][8];
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, c = l % 4;
    const Fragments& in = *lane(l)->in;
    for (int i = 0; i < 2; ++i) {
      for (int word = 0; word < 4; ++word) a_bits[g + word % 2 * 8][2 * c + word / 2 * 8 + i] = element(in.a[word], i);
      for (int word = 0; word < 2; ++word) b_bits[2 * c + word * 8 + i][g] = element(in.b[word], i);
      for (int half = 0; half < 2; ++half) d[g + half * 8][2 * c + i] = lane(l)->c[2 * half + i];
    }
  }
  for (int k = 0; k < 16; ++k) {
    for (int m = 0; m < 16; ++m) a[k][m] = value_of<kBF16>(a_bits[k][m]);
    for (int n = 0; n < 8; ++n) b[k][n] = value_of<kBF16>(b_bits[k][n]);
  }
  for (int m = 0; m < 16; ++m) {
    for (int k = 0; k < 16; ++k) {
      for (int n = 0; n < 8; ++n) d[m][n] += a[m][k] * b[k][n];
    }
  }
  for (int l = 0; l < 32; ++l) {
    for (int i = 0; i < 4; ++i) lane(l)->c[i] = d[l / 4 + i / 2 * 8][2 * (l % 4) + i % 2];
    lane(l)->done = true;
  }
}
#endif

// c += A * B of a warp, all of whose lanes come here. Products are exact; sums are f32's, in an order that depends on
// nothing but the shape.
template <bool kBF16>
__device__ __forceinline__ void multiply_add(const Fragments& f, float (&c)[4]) {
#if defined(PI_ASYNC_COPY)
  if constexpr (kBF16) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(f.b[0]), "r"(f.b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(f.a[0]), "r"(f.a[1]), "r"(f.a[2]), "r"(f.a[3]), "r"(f.b[0]), "r"(f.b[1]));
  }
#elif defined(PI_TENSOR_CORES)
  static_assert(!kBF16, "7.5 multiplies no bf16");
  for (int half = 0; half < 2; ++half) {  // the first eight of the inner dimension, then the others
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(f.a[2 * half]), "r"(f.a[2 * half + 1]), "r"(f.b[half]));
  }
#elif defined(PI_EMULATED)
  Met mine{&f, c, false};
  const emulator::Told told =
      emulator::exchange(reinterpret_cast<uint64_t>(&mine), emulator::Exchange::kShuffle, __LINE__);
  if (!mine.done) multiply_met<kBF16>(told.values);
#else
  const int lane = threadIdx.x % 32, g = lane / 4;
#pragma unroll 1  // else all of a step's exchanges are asked for first, and registers spill
  for (int from = 0; from < 4; ++from) {  // the lane of each group of four that holds the next elements
    uint32_t a[4], b[2][2];
    for (int word = 0; word < 4; ++word) a[word] = __shfl_sync(0xffffffffu, f.a[word], 4 * g + from);
    for (int i = 0; i < 2; ++i) {
      for (int word = 0; word < 2; ++word)
        b[i][word] = __shfl_sync(0xffffffffu, f.b[word], 4 * (2 * (lane % 4) + i) + from);
    }
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 4; ++k) {
        const float x = value_of<kBF16>(element(a[k / 2 * 2 + i / 2], k % 2)),
                    w = value_of<kBF16>(element(b[i % 2][k / 2], k % 2));
        c[i] = fmaf(x, w, c[i]);
      }
    }
  }
#endif
}

// ------------------------------------------------------------------------------------------------------------- copies

// A piece of 8 or 16 bytes (T: uint2, uint4) on its way to shared memory: start() asks for it, the block computes,
// land() puts it down where there are no asynchronous copies. It may be there from start() on, and is surely there only
// after wait_copies() and a barrier. Zeros where there is nothing to fetch; `from` is then any address.
template <typename T>
class Piece {
 public:
  __device__ __forceinline__ void start(uint8_t* to, const uint8_t* from, bool there) {
#if defined(PI_ASYNC_COPY)
    const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    const int bytes = there ? static_cast<int>(sizeof(T)) : 0;
    if constexpr (sizeof(T) == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
    } else {
      asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(address), "l"(from), "r"(bytes) : "memory");
    }
#else
    to_ = to;
    value_ = T{};
    if (there) value_ = *reinterpret_cast<const T*>(from);
#endif
#if defined(PI_EMULATED)
    if (threadIdx.x % 2) land();  // both: as early as can be, and as late
#endif
  }
  __device__ __forceinline__ void land() {
#if !defined(PI_ASYNC_COPY)
    *reinterpret_cast<T*>(to_) = value_;
#endif
  }

 private:
#if !defined(PI_ASYNC_COPY)
  T value_{};
  uint8_t* to_ = nullptr;
#endif
};

// Ends a group of copies; waits until at most kLeft of the newest groups of this thread are under way.
__device__ __forceinline__ void end_copies() {
#if defined(PI_ASYNC_COPY)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kLeft>
__device__ __forceinline__ void wait_copies() {
#if defined(PI_ASYNC_COPY)
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

}  // namespace pi::cuda
