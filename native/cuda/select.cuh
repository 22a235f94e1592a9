// From masks to the list of neurons that the GPU computes: one block of kSelectThreads, a word of 32 neurons a thread.
#pragma once

#include "cuda/meeting.cuh"
#include "cuda/reduce.cuh"

namespace pi::cuda {

constexpr int kSelectWarps = 8, kSelectThreads = kSelectWarps * kWarp;

// Which neurons of a word are among the first `n_neurons`.
__device__ __forceinline__ uint32_t first_ones(int n_neurons, int word) {
  const int n = n_neurons - 32 * word;
  return n >= 32 ? 0xffffffffu : n > 0 ? (1u << n) - 1 : 0u;
}

// Sum of x over the lanes before this one.
__device__ __forceinline__ int lanes_before(int x) {
  const int lane = threadIdx.x % kWarp;
  int sum = x;
  for (int by = 1; by < kWarp; by *= 2) {
    const int other = __shfl_up_sync(kAllLanes, sum, by);
    if (lane >= by) sum += other;
  }
  return sum - x;
}

// Sum of x over the threads before this one, and of all. `shared` [kSelectWarps] is free again after the next barrier.
__device__ __forceinline__ int threads_before(int x, int* shared, int& all) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int before = lanes_before(x);
  if (lane == kWarp - 1) shared[warp] = before + x;
  __syncthreads();
  const int sums = lane < kSelectWarps ? shared[lane] : 0, sums_before = lanes_before(sums);
  all = __shfl_sync(kAllLanes, sums_before + sums, kWarp - 1);
  return __shfl_sync(kAllLanes, sums_before, warp) + before;
}

// Writes the neurons of a warp's 32 words, the lanes side by side; lane l has word `first + l` and the place of its
// first.
__device__ __forceinline__ void write_list(int32_t* list, int first, uint32_t here, int place) {
  const int lane = threadIdx.x % kWarp;
  for (int w = 0; w < kWarp; ++w) {
    const uint32_t word = __shfl_sync(kAllLanes, here, w);
    const int at = __shfl_sync(kAllLanes, place, w);
    if (word >> lane & 1) list[at + __popc(word & ((1u << lane) - 1))] = 32 * (first + w) + lane;
  }
}

// Every thread of the block calls; `mask` [rows, mask words] is what all blocks wrote.
__device__ __forceinline__ void select_neurons(const Select& a, const uint32_t* mask, int n_neurons, int rows) {
  __shared__ int sums[2][kSelectWarps], cold_sums[kSelectWarps];
  const int words = mask_words(n_neurons);
  if (a.host_mask) {
    for (int i = threadIdx.x; i < rows * words; i += kSelectThreads) a.host_mask[i] = mask[i];
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) signal(a.signal);
  }
  int count = 0, cold = 0;
  for (int begin = 0, side = 0; begin < words; begin += kSelectThreads, side ^= 1) {
    const int word = begin + static_cast<int>(threadIdx.x);
    const uint32_t exist = first_ones(n_neurons, word), resident = first_ones(a.resident, word);
    uint32_t wanted = 0;
    for (int t = 0; word < words && t < rows; ++t) {
      const uint32_t row = mask[size_t(t) * words + word] & exist;
      wanted |= row;
      cold += __popc(row & ~resident);
    }
    const uint32_t here = wanted & resident;
    int all;
    const int place = count + threads_before(__popc(here), sums[side], all);
    write_list(a.list, word - static_cast<int>(threadIdx.x) % kWarp, here, place);
    count += all;
  }
  int all_cold;
  threads_before(cold, cold_sums, all_cold);
  if (threadIdx.x == 0) {
    *a.count = count;
    *a.cold = all_cold;
  }
}

}  // namespace pi::cuda
