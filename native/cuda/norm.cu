// Norms. One block a row, which is read once and then kept in registers; a decoding row of 4,096 is one piece a thread.
#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/language.h"
#include "cuda/launchers.h"
#include "cuda/quantize.cuh"
#include "cuda/reduce.cuh"

namespace pi::cuda {
namespace {

constexpr int kMostThreads = 1024;

// kWidth neighbouring elements: four where rows are whole quadruples, else one.
template <int kWidth>
__device__ __forceinline__ void load_piece(const float* from, float (&x)[kWidth]) {
  if constexpr (kWidth == 4) {
    const float4 v = *reinterpret_cast<const float4*>(from);
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
    x[0] = *from;
  }
}

template <int kWidth>
__device__ __forceinline__ void store_piece(float* to, const float (&x)[kWidth]) {
  if constexpr (kWidth == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(x[0], x[1], x[2], x[3]);
  } else {
    *to = x[0];
  }
}

// A thread has pieces threadIdx.x + k * blockDim.x, k < kPieces.
template <int kWidth, int kPieces>
__global__ void __launch_bounds__(kMostThreads) norm_rows(Norm a) {
  __shared__ float sums[2][kWarp];
  const int cols = a.out.cols;
  const size_t row = size_t(blockIdx.x) * cols;
  float x[kPieces][kWidth];
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int at = (k * blockDim.x + threadIdx.x) * kWidth;
    for (int i = 0; i < kWidth; ++i) x[k][i] = 0;
    if (at < cols) load_piece<kWidth>(a.x + row + at, x[k]);
  }
  float mean = 0;
  if (a.bias) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      for (int i = 0; i < kWidth; ++i) sum += x[k][i];
    }
    mean = block_sum(sum, sums[0]) / static_cast<float>(cols);
  }
  float squares = 0;
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const bool inside = static_cast<int>(k * blockDim.x + threadIdx.x) * kWidth < cols;
    for (int i = 0; i < kWidth; ++i) {
      x[k][i] = inside ? x[k][i] - mean : 0.0f;
      squares += x[k][i] * x[k][i];
    }
  }
  const float scale = 1.0f / sqrtf(block_sum(squares, sums[1]) / static_cast<float>(cols) + a.eps);
#pragma unroll
  for (int k = 0; k < kPieces; ++k) {
    const int at = (k * blockDim.x + threadIdx.x) * kWidth;
    const bool inside = at < cols;
    if (inside) {
      float weight[kWidth], bias[kWidth] = {};
      load_piece<kWidth>(a.weight + at, weight);
      if (a.bias) load_piece<kWidth>(a.bias + at, bias);
      for (int i = 0; i < kWidth; ++i) x[k][i] = x[k][i] * scale * weight[i] + bias[i];
      store_piece<kWidth>(a.out.x + row + at, x[k]);
    }
    if constexpr (kWidth == kLaneColumns) {
      if (a.out.quants) store_quantized(a.out, row + at, x[k], inside);
    }
  }
}

template <int kWidth>
void launch_width(void* stream, const Norm& a) {
  const int pieces = (a.out.cols + kWidth - 1) / kWidth, threads = std::min((pieces + kWarp - 1) / kWarp * kWarp, kMostThreads);
  const int each = (pieces + threads - 1) / threads;
  const dim3 grid(a.rows), block(threads);
  constexpr int kFew = 4 / kWidth, kMany = 16 / kWidth;
  if (each <= kFew) {
    PI_LAUNCH((norm_rows<kWidth, kFew>), grid, block, 0, stream, a);
  } else {
    PI_LAUNCH((norm_rows<kWidth, kMany>), grid, block, 0, stream, a);
  }
}

}  // namespace

// At most 16,384 columns.
void norm(void* stream, const Norm& a) {
  if (a.out.cols % 4 == 0) return launch_width<4>(stream, a);
  launch_width<1>(stream, a);
}

}  // namespace pi::cuda
