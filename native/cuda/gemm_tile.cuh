// A tile of a matrix product: where its pieces lie in shared memory, how weights of every type become the registers of
// multiply_add, and the sums of 32 steps of the inner dimension.
//
// Names: y [rows, outer] = x [rows, inner] * weights. A block of threads makes kRows x kOuter of y, a warp kMi * 16
// x 32. The inner dimension is walked 32 at a time, whatever the type. Which of these 32 a register holds is free, as
// long as x and weights agree: a lane takes elements that lie together in memory, so that everything is read in whole
// words.
#pragma once

#include "base/types.h"
#include "cuda/gemm_cut.h"
#include "cuda/mma.cuh"

namespace pi::cuda {

constexpr int kScaleGroup = 8;           // steps whose scales are fetched at once: 16 bytes
constexpr size_t kTileBytes = 48 << 10;  // of shared memory: two blocks a multiprocessor since 8.0

constexpr bool is_blocks(DType type) { return type == DType::kQ8_0 || type == DType::kQ4_0; }
constexpr int step_bytes(DType type) { return static_cast<int>(row_bytes(type, kInner)) - (is_blocks(type) ? 2 : 0); }

#if defined(PI_ASYNC_COPY)
constexpr bool kTwoAtOnce = true;
#else
constexpr bool kTwoAtOnce = false;
#endif

// Products by fused multiply-adds in f32 instead of tensor cores.
#if defined(PI_BF16_PRODUCTS)
constexpr bool is_plain(DType type) { return type == DType::kF32; }
#else
constexpr bool is_plain(DType type) { return type == DType::kF32 || type == DType::kBF16; }
#endif

template <DType kType_, bool kTransposed_, int kMi_, int kWarpsM_>
struct GemmShape {
  static constexpr DType kType = kType_;
  static constexpr bool kTransposed = kTransposed_, kBlocks = is_blocks(kType), kPlain = is_plain(kType);
  static constexpr int kMi = kMi_, kWarpsM = kWarpsM_, kRows = 16 * kMi * kWarpsM, kThreads = kOuter * kWarpsM;
  static constexpr int kXTile = kRows * kXBytes, kStepBytes = step_bytes(kType), kWTile = kOuter * kStepBytes;
  // Of block types: transposed, f16 [32 steps' rows][4 blocks] a stage; else f16 [2 groups][kOuter][kScaleGroup] for
  // all.
  static constexpr int kStageScales = kBlocks && kTransposed ? kInner * 8 : 0;
  static constexpr int kGroupScales = kBlocks && !kTransposed ? kOuter * kScaleGroup * 2 : 0;
  static constexpr int kStage = kXTile + kWTile + kStageScales;
  static constexpr int kFit = static_cast<int>((kTileBytes - 2 * kGroupScales) / kStage);
  static constexpr int kStages = kFit < 4 ? kFit : 4;
  static constexpr size_t kShared = size_t(kStages) * kStage + 2 * kGroupScales;
  // Of a multiprocessor, as its registers allow without spills. One alone has room on 7.5: 64 KiB of shared memory.
  static constexpr int kBlocksAtOnce = !kTwoAtOnce || kMi > 2 ? 1 : kWarpsM == 1 ? 3 : kBlocks || kTransposed ? 1 : 2;
  static_assert(kStages >= 2);
};

// Where the 16-byte chunk `chunk` of a tile's row lies in that row, so that no two lanes that read together meet in a
// bank.
__device__ __forceinline__ int x_chunk(int row, int chunk) { return chunk ^ (row % 2 * 4); }

template <typename S>
__device__ __forceinline__ int w_chunk(int row, int chunk) {
  if constexpr (S::kTransposed) {
    if constexpr (S::kType == DType::kF32) return chunk;
    return chunk ^ (row / 8 % 4 * (S::kType == DType::kQ4_0 ? 1 : 2));
  } else {
    return S::kType == DType::kF32 ? chunk ^ (row / 2 % 8) : chunk;
  }
}

// Scales of the steps around `step`; those of the next group are fetched while these are read.
template <typename S>
__device__ __forceinline__ uint8_t* group_scales(uint8_t* shared, int step) {
  return shared + S::kStages * S::kStage + step / kScaleGroup % 2 * S::kGroupScales;
}

// Which lane of a warp, and which warp of the block: row and column (in units of 8) of a lane in its fragments.
struct Place {
  int g, c, warp_m, warp_n;
};
__device__ __forceinline__ Place place() {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  return {lane / 4, lane % 4, warp / 4, warp % 4};
}

// ------------------------------------------------------------------------------------------------------------- weights

// Registers of one step and four column tiles of 8: words 0 and 1 are b of its first 16, words 2 and 3 of the others.
struct Weights {
  uint32_t high[4][4];
  uint32_t low[4][4];  // what high is short of; transposed blocks only
};

template <typename T>
__device__ __forceinline__ T shared_word(const uint8_t* at) {
  return *reinterpret_cast<const T*>(at);
}

// Bytes first and second (0-3) of a word of four integers, as f16: u + 1024 is the f16 of bits 0x6400 + u.
constexpr uint32_t kLowPair = 0x4140, kHighPair = 0x4342;
template <DType kType>
__device__ __forceinline__ uint32_t integers_f16x2(uint32_t bytes, uint32_t pair) {
  constexpr uint32_t kOffset = kType == DType::kQ8_0 ? 0x64806480u : 0x64086408u;  // 1024 + 128, 1024 + 8
  return sub_f16x2(__byte_perm(bytes, 0x64646464u, pair), kOffset);
}

// Integers of a block without a sign: q + 128, or a nibble.
template <DType kType>
__device__ __forceinline__ uint32_t unsigned_bytes(uint32_t word, int nibbles) {
  if constexpr (kType == DType::kQ8_0) return word ^ 0x80808080u;
  return word >> (4 * nibbles) & 0x0f0f0f0fu;
}

// Rows of weights are columns of y. Lane (g, c) holds rows 8 j + g and of those what lies 8 c on, or, of q4_0, bytes 4
// c on.
template <typename S>
__device__ __forceinline__ void read_weights(const Place& at, const uint8_t* tile, Weights& w) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const int row = at.warp_n * 32 + 8 * j + at.g;
    const uint8_t* lane = tile + row * S::kStepBytes + at.c * (S::kStepBytes / 4);
    if constexpr (S::kBlocks) {
      const uint32_t first = shared_word<uint32_t>(lane);
      uint32_t bytes[2];
      bytes[0] = unsigned_bytes<S::kType>(first, 0);
      bytes[1] = unsigned_bytes<S::kType>(S::kType == DType::kQ8_0 ? shared_word<uint32_t>(lane + 4) : first, 1);
      for (int i = 0; i < 4; ++i) w.high[j][i] = integers_f16x2<S::kType>(bytes[i / 2], i % 2 ? kHighPair : kLowPair);
    } else {
      const uint4 v = shared_word<uint4>(lane);
      w.high[j][0] = v.x, w.high[j][1] = v.y, w.high[j][2] = v.z, w.high[j][3] = v.w;
    }
  }
}

