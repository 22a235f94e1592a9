// The activation functions, as kernels::Table::activate computes them.
#pragma once

#include "cuda/language.h"
#include "kernels/kernels.h"

namespace pi::cuda {

// f(x); `threshold` is FATReLU's. What is no number is idle under a ReLU, as on the CPU.
__device__ __forceinline__ float activation(kernels::Unary f, float threshold, float x) {
  switch (f) {
    case kernels::Unary::kRelu:
      return fmaxf(x, 0.0f);
    case kernels::Unary::kRelu2:
      return fmaxf(x, 0.0f) * fmaxf(x, 0.0f);
    case kernels::Unary::kFatRelu:
      return x >= threshold ? x : 0.0f;
    case kernels::Unary::kSilu:
      return x / (1.0f + expf(-x));
    case kernels::Unary::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case kernels::Unary::kGeluTanh:
      return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * fmaf(0.044715f * x * x, x, x)));
  }
  return x;
}

}  // namespace pi::cuda
