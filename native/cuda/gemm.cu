// Matrix products of prompts: y = x * weights, x of f32 in as many halves as its precision needs.
//
// The tensor cores multiply halves of 11 bits. So x is split first, once for all columns of y: x = high + low, two f16
// with 22 bits between them, after a scaling by a power of two per row that keeps both in range (for bf16 weights two
// bf16, 16 bits, and no scaling). Weights are taken as they are: f16 and bf16 are exact, integers of a block are exact
// and scaled after their 32 are summed; only a transposed product, where scales change along the sum, has to split
// weights as well. f32 weights are multiplied by the ordinary units.
//
// A sum begins anew every kSegmentSteps, and segments are added in order. Many rows: a block walks all segments. Few
// rows, where blocks would be too few to keep the memory busy: a block computes one segment, and sum_parts adds them.
// Both round in the same places, so a row does not depend on the rows beside it.
#include <type_traits>
#include <utility>

#include "cuda/gemm_tile.cuh"
#include "cuda/kernels.h"
#include "cuda/launchers.h"

namespace pi::cuda {
namespace {

struct Product {
  const uint8_t* w;
  uint32_t row_pieces;  // a row, in units of 16 bytes: counted in these, 32 bits reach 64 GiB
  int data_bytes;       // of a row, before its scales
  int outer, inner, steps;
  const uint8_t* x;      // [whole tiles of rows, steps] of kXBytes
  const float* inverse;  // [rows]: what undoes the scaling
  const float* bias;
  float* y;
  float* parts;  // [segments, rows, outer], or null
  bool add;
  int rows;
};

// ----------------------------------------------------------------------------------------------------------- splitting

struct Split {
  const float* x;
  int rows, cols, steps;
  uint8_t* out;
  float* inverse;
};

constexpr int kSplitThreads = 256;

enum class Form { kPlain, kF16, kBF16 };
template <DType kType>
constexpr Form kFormOf = is_plain(kType)         ? Form::kPlain
                         : kType == DType::kBF16 ? Form::kBF16
                                                 : Form::kF16;

// Elements [k, k + 4) of a row; zeros past its end.
__device__ __forceinline__ float4 four(const float* row, int k, int cols) {
  if (cols % 4 == 0 && reinterpret_cast<uintptr_t>(row) % 16 == 0) {
    return k < cols ? *reinterpret_cast<const float4*>(row + k) : float4{0, 0, 0, 0};
  }
  const auto at = [&](int i) { return i < cols ? row[i] : 0.0f; };
  return {at(k), at(k + 1), at(k + 2), at(k + 3)};
}

// The highest |x| of a row, in all threads.
__device__ __forceinline__ float highest(const float* row, int cols) {
  __shared__ float of_warp[kSplitThreads / 32];
  float high = 0;
  for (int i = threadIdx.x; i < cols; i += kSplitThreads) high = fmaxf(high, fabsf(row[i]));
  for (int by = 16; by > 0; by /= 2) high = fmaxf(high, __shfl_xor_sync(0xffffffffu, high, by));
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = high;
  __syncthreads();
  for (float other : of_warp) high = fmaxf(high, other);
  return high;
}

template <Form kForm>
__device__ __forceinline__ void split_two(float a, float b, uint32_t& high, uint32_t& low) {
  const auto bits = [](float v) { return kForm == Form::kF16 ? f32_to_f16_bits(v) : f32_to_bf16_bits(v); };
  const auto value = [](uint16_t v) { return kForm == Form::kF16 ? f16_bits_to_f32(v) : bf16_bits_to_f32(v); };
  const uint16_t ha = bits(a), hb = bits(b);
  high = ha | static_cast<uint32_t>(hb) << 16;
  low = bits(a - value(ha)) | static_cast<uint32_t>(bits(b - value(hb))) << 16;
}

// A block a row, eight elements a thread. kNibbles: in the order in which q4_0 holds them, 4 c.. and 16 + 4 c..
// together.
template <DType kType, bool kNibbles>
__global__ void __launch_bounds__(kSplitThreads) split_rows(Split s) {
  constexpr Form kForm = kFormOf<kType>;
  const int t = blockIdx.x;
  const float* row = s.x + size_t(t) * s.cols;
  const bool there = t < s.rows;
  float scale = 1;
  if (kForm == Form::kF16 && there) {
    // The highest comes to lie in [2^14, 2^15); both powers stay normal numbers.
    const int exponent = static_cast<int>(__float_as_uint(highest(row, s.cols)) >> 23);
    const int shift = min(141 - exponent, 126);
    scale = __uint_as_float(static_cast<uint32_t>(127 + shift) << 23);
    if (threadIdx.x == 0) s.inverse[t] = __uint_as_float(static_cast<uint32_t>(127 - shift) << 23);
  } else if (threadIdx.x == 0) {
    s.inverse[t] = 1;
  }
  for (int i = threadIdx.x; i < 4 * s.steps; i += kSplitThreads) {
    const int step = i / 4, c = i % 4, k = step * kInner + (kNibbles ? 4 * c : 8 * c);
    float4 a = {0, 0, 0, 0}, b = a;
    if (there) {
      a = four(row, k, s.cols);
      b = four(row, k + (kNibbles ? 16 : 4), s.cols);
    }
    uint4* out = reinterpret_cast<uint4*>(s.out + (size_t(t) * s.steps + step) * kXBytes);
    if constexpr (kForm == Form::kPlain) {
      out[2 * c] = {__float_as_uint(a.x), __float_as_uint(a.y), __float_as_uint(a.z), __float_as_uint(a.w)};
      out[2 * c + 1] = {__float_as_uint(b.x), __float_as_uint(b.y), __float_as_uint(b.z), __float_as_uint(b.w)};
    } else {
      uint4 high, low;
      split_two<kForm>(a.x * scale, a.y * scale, high.x, low.x);
      split_two<kForm>(a.z * scale, a.w * scale, high.y, low.y);
      split_two<kForm>(b.x * scale, b.y * scale, high.z, low.z);
      split_two<kForm>(b.z * scale, b.w * scale, high.w, low.w);
      out[c] = high;
      out[4 + c] = low;
    }
  }
}

// ------------------------------------------------------------------------------------------------------------ products

// What a thread fetches of a stage: x, weights, scales.
template <typename S>
class Fetch {
 public:
  __device__ __forceinline__ Fetch(const Product& p, uint8_t* shared) : p_(p), shared_(shared) {}

