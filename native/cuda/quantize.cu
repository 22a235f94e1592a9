#include "cuda/quantize.cuh"

#include "cuda/launchers.h"

namespace pi::cuda {

namespace {

constexpr int kThreads = 256;

// Four columns a thread, counted over all rows.
__global__ void __launch_bounds__(kThreads) quantize_rows(Quantize a) {
  const size_t at = (size_t(blockIdx.x) * kThreads + threadIdx.x) * kLaneColumns;
  const bool inside = at < size_t(a.rows) * a.in.cols;
  float x[kLaneColumns] = {};
  if (inside) {
    const float4 v = *reinterpret_cast<const float4*>(a.in.x + at);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  }
  store_quantized(a.in, at, x, inside);
}

}  // namespace

void quantize(void* stream, const Quantize& a) {
  const size_t threads = size_t(a.rows) * a.in.cols / kLaneColumns;
  PI_LAUNCH(quantize_rows, dim3((threads + kThreads - 1) / kThreads), dim3(kThreads), 0, stream, a);
}

}  // namespace pi::cuda
