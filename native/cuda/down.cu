// Active neurons' rows of the down projection, summed: a block has 256 columns and every n_parts-th neuron, of which
// each of its warps has an eighth. Whichever block of a strip of columns comes last merges them.
#include <algorithm>

#include "cuda/dot.cuh"
#include "cuda/launchers.h"
#include "cuda/merge.cuh"
#include "cuda/octets.cuh"

namespace pi::cuda {
namespace {

constexpr int kWarps = 8, kStrip = kWarp * kOctet;
static_assert(kStrip == kMergeThreads && kWarps * kWarp == kMergeThreads);
constexpr int kScan = 8;  // looks at the active bits that are in flight

// A warp's neurons are k + step * m, m < most.
struct Deal {
  int k, step, most;
};
PI_HOST_DEVICE constexpr int most_dealt(int n_neurons, int n_parts) {
  return (n_neurons + n_parts * kWarps - 1) / (n_parts * kWarps);
}

// The m of a warp's active neurons, ascending, to shared memory; returns how many.
__device__ __forceinline__ int find_active(const Down& a, const Deal& deal, uint16_t* list) {
  const int lane = threadIdx.x % kWarp;
  int n = 0;
  for (int begin = 0; begin < deal.most; begin += kScan * kWarp) {
    bool hit[kScan];
#pragma unroll
    for (int u = 0; u < kScan; ++u) {
      const int i = deal.k + deal.step * (begin + u * kWarp + lane);
      hit[u] = i < a.n_neurons && (a.active[i / 32] >> (i % 32) & 1);
    }
#pragma unroll
    for (int u = 0; u < kScan; ++u) {
      const unsigned hits = __ballot_sync(kAllLanes, hit[u]);
      if (hit[u]) list[n + __popc(hits & ((1u << lane) - 1))] = static_cast<uint16_t>(begin + u * kWarp + lane);
      n += __popc(hits);
    }
  }
  __syncwarp();
  return n;
}

// sum[t] += act[i][t] * down[i] over the warp's active neurons, in order, for octet o.
template <DType kType, int kT>
__device__ __forceinline__ void add_neurons(const Down& a, const Deal& deal, const uint16_t* list, int n, int o, int t0,
                                            float (&sum)[kT][kOctet]) {
  constexpr int kUnroll = kT > 2 || sizeof(typename Octets<kType>::Chunk) > sizeof(uint4) ? 4 : 8;
  const int lane = threadIdx.x % kWarp;
  const bool inside = octet_column(kType, o, 0) < a.w.cols;
  for (int begin = 0; begin < n; begin += kWarp) {
    // Each lane looks one neuron up; then they read all of them together.
    const int own = begin + lane < n ? deal.k + deal.step * list[begin + lane] : deal.k;
    const int count = min(kWarp, n - begin);
    float act[kT];
#pragma unroll
    for (int t = 0; t < kT; ++t)
      act[t] = begin + lane < n && t0 + t < a.rows ? a.act[size_t(own) * a.rows + t0 + t] : 0.0f;
    for (int j = 0; j < count; j += kUnroll) {
      typename Octets<kType>::Chunk w[kUnroll];
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        const uint8_t* const row = a.w.data + size_t(__shfl_sync(kAllLanes, own, (j + u) % kWarp)) * a.w.row_bytes;
        if (j + u < count && inside) w[u] = Octets<kType>::load(row, a.w.cols, o);
      }
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (j + u >= count) break;
        float values[kOctet];
        const float scale = w[u].values(values);
#pragma unroll
        for (int t = 0; t < kT; ++t) {
          const float factor = scale * __shfl_sync(kAllLanes, act[t], (j + u) % kWarp);
          if (factor == 0 || !inside) continue;
#pragma unroll
          for (int e = 0; e < kOctet; ++e) sum[t][e] = fmaf(values[e], factor, sum[t][e]);
        }
      }
    }
  }
}

// parts[part][t] of the block's columns: the warps' sums, in order.
template <DType kType>
__device__ __forceinline__ void store_part(const Down& a, int part, int t, const float (&sum)[kOctet],
                                           float (*shared)[kStrip]) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  __syncthreads();
  float4* const mine = reinterpret_cast<float4*>(&shared[warp][lane * kOctet]);
  mine[0] = make_float4(sum[0], sum[1], sum[2], sum[3]);
  mine[1] = make_float4(sum[4], sum[5], sum[6], sum[7]);
  __syncthreads();
  const int o = blockIdx.x * kWarp + static_cast<int>(threadIdx.x) / kOctet;
  const int c = octet_column(kType, o, threadIdx.x % kOctet / 4) + static_cast<int>(threadIdx.x) % 4;
  if (c >= a.w.cols || t >= a.rows) return;
  float all = shared[0][threadIdx.x];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) all += shared[w][threadIdx.x];
  a.parts[(size_t(part) * a.rows + t) * a.w.cols + c] = all;
}

template <DType kType, int kT>
__global__ void __launch_bounds__(kWarps* kWarp, kT > 2 ? 1 : 2) sum_neurons(Down a) {
  PI_DYNAMIC_SHARED(uint16_t, lists);
  __shared__ __align__(16) float shared[kWarps][kStrip];
  const int part = blockIdx.y, warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const Deal deal{warp * a.n_parts + part, a.n_parts * kWarps, most_dealt(a.n_neurons, a.n_parts)};
  uint16_t* const list = lists + warp * deal.most;
  const int n = find_active(a, deal, list);
  // Whichever block is the last to have read the bits clears them; it need not wait for the answer before it is done.
  const int words = mask_words(a.n_neurons);
  uint32_t before = 0;
  __syncthreads();
  if (threadIdx.x == 0) before = atomicAdd(a.active + words, 1u);
  const int o = blockIdx.x * kWarp + lane;
  for (int t0 = 0; t0 < a.rows; t0 += kT) {
    float sum[kT][kOctet] = {};
    add_neurons<kType, kT>(a, deal, list, n, o, t0, sum);
#pragma unroll
    for (int t = 0; t < kT; ++t) store_part<kType>(a, part, t0 + t, sum[t], shared);
  }
  if (warp == 0 && __shfl_sync(kAllLanes, before, 0) == gridDim.x * gridDim.y - 1) {
    for (int i = lane; i <= words; i += kWarp) a.active[i] = 0;
  }
  if (!a.merge.y || !comes_last(a.arrivals + blockIdx.x, gridDim.y)) return;
  merge_column<kTailRows>(a.merge, 0, blockIdx.x * kStrip + threadIdx.x);
  end_merge(a.merge, gridDim.x);
}

}  // namespace

void down(void* stream, const Down& a) {
  Down launched = a;
  const bool apart = a.merge.y && a.rows > kTailRows;
  if (apart) launched.merge = {};
  with_rows(a.rows, [&](auto t) {
    with_weight_type(a.w.type, [&](auto w) {
      constexpr int kT = decltype(t)::value;
      constexpr DType kType = decltype(w)::value;
      const size_t lists = size_t(kWarps) * most_dealt(a.n_neurons, a.n_parts) * sizeof(uint16_t);
      PI_LAUNCH((sum_neurons<kType, kT>), dim3((a.w.cols + kStrip - 1) / kStrip, a.n_parts), dim3(kWarps * kWarp),
                lists, stream, launched);
    });
  });
  if (apart) merge(stream, a.merge);
}

}  // namespace pi::cuda
