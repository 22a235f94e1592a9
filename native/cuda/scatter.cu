// Rows of weights that came in one piece, to where they belong: a block a row.
#include "cuda/language.h"
#include "cuda/launchers.h"

namespace pi::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__device__ __forceinline__ void copy(T* __restrict__ to, const T* __restrict__ from, int n) {
#pragma unroll 4
  for (int i = threadIdx.x; i < n; i += kThreads) to[i] = from[i];
}

__global__ void __launch_bounds__(kThreads) scatter_rows(Scatter a) {
  const Move move = a.moves[blockIdx.x];
  const int words = static_cast<int>(move.bytes / sizeof(uint32_t));
  if (((reinterpret_cast<uintptr_t>(move.to) | reinterpret_cast<uintptr_t>(move.from) | move.bytes) % sizeof(uint4)) ==
      0) {
    copy(static_cast<uint4*>(move.to), static_cast<const uint4*>(move.from), words / 4);
  } else {
    copy(static_cast<uint32_t*>(move.to), static_cast<const uint32_t*>(move.from), words);
  }
}

}  // namespace

void scatter(void* stream, const Scatter& a) { PI_LAUNCH(scatter_rows, dim3(a.n), dim3(kThreads), 0, stream, a); }

}  // namespace pi::cuda
