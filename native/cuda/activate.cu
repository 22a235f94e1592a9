// The activation between a prompt's products of gate and up, and that of down.
#include "cuda/kernels.h"
#include "cuda/launchers.h"
#include "cuda/unary.cuh"

namespace pi::cuda {
namespace {

constexpr int kThreads = 256, kValues = 4;  // 16 bytes a thread of each

__device__ __forceinline__ float activated(const Activate& a, float gate, float up) {
  if (!a.gate) return activation(a.f, a.threshold, up);
  return activation(a.f, a.threshold, gate) * (a.both ? activation(a.f, a.threshold, up) : up);
}

__global__ void __launch_bounds__(kThreads) activate_values(Activate a) {
  const size_t i = (size_t(blockIdx.x) * kThreads + threadIdx.x) * kValues;
  const bool aligned = reinterpret_cast<uintptr_t>(a.up) % 16 == 0 && reinterpret_cast<uintptr_t>(a.gate) % 16 == 0;
  if (aligned && i + kValues <= a.n) {
    float4* const up = reinterpret_cast<float4*>(a.up + i);
    const float4 u = *up, g = a.gate ? *reinterpret_cast<const float4*>(a.gate + i) : u;
    *up = {activated(a, g.x, u.x), activated(a, g.y, u.y), activated(a, g.z, u.z), activated(a, g.w, u.w)};
    return;
  }
  for (size_t j = i; j < a.n && j < i + kValues; ++j) a.up[j] = activated(a, a.gate ? a.gate[j] : 0.0f, a.up[j]);
}

}  // namespace

void activate(void* stream, const Activate& a) {
  if (a.n == 0) return;
  const size_t threads = (a.n + kValues - 1) / kValues;
  PI_LAUNCH(activate_values, dim3((threads + kThreads - 1) / kThreads), dim3(kThreads), 0, stream, a);
}

}  // namespace pi::cuda
