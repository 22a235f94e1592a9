#include "cuda/workspace.h"

#include "cuda/gemm_cut.h"

namespace pi::cuda {

size_t gemm_workspace(const DeviceMatrix& w, bool transposed, int rows) {
  return GemmCut(w, transposed, rows).workspace_bytes();
}
// A sum, and its peak and total, for every piece of every head.
size_t attention_workspace(int rows, int n_heads, int head_dim, int splits) {
  return align_up(sizeof(float) * rows * n_heads * splits * (head_dim + 2), 256);
}
size_t highest_workspace(int rows, int vocab) {
  return align_up(sizeof(HighestPart) * rows * ((vocab + kPartTokens - 1) / kPartTokens), 256);
}

}  // namespace pi::cuda