// Rows of weights are steps of the sum. Lane (g, c) holds columns 4 g + j of rows 8 c on: column tile j is every fourth
// column, and c's columns of the sums are 8 c on.
template <typename S>
__device__ __forceinline__ void read_transposed(const Place& at, const uint8_t* tile, const uint8_t* scales,
                                                Weights& w) {
  constexpr int kRowBytes = 4 * S::kStepBytes;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = 8 * at.c + 4 * half;
    if constexpr (S::kBlocks) {
      constexpr bool kBytes = S::kType == DType::kQ8_0;
      const int byte = at.warp_n * S::kStepBytes + 4 * (kBytes ? at.g : at.g % 4);
      uint32_t q[4], d[4];
      for (int k = 0; k < 4; ++k) {
        const uint8_t* word = tile + (row + k) * kRowBytes + w_chunk<S>(row + k, byte / 16) * 16 + byte % 16;
        q[k] = unsigned_bytes<S::kType>(shared_word<uint32_t>(word), at.g / 4);
        d[k] = shared_word<uint16_t>(scales + (row + k) * 8 + at.warp_n * 2);
      }
      for (int pair = 0; pair < 2; ++pair) {
        const uint32_t scale = d[2 * pair] | d[2 * pair + 1] << 16;
        for (int j = 0; j < 4; ++j) {
          const uint32_t two = __byte_perm(q[2 * pair], q[2 * pair + 1], j < 2 ? 0x5140 : 0x7362);
          const uint32_t integers = integers_f16x2<S::kType>(two, j % 2 ? kHighPair : kLowPair);
          const uint32_t high = mul_f16x2(integers, scale);
          w.high[j][2 * half + pair] = high;
          w.low[j][2 * half + pair] = fma_f16x2(integers, scale, high ^ 0x80008000u);
        }
      }
    } else {
      const int byte = (at.warp_n * 32 + 4 * at.g) * 2;
      uint2 v[4];
      for (int k = 0; k < 4; ++k)
        v[k] = shared_word<uint2>(tile + (row + k) * kRowBytes + w_chunk<S>(row + k, byte / 16) * 16 + byte % 16);
      for (int pair = 0; pair < 2; ++pair) {
        const uint2 a = v[2 * pair], b = v[2 * pair + 1];
        w.high[0][2 * half + pair] = __byte_perm(a.x, b.x, 0x5410);
        w.high[1][2 * half + pair] = __byte_perm(a.x, b.x, 0x7632);
        w.high[2][2 * half + pair] = __byte_perm(a.y, b.y, 0x5410);
        w.high[3][2 * half + pair] = __byte_perm(a.y, b.y, 0x7632);
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------------------------- sums

template <int kMi>
using Sums = float[kMi][4][4];

// One step of 16 rows and 8 columns. x = high + low, so each weight is multiplied twice; of weights that are a high and
// a low half themselves, low times low is left out (2^-22 of a product).
template <typename S>
__device__ __forceinline__ void multiply_tile(const uint4 (&x)[2][2], const uint32_t (&high)[4],
                                              const uint32_t (&low)[4], float (&sum)[4]) {
  constexpr bool kBF16 = S::kType == DType::kBF16;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      const uint4 a = x[part][0], b = x[part][1];
      Fragments f = half ? Fragments{{a.z, b.z, a.w, b.w}, {high[2], high[3]}}
                         : Fragments{{a.x, b.x, a.y, b.y}, {high[0], high[1]}};
      multiply_add<kBF16>(f, sum);
      if (S::kBlocks && S::kTransposed && part == 0) {
        f.b[0] = low[2 * half], f.b[1] = low[2 * half + 1];
        multiply_add<kBF16>(f, sum);
      }
    }
  }
}

// One step on the tensor cores. Blocks' integers are summed by themselves and scaled, unless transposed.
template <typename S>
__device__ __forceinline__ void add_step(const Place& at, const uint8_t* x, const uint8_t* tile, const uint8_t* scales,
                                         int step, Sums<S::kMi>& sums) {
  Weights w;
  if constexpr (S::kTransposed) {
    read_transposed<S>(at, tile, scales, w);
  } else {
    read_weights<S>(at, tile, w);
  }
#pragma unroll
  for (int i = 0; i < S::kMi; ++i) {
    const int row = (at.warp_m * S::kMi + i) * 16 + at.g;
    uint4 v[2][2];  // [high, low][row g, row g + 8]
    for (int k = 0; k < 4; ++k)
      v[k / 2][k % 2] = shared_word<uint4>(x + (row + k % 2 * 8) * kXBytes + x_chunk(row, k / 2 * 4 + at.c) * 16);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (S::kBlocks && !S::kTransposed) {
        float sum[4] = {0, 0, 0, 0}, scale[2];
        multiply_tile<S>(v, w.high[j], w.low[j], sum);
        for (int e = 0; e < 2; ++e) {
          const int column = at.warp_n * 32 + 8 * j + 2 * at.c + e;
          scale[e] = f16_bits_to_f32(shared_word<uint16_t>(scales + 2 * (column * kScaleGroup + step % kScaleGroup)));
        }
        for (int e = 0; e < 4; ++e) sums[i][j][e] = fmaf(sum[e], scale[e % 2], sums[i][j][e]);
      } else {
        multiply_tile<S>(v, w.high[j], w.low[j], sums[i][j]);
      }
    }
  }
}

