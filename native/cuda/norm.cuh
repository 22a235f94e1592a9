// The norm of a row by one block of kNormThreads, whichever kernel it belongs to: so that its bits are the same in all.
#pragma once

#include "cuda/meeting.cuh"
#include "cuda/quantize.cuh"
#include "cuda/reduce.cuh"
#include "cuda/tail.cuh"

namespace pi::cuda {

constexpr int kNormThreads = 256;

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

// Σ (x - mean)^power of a thread's pieces, power 1 or 2, four pieces in flight.
template <int kWidth, int kPower>
__device__ __forceinline__ float sum_pieces(const float* x, int cols, float mean) {
  float sum = 0;
#pragma unroll 4
  for (int at = threadIdx.x * kWidth; at < cols; at += kNormThreads * kWidth) {
    float piece[kWidth];
    load_piece<kWidth>(x + at, piece);
    for (int i = 0; i < kWidth; ++i) sum += kPower == 1 ? piece[i] : (piece[i] - mean) * (piece[i] - mean);
  }
  return sum;
}

// Reads the row twice, thrice with a bias, but from memory once: a row is small.
template <int kWidth>
__device__ __forceinline__ void norm_row_of(const Norm& a, int row) {
  __shared__ float sums[2][kWarp];
  const int cols = a.out.cols;
  const size_t first = size_t(row) * cols;
  const float* const x = a.x + first;
  const float mean = a.bias ? block_sum(sum_pieces<kWidth, 1>(x, cols, 0), sums[0]) / static_cast<float>(cols) : 0.0f;
  const float squares = block_sum(sum_pieces<kWidth, 2>(x, cols, mean), sums[1]);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(cols) + a.eps);
#pragma unroll 4
  for (int begin = 0; begin < cols; begin += kNormThreads * kWidth) {  // whole warps, for the scales of blocks
    const int at = begin + static_cast<int>(threadIdx.x) * kWidth;
    const bool inside = at < cols;
    float piece[kWidth] = {};
    if (inside) {
      float weight[kWidth], bias[kWidth] = {};
      load_piece<kWidth>(x + at, piece);
      load_piece<kWidth>(a.weight + at, weight);
      if (a.bias) load_piece<kWidth>(a.bias + at, bias);
      for (int i = 0; i < kWidth; ++i) piece[i] = (piece[i] - mean) * scale * weight[i] + bias[i];
      store_piece<kWidth>(a.out.x + first + at, piece);
      if (a.host) store_piece<kWidth>(a.host + first + at, piece);
    }
    if constexpr (kWidth == kLaneColumns) {
      if (a.out.quants) store_quantized(a.out, first + at, piece, inside);
    }
  }
}

__device__ __forceinline__ void norm_row(const Norm& a, int row) {
  if (a.out.cols % 4 == 0) return norm_row_of<4>(a, row);
  norm_row_of<1>(a, row);
}

// As a tail: all rows, and the signal.
__device__ __forceinline__ void norm_rows(const Norm& a) {
  for (int row = 0; row < a.rows; ++row) {
    norm_row(a, row);
    __syncthreads();  // what sums were added in is free again
  }
  if (!a.signal.flag) return;
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) signal(a.signal);
}

}  // namespace pi::cuda
