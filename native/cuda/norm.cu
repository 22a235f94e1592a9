// Norms. One block a row.
#include "cuda/launchers.h"
#include "cuda/norm.cuh"

namespace pi::cuda {
namespace {

__global__ void __launch_bounds__(kNormThreads) norm_each(Norm a) {
  norm_row(a, blockIdx.x);
  if (!a.signal.flag) return;
  __threadfence_system();
  if (comes_last(a.arrivals, gridDim.x) && threadIdx.x == 0) signal(a.signal);
}

}  // namespace

void norm(void* stream, const Norm& a) { PI_LAUNCH(norm_each, dim3(a.rows), dim3(kNormThreads), 0, stream, a); }

}  // namespace pi::cuda
