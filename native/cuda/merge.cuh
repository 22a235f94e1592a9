// How partial sums become the stream: as a kernel, and as the tail of one that made them.
#pragma once

#include "cuda/norm.cuh"

namespace pi::cuda {

constexpr int kMergeThreads = kNormThreads;

// Rows [first, first + kRows) of column c. Every thread of the block calls, those past the last column, too. The parts
// are read before the host is waited for.
template <int kRows>
__device__ __forceinline__ void merge_column(const Merge& a, int first, int c) {
  const bool host = a.host && (!a.skip_wait || *a.skip_wait != 0);
  float sum[kRows];
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    sum[t] = 0;
    if (c >= a.dim || first + t >= a.rows) continue;
    const size_t at = size_t(first + t) * a.dim + c;
    if (a.base) sum[t] += a.base[at];
    if (a.bias) sum[t] += a.bias[c];
#pragma unroll 8
    for (int s = 0; s < a.n_parts; ++s) sum[t] += a.parts[size_t(s) * a.rows * a.dim + at];
  }
  if (host) {
    if (threadIdx.x == 0) wait_for(a.wait);
    __syncthreads();
  }
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    if (c >= a.dim || first + t >= a.rows) continue;
    const size_t at = size_t(first + t) * a.dim + c;
    a.y[at] = host ? sum[t] + a.host[at] : sum[t];
  }
}

// What follows once `blocks` blocks have merged their columns. Every thread of each calls.
__device__ __forceinline__ void end_merge(const Merge& a, unsigned blocks) {
  if (!a.signal.flag && !a.norm.x) return;
  if (a.signal.flag) __threadfence_system();
  if (!comes_last(a.arrivals, blocks)) return;
  if (a.norm.x) norm_rows(a.norm);
  if (threadIdx.x == 0) signal(a.signal);
}

}  // namespace pi::cuda
