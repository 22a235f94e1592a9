// Partial sums, those of the host among them, to the stream.
#include "cuda/launchers.h"
#include "cuda/merge.cuh"

namespace pi::cuda {
namespace {

__global__ void __launch_bounds__(kMergeThreads) merge_rows(Merge a) {
  merge_column<1>(a, blockIdx.y, blockIdx.x * kMergeThreads + threadIdx.x);
  end_merge(a, gridDim.x * gridDim.y);
}

}  // namespace

void merge(void* stream, const Merge& a) {
  Merge launched = a;
  const dim3 grid((a.dim + kMergeThreads - 1) / kMergeThreads, a.rows);
  const bool apart = a.norm.x && a.rows > kTailRows;
  if (apart) launched.norm = {};
  if (!a.skip_wait) launched.wait = wait_before(stream, a.wait, size_t(grid.x) * grid.y);
  PI_LAUNCH(merge_rows, grid, dim3(kMergeThreads), 0, stream, launched);
  if (apart) norm(stream, a.norm);
}

}  // namespace pi::cuda
