// Reads memory as fast as it can be read: what kernels are held against.
#include "cuda/language.h"
#include "cuda/launchers.h"
#include "cuda/reduce.cuh"

namespace pi::cuda {

namespace {

constexpr int kThreads = 256;
// Loads of 16 bytes that a thread has in flight: with 2,048 threads a multiprocessor 128 KiB, twice what latency and
// bandwidth of today's memories ask for.
constexpr int kLoads = 4;
constexpr size_t kBlockQuads = size_t{kThreads} * kLoads;

__global__ void __launch_bounds__(kThreads) sweep_quads(Sweep a) {
  const size_t quads = a.n / 4, first = blockIdx.x * kBlockQuads + threadIdx.x;
  const uint4* const from = reinterpret_cast<const uint4*>(a.words);
  uint4 loaded[kLoads];
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const size_t at = first + size_t(i) * kThreads;
    loaded[i] = at < quads ? __ldg(from + at) : make_uint4(0, 0, 0, 0);
  }
  unsigned sum = 0;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) sum += loaded[i].x + loaded[i].y + loaded[i].z + loaded[i].w;
  for (int with = kWarp / 2; with > 0; with /= 2) sum += __shfl_xor_sync(kAllLanes, sum, with);
  if (threadIdx.x % kWarp == 0) atomicAdd(a.out, sum);
}

}  // namespace

void sweep(void* stream, const Sweep& a) {
  const size_t blocks = (a.n / 4 + kBlockQuads - 1) / kBlockQuads;
  PI_LAUNCH(sweep_quads, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0, stream, a);
}

}  // namespace pi::cuda
