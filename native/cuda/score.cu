// Scores of a layer's neurons by its predictor: which of them each row wants, and, once all are known, which the GPU
// computes.
#include "cuda/dot.cuh"
#include "cuda/launchers.h"
#include "cuda/select.cuh"
#include "cuda/tail.cuh"

namespace pi::cuda {
namespace {

constexpr int kWarps = kSelectWarps, kRowsAWarp = 32 / kWarps;  // a block has the neurons of one word of a mask
template <int kT>
constexpr int kRowsAtOnce = kT > 4 ? 2 : 4;  // of a warp's, as registers allow
constexpr uint8_t kPredicted = 2;

// How many rows have a mode that asks for scores.
__device__ __forceinline__ bool any_predicted(const Score& a) {
  bool any = false;
  for (int t = 0; t < a.rows; ++t) any = any || a.modes[t] == kPredicted;
  return any;
}

// Rounded as on the CPU, so that both find the same neurons by their signs.
__device__ __forceinline__ float score_of(const Score& a, int i, int differing) {
  return __fadd_rn(__fmul_rn(a.scale[i], static_cast<float>(a.w.cols - 2 * differing)), a.bias[i]);
}
__device__ __forceinline__ float score_of(const Score& a, int i, float sum) { return a.bias ? sum + a.bias[i] : sum; }

template <DType kType, int kT>
__global__ void __launch_bounds__(kWarps* kWarp, kT > 2 ? 1 : 2) score_neurons(Score a) {
  constexpr int kR = kRowsAtOnce<kT>;
  PI_DYNAMIC_SHARED(uint4, shared);
  __shared__ uint32_t bits[kWarps][kT];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, word = blockIdx.x, n = a.w.rows;
  const int first = 32 * word + warp * kRowsAWarp;
  const uint32_t valid = n - 32 * word >= 32 ? 0xffffffffu : (1u << (n - 32 * word)) - 1;
  const bool predicted = any_predicted(a);
  Staged<kType, kT> x(a.x, a.rows, shared);
  for (int t0 = 0; t0 < a.rows; t0 += kT) {
    if (predicted) {
      x.begin_at(t0);
      uint32_t reached[kT] = {};
      for (int r0 = 0; r0 < kRowsAWarp; r0 += kR) {
        const uint8_t* row[kR];
        for (int r = 0; r < kR; ++r) row[r] = a.w.data + size_t(min(first + r0 + r, n - 1)) * a.w.row_bytes;
        typename Weights<kType>::Sum sum[kR][kT];
        dot_rows<(kT > 1 ? 1 : 2)>(x, row, first >= n, sum);
#pragma unroll
        for (int r = 0; r < kR; ++r) {
          const int i = first + r0 + r;
#pragma unroll
          for (int t = 0; t < kT; ++t) {
            if (i < n && score_of(a, i, sum[r][t]) >= a.threshold) reached[t] |= 1u << (i % 32);
          }
        }
      }
#pragma unroll
      for (int t = 0; t < kT; ++t) {
        if (lane == 0) bits[warp][t] = reached[t];
      }
      __syncthreads();
    }
    const int t = t0 + static_cast<int>(threadIdx.x);
    if (static_cast<int>(threadIdx.x) < kT && t < a.rows) {
      uint32_t wanted = 0;
      for (int w = 0; w < kWarps; ++w) wanted |= predicted ? bits[w][threadIdx.x] : 0u;
      a.mask[size_t(t) * gridDim.x + word] = a.modes[t] == kPredicted ? wanted : valid;
    }
    __syncthreads();
  }
  if (comes_last(a.arrivals, gridDim.x)) select_neurons(a.select, a.mask, n, a.rows);
}

template <DType kType>
void launch(void* stream, const Score& a) {
  with_rows(a.rows, [&](auto t) {
    constexpr int kT = decltype(t)::value;
    PI_LAUNCH((score_neurons<kType, kT>), dim3(mask_words(a.w.rows)), dim3(kWarps * kWarp),
              (Tiles<kType, kT>::shared_bytes(a.x.cols)), stream, a);
  });
}

}  // namespace

void score(void* stream, const Score& a) {
  if (a.w.type == DType::kBit) return launch<DType::kBit>(stream, a);
  with_weight_type(a.w.type, [&](auto w) { launch<decltype(w)::value>(stream, a); });
}

}  // namespace pi::cuda
