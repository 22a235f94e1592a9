// Bytes of device memory, 256-aligned, that kernels work in: functions of shapes alone, so that memory is counted the
// same with a device and without.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/kernels.h"

namespace pi::cuda {

// `highest` looks at the vocabulary in parts. `sum` and `weight` are relative to a part's highest logit: Σ e^(x -
// high), Σ e^((x - high) / temperature).
constexpr int kPartTokens = 4096;
struct HighestPart {
  float high;
  int32_t token;
  float sum, weight;
};

size_t gemm_workspace(const DeviceMatrix& w, bool transposed, int rows);
size_t attention_workspace(int rows, int n_heads, int head_dim, int splits);
size_t highest_workspace(int rows, int vocab);
// Words, not bytes: a row's heads each count who comes last, strips of 256 columns, and then all of them together.
constexpr size_t arrival_words(int rows, int n_heads, int dim) {
  const size_t heads = size_t(rows) * n_heads, strips = 1 + (size_t(dim) + 255) / 256;
  return heads > strips ? heads : strips;
}

}  // namespace pi::cuda