  __device__ __forceinline__ void start(int step, int stage) {
    uint8_t* to = shared_ + stage * S::kStage;
    const int first_row = blockIdx.x * S::kRows, first = blockIdx.y * kOuter;
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) {
      const int piece = i * S::kThreads + threadIdx.x, row = piece / 8, chunk = piece % 8;
      const uint32_t from = static_cast<uint32_t>((first_row + row) * p_.steps + step) * 8 + chunk;
      x_[i].start(to + row * kXBytes + x_chunk(row, chunk) * 16, p_.x + from * size_t{16}, true);
    }
    to += S::kXTile;
#pragma unroll
    for (int i = 0; i < kWPieces; ++i) {
      const int piece = i * S::kThreads + threadIdx.x;
      if (kWChunks % S::kThreads != 0 && piece >= kWChunks) break;
      const int row = piece / kRowChunks, chunk = piece % kRowChunks;
      const int w_row = S::kTransposed ? step * kInner + row : first + row;
      const int at = (S::kTransposed ? first / kInner : step) * (S::kStepBytes / 16) + chunk;
      const bool there = w_row < (S::kTransposed ? p_.inner : p_.outer) && at * 16 < p_.data_bytes;
      const uint32_t from = there ? w_row * p_.row_pieces + at : 0;
      w_[i].start(to + row * kRowChunks * 16 + w_chunk<S>(row, chunk) * 16, p_.w + from * size_t{16}, there);
    }
    if constexpr (S::kBlocks) start_scales(step, to + S::kWTile);
  }

  __device__ __forceinline__ void land() {
#pragma unroll
    for (int i = 0; i < kXPieces; ++i) x_[i].land();
#pragma unroll
    for (int i = 0; i < kWPieces; ++i) {
      if (kWChunks % S::kThreads == 0 || i * S::kThreads + static_cast<int>(threadIdx.x) < kWChunks) w_[i].land();
    }
    if (S::kBlocks && S::kTransposed && scales_started_) scales_.land();
  }

 private:
  static constexpr int kXPieces = S::kXTile / 16 / S::kThreads;
  static constexpr int kWChunks = S::kWTile / 16, kWPieces = (kWChunks + S::kThreads - 1) / S::kThreads;
  static constexpr int kRowChunks = (S::kTransposed ? 4 : 1) * S::kStepBytes / 16;

