// The listed neurons from x to what they contribute with: gate, activation and up in one warp, so that nothing between
// them leaves it, and a closed gate reads no row of up.
#include <algorithm>

#include "cuda/dot.cuh"
#include "cuda/launchers.h"
#include "cuda/unary.cuh"

namespace pi::cuda {
namespace {

// Warps of a block, and blocks at most, which then take several neurons each. Few neurons are active, so blocks are
// small: all multiprocessors have some. With more rows the x of a block is larger, and more warps must share it.
template <int kT>
constexpr int kWarps = kT > 2 ? 8 : 4;
constexpr int kBlocks = 1024;

// Which of kT rows want a neuron, a bit each.
template <int kT>
__device__ __forceinline__ unsigned wanting(const Neurons& a, int t0, int neuron) {
  unsigned bits = 0;
#pragma unroll
  for (int t = 0; t < kT; ++t) {
    if (t0 + t >= a.rows) break;
    const uint32_t word = a.mask ? a.mask[size_t(t0 + t) * mask_words(a.n_neurons) + neuron / 32] : 0xffffffffu;
    bits |= (word >> (neuron % 32) & 1) << t;
  }
  return bits;
}

// act[t] of a neuron for kT rows; 0 where its bit of `wanted` is not set. Every warp of the block calls.
template <DType kType, int kT>
__device__ __forceinline__ void compute(const Neurons& a, Staged<kType, kT>& x, int neuron, unsigned wanted,
                                        float (&act)[kT]) {
  constexpr int kUnroll = kT > (Weights<kType>::kBlocks ? 1 : 2) ? 4 : 8;  // as registers allow
  const bool gated = a.gate.rows > 0;
  bool idle = wanted == 0;
  float sum[1][kT];
#pragma unroll
  for (int t = 0; t < kT; ++t) act[t] = 0;
  if (gated) {
    const uint8_t* const row[1] = {a.gate.data + size_t(neuron) * a.gate.row_bytes};
    dot_rows<kUnroll>(x, row, idle, sum);
    const float bias = a.gate_bias && !idle ? a.gate_bias[neuron] : 0.0f;
    bool open = false;
#pragma unroll
    for (int t = 0; t < kT; ++t) {
      if (!idle && (wanted >> t & 1)) act[t] = activation(a.f, a.threshold, sum[0][t] + bias);
      open = open || act[t] != 0;
    }
    idle = idle || !open;
  }
  const uint8_t* const row[1] = {a.up.data + size_t(neuron) * a.up.row_bytes};
  dot_rows<kUnroll>(x, row, idle, sum);
  if (idle) return;
  const float bias = a.up_bias ? a.up_bias[neuron] : 0.0f;
#pragma unroll
  for (int t = 0; t < kT; ++t) {
    float up = sum[0][t] + bias;
    if (!gated || a.both) up = activation(a.f, a.threshold, up);
    if (!gated) {
      act[t] = wanted >> t & 1 ? up : 0.0f;
    } else if (act[t] != 0) {
      act[t] *= up;
    }
  }
}

// Adds what the block counted; warps that have nothing call, too.
template <int kT>
__device__ __forceinline__ void count(const Neurons& a, unsigned asked, unsigned fired) {
  __shared__ unsigned counts[2][kWarps<kT>];
  if (threadIdx.x % kWarp == 0) {
    counts[0][threadIdx.x / kWarp] = asked;
    counts[1][threadIdx.x / kWarp] = fired;
  }
  __syncthreads();
  if (threadIdx.x >= 2) return;
  unsigned long long sum = 0;
  for (int w = 0; w < kWarps<kT>; ++w) sum += counts[threadIdx.x][w];
  atomicAdd(a.counters + threadIdx.x, sum);
}

template <DType kType, int kT>
__global__ void __launch_bounds__(kWarps<kT>* kWarp, kT > 2 ? 1 : 4) compute_neurons(Neurons a) {
  PI_DYNAMIC_SHARED(uint4, shared);
  const int lane = threadIdx.x % kWarp, first = blockIdx.x * kWarps<kT>, step = gridDim.x * kWarps<kT>;
  int j = first + static_cast<int>(threadIdx.x) / kWarp;
  const auto listed = [&](int at) { return a.list ? a.list[at] : at; };
  int neuron = j < a.n_neurons ? listed(j) : 0;  // while the count is on its way
  const int n = a.list ? *a.count : a.up.rows;
  unsigned asked = 0, fired = 0;
  Staged<kType, kT> x(a.x, a.rows, shared);
  for (int begin = first; begin < n; begin += step, j += step) {
    const bool inside = j < n;
    if (inside && begin != first) neuron = listed(j);
    unsigned rows_fired = 0;
    for (int t0 = 0; t0 < a.rows; t0 += kT) {
      x.begin_at(t0);
      const unsigned wanted = inside ? wanting<kT>(a, t0, neuron) : 0;
      float act[kT];
      compute<kType, kT>(a, x, neuron, wanted, act);
      asked += __popc(wanted);
#pragma unroll
      for (int t = 0; t < kT; ++t) {
        rows_fired += act[t] != 0;
        if (inside && lane == t && t0 + t < a.rows) a.act[size_t(neuron) * a.rows + t0 + t] = act[t];
      }
    }
    if (rows_fired > 0 && lane == 0) atomicOr(a.active + neuron / 32, 1u << (neuron % 32));
    fired += rows_fired;
  }
  if (a.counters && first < n) count<kT>(a, asked, fired);
}

}  // namespace

void neurons(void* stream, const Neurons& a) {
  with_rows(a.rows, [&](auto t) {
    with_weight_type(a.up.type, [&](auto w) {
      constexpr int kT = decltype(t)::value;
      constexpr DType kType = decltype(w)::value;
      const int blocks = std::min((a.n_neurons + kWarps<kT> - 1) / kWarps<kT>, kBlocks);
      PI_LAUNCH((compute_neurons<kType, kT>), dim3(blocks), dim3(kWarps<kT> * kWarp),
                (Tiles<kType, kT>::shared_bytes(a.x.cols)), stream, a);
    });
  });
}

}  // namespace pi::cuda