// Four elements from the `quarter`-th four of a row of the tile, as f32.
template <typename S>
__device__ __forceinline__ float4 plain_four(const uint8_t* tile, int row, int row_bytes, int quarter) {
  if constexpr (S::kType == DType::kF32) {
    return shared_word<float4>(tile + row * row_bytes + w_chunk<S>(row, quarter) * 16);
  } else {
    const uint2 v = shared_word<uint2>(tile + row * row_bytes + w_chunk<S>(row, quarter / 2) * 16 + quarter % 2 * 8);
    return {__uint_as_float(v.x << 16), __uint_as_float(v.x & 0xffff0000u), __uint_as_float(v.y << 16),
            __uint_as_float(v.y & 0xffff0000u)};
  }
}

__device__ __forceinline__ float component(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// One step by multiply-adds, the sums lying in the lanes as those of the tensor cores do.
template <typename S>
__device__ __forceinline__ void add_plain_step(const Place& at, const uint8_t* x, const uint8_t* tile,
                                               Sums<S::kMi>& sums) {
  const int first = at.warp_m * S::kMi * 16 + at.g;
#pragma unroll 1
  for (int k = 0; k < kInner; k += 4) {
    float4 a[2 * S::kMi];
#pragma unroll
    for (int i = 0; i < 2 * S::kMi; ++i)
      a[i] = shared_word<float4>(x + (first + 8 * i) * kXBytes + x_chunk(first, k / 4) * 16);
#pragma unroll
    for (int part = 0; part < 4; ++part) {  // two of the lane's columns, or, transposed, one of the four rows
      float4 b[2];
      for (int e = 0; e < 2; ++e) {
        if constexpr (S::kTransposed) {
          b[e] = plain_four<S>(tile, k + part, 4 * S::kStepBytes, at.warp_n * 8 + 2 * at.c + e);
        } else {
          b[e] = plain_four<S>(tile, at.warp_n * 32 + 8 * part + 2 * at.c + e, S::kStepBytes, k / 4);
        }
      }
#pragma unroll
      for (int i = 0; i < 2 * S::kMi; ++i) {
        for (int other = 0; other < 4; ++other) {
          for (int e = 0; e < 2; ++e) {
            float& sum = sums[i / 2][S::kTransposed ? other : part][i % 2 * 2 + e];
            sum = fmaf(component(a[i], S::kTransposed ? part : other), component(b[e], other), sum);
          }
        }
      }
    }
  }
}

}  // namespace pi::cuda