  // Transposed: of 32 rows, the four blocks that the tile has. Else of 128 rows, kScaleGroup steps' at once; rows of
  // these are padded to 16 bytes in device memory. Those land at once: where that means to wait, it is once in
  // kScaleGroup steps, and registers are scarce.
  __device__ __forceinline__ void start_scales(int step, uint8_t* stage_scales) {
    const int row = threadIdx.x;
    if constexpr (S::kTransposed) {
      scales_started_ = row < kInner;
      if (scales_started_)
        scales_.start(stage_scales + row * 8, scales_at(step * kInner + row, blockIdx.y * 8),
                      step * kInner + row < p_.inner);
    } else if (row < kOuter && step % kScaleGroup == 0) {
      const int w_row = blockIdx.y * kOuter + row;
      scales_.start(group_scales<S>(shared_, step) + row * 16, scales_at(w_row, step * 2), w_row < p_.outer);
      scales_.land();
    }
  }
  __device__ __forceinline__ const uint8_t* scales_at(int row, int byte) const {
    return row < (S::kTransposed ? p_.inner : p_.outer)
               ? p_.w + row * (p_.row_pieces * size_t{16}) + p_.data_bytes + byte
               : p_.w;
  }

  const Product& p_;
  uint8_t* shared_;
  Piece<uint4> x_[kXPieces];
  Piece<uint4> w_[kWPieces];
  Piece<std::conditional_t<S::kTransposed, uint2, uint4>> scales_;
  bool scales_started_ = false;
};

template <int kN>
struct alignas(4 * kN) Run {
  float v[kN];
};

// kN columns of y, or of a part of it. Adding the bias and undoing the scaling is one rounding.
template <int kN>
__device__ __forceinline__ void put(const Product& p, int t, int column, Run<kN> sums) {
  if (t >= p.rows || column >= p.outer) return;
  const size_t at = size_t(t) * p.outer + column;
  float* to = p.parts ? p.parts + blockIdx.z * (size_t(p.rows) * p.outer) + at : p.y + at;
  const bool whole = column + kN <= p.outer;
  if (!p.parts) {
    const float inverse = p.inverse[t];
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      if (!whole && column + n >= p.outer) break;
      const float y = fmaf(sums.v[n], inverse, p.bias ? p.bias[column + n] : 0.0f);
      sums.v[n] = p.add ? to[n] + y : y;
    }
  }
  if (whole && reinterpret_cast<uintptr_t>(to) % sizeof(Run<kN>) == 0) {
    *reinterpret_cast<Run<kN>*>(to) = sums;
  } else {
#pragma unroll
    for (int n = 0; n < kN; ++n) {
      if (column + n < p.outer) to[n] = sums.v[n];
    }
  }
}

template <typename S>
__device__ __forceinline__ void put_sums(const Product& p, const Place& at, const Sums<S::kMi>& sums) {
  const int first = blockIdx.y * kOuter + at.warp_n * 32;
#pragma unroll
  for (int i = 0; i < S::kMi; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int t = blockIdx.x * S::kRows + (at.warp_m * S::kMi + i) * 16 + half * 8 + at.g, e = 2 * half;
      if constexpr (S::kTransposed) {  // eight columns that lie together
        for (int k = 0; k < 2; ++k) {
          put<4>(p, t, first + 8 * at.c + 4 * k,
                 {sums[i][0][e + k], sums[i][1][e + k], sums[i][2][e + k], sums[i][3][e + k]});
        }
      } else {
        for (int j = 0; j < 4; ++j) put<2>(p, t, first + 8 * j + 2 * at.c, {sums[i][j][e], sums[i][j][e + 1]});
      }
    }
  }
}

// A block: kRows rows of y (blockIdx.x, so that neighbours share their weights) by kOuter columns (y); with parts, one
// segment of the sum (z).
template <typename S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocksAtOnce) multiply(Product p) {
  PI_DYNAMIC_SHARED(uint8_t, shared);
  const Place at = place();
  const int begin = p.parts ? blockIdx.z * kSegmentSteps : 0,
            end = p.parts ? min(begin + kSegmentSteps, p.steps) : p.steps;
  Fetch<S> fetch(p, shared);
#pragma unroll
  for (int i = 0; i < S::kStages - 1; ++i) {
    if (begin + i < end) {
      fetch.start(begin + i, i);
      fetch.land();
    }
    end_copies();
  }
  float total[S::kMi][4][4] = {}, sums[S::kMi][4][4] = {};
  int stage = 0;
  for (int step = begin; step < end; ++step) {
    wait_copies<S::kStages - 2>();
    __syncthreads();
    const bool more = step + S::kStages - 1 < end;
    if (more) fetch.start(step + S::kStages - 1, stage > 0 ? stage - 1 : S::kStages - 1);
    end_copies();
    const uint8_t* x = shared + stage * S::kStage;
    const uint8_t* w = x + S::kXTile;
    if constexpr (S::kPlain) {
      add_plain_step<S>(at, x, w, sums);
    } else {
      add_step<S>(at, x, w, S::kTransposed ? w + S::kWTile : group_scales<S>(shared, step), step, sums);
    }
    if (more) fetch.land();
    stage = stage + 1 < S::kStages ? stage + 1 : 0;
    if ((step + 1) % kSegmentSteps == 0 || step + 1 == end) {
#pragma unroll
      for (int i = 0; i < 16 * S::kMi; ++i) {
        float &of = total[i / 16][i / 4 % 4][i % 4], &from = sums[i / 16][i / 4 % 4][i % 4];
        of += from;
        from = 0;
      }
    }
  }
  put_sums<S>(p, place(), total);
}

