// A layer's partial sums become one, the host's last.
#include "cuda/launchers.h"
#include "cuda/meeting.cuh"

namespace pi::cuda {
namespace {

constexpr int kThreads = 128;  // a decoding row's sums wait for memory, not for each other: on many multiprocessors

__global__ void __launch_bounds__(kThreads) merge_rows(Merge a) {
  const int c = blockIdx.x * kThreads + threadIdx.x, t = blockIdx.y;
  const bool inside = c < a.dim, host = !a.skip_wait || *a.skip_wait != 0;
  const size_t at = size_t(t) * a.dim + c;
  float sum = 0;
  if (inside) {
    if (a.base) sum += a.base[at];
    if (a.bias) sum += a.bias[c];
#pragma unroll 8
    for (int s = 0; s < a.n_parts; ++s) sum += a.parts[size_t(s) * a.rows * a.dim + at];
  }
  if (host && a.host) {
    if (threadIdx.x == 0) wait_for(a.wait);
    __syncthreads();
    if (inside) sum += a.host[at];
  }
  if (inside) a.y[at] = sum;
  if (!a.signal.flag) return;
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x != 0 || atomicAdd(a.arrivals, 1u) != gridDim.x * gridDim.y - 1) return;
  *a.arrivals = 0;  // the last block, for the next launch
  signal(a.signal);
}

}  // namespace

void merge(void* stream, const Merge& a) {
  PI_LAUNCH(merge_rows, dim3((a.dim + kThreads - 1) / kThreads, a.rows), dim3(kThreads), 0, stream, a);
}

}  // namespace pi::cuda
