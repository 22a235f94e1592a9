// Rows of weights that came in one piece, to where they belong: a block a row.
#include "cuda/language.h"
#include "cuda/launchers.h"

namespace pi::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__device__ __forceinline__ void copy(const Move& move) {
  const size_t n = move.bytes / sizeof(T);
  for (size_t i = threadIdx.x; i < n; i += kThreads) static_cast<T*>(move.to)[i] = static_cast<const T*>(move.from)[i];
}

__global__ void __launch_bounds__(kThreads) scatter_rows(Scatter a) {
  const Move move = a.moves[blockIdx.x];
  const bool wide = ((reinterpret_cast<uintptr_t>(move.to) | reinterpret_cast<uintptr_t>(move.from) | move.bytes) %
                     sizeof(uint4)) == 0;
  wide ? copy<uint4>(move) : copy<uint32_t>(move);
}

}  // namespace

void scatter(void* stream, const Scatter& a) { PI_LAUNCH(scatter_rows, dim3(a.n), dim3(kThreads), 0, stream, a); }

}  // namespace pi::cuda