// Segments' sums in order: what multiply does where it walks all of them.
__global__ void __launch_bounds__(256) sum_parts(Product p, const float* parts, int segments) {
  const size_t n = size_t(p.rows) * p.outer, i = size_t(blockIdx.x) * 256 + threadIdx.x;
  if (i >= n) return;
  float sum = parts[i];
  for (int s = 1; s < segments; ++s) sum += parts[s * n + i];
  put<1>(p, static_cast<int>(i / p.outer), static_cast<int>(i % p.outer), {sum});
}

// ------------------------------------------------------------------------------------------------------------ launches

#if defined(PI_EMULATED)
constexpr int kBusy = 8;  // so that small products take every path
#else
constexpr int kBusy = kManyBlocks;
#endif

template <DType kType, bool kTransposed, int kMi, int kWarpsM>
void launch(void* stream, Product p, int segments) {
  using S = GemmShape<kType, kTransposed, kMi, kWarpsM>;
  const dim3 grid(div_up(p.rows, S::kRows), div_up(p.outer, kOuter), segments);
  PI_LAUNCH((multiply<S>), grid, dim3(S::kThreads), S::kShared, stream, p);
  if (segments == 1) return;
  const float* parts = std::exchange(p.parts, nullptr);
  PI_LAUNCH(sum_parts, dim3((size_t(p.rows) * p.outer + 255) / 256), dim3(256), 0, stream, p, parts, segments);
}

template <DType kType, bool kTransposed>
void product(void* stream, const Gemm& a) {
  Product p{};
  p.w = a.w.data;
  p.row_pieces = static_cast<uint32_t>(a.w.row_bytes / 16);
  p.data_bytes = static_cast<int>(is_blocks(kType) ? scales_offset(kType, a.w.cols) : row_bytes(kType, a.w.cols));
  const GemmCut cut(a.w, a.transposed, a.rows);
  p.outer = cut.outer;
  p.inner = cut.inner;
  p.steps = cut.steps;
  const int tile_rows = cut.tile_rows(kBusy), segments = cut.segments(kBusy);
  uint8_t* memory = static_cast<uint8_t*>(a.workspace);
  float* inverse = reinterpret_cast<float*>(memory + cut.x_bytes());
  p.x = memory;
  p.inverse = inverse;
  p.parts = segments > 1 ? reinterpret_cast<float*>(memory + cut.x_bytes() + cut.inverse_bytes()) : nullptr;
  p.bias = a.bias;
  p.y = a.y;
  p.add = a.add;
  p.rows = a.rows;
  const Split split{a.x, a.rows, p.inner, p.steps, memory, inverse};
  PI_LAUNCH((split_rows < kType, kType == DType::kQ4_0 && !kTransposed >), dim3(div_up(a.rows, tile_rows) * tile_rows),
            dim3(kSplitThreads), 0, stream, split);
  if (tile_rows == 32) return launch<kType, kTransposed, 2, 1>(stream, p, segments);
  if constexpr (kType != DType::kF32) {
    if (tile_rows == kMostRows) return launch<kType, kTransposed, 4, 2>(stream, p, segments);
  }
  launch<kType, kTransposed, 2, 2>(stream, p, segments);
}

template <DType kType>
void product_of(void* stream, const Gemm& a) {
  a.transposed ? product<kType, true>(stream, a) : product<kType, false>(stream, a);
}

}  // namespace

void gemm(void* stream, const Gemm& a) {
  if (a.rows == 0) return;
  switch (a.w.type) {
    case DType::kF32:
      return product_of<DType::kF32>(stream, a);
    case DType::kF16:
      return product_of<DType::kF16>(stream, a);
    case DType::kBF16:
      return product_of<DType::kBF16>(stream, a);
    case DType::kQ8_0:
      return product_of<DType::kQ8_0>(stream, a);
    case DType::kQ4_0:
      return product_of<DType::kQ4_0>(stream, a);
    default:
      return;
  }
}

}  // namespace pi::cuda
