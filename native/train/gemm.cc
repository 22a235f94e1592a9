#include "train/gemm.h"

#include <algorithm>

namespace pi::train {
namespace {

// Inner-dimension block: a tile's panels of A (6 x 256) and B (2 lanes x 256) stay in the first-level cache.
constexpr int kInner = 256;
// Tiles of A and of B that one task packs; their cross product is one task of the product.
constexpr int kTaskTiles = 16;
constexpr int kMaxTileCols = 64;

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Copies lines (rows of A, columns of B) of `depth` inner elements into [depth, width]; lines past `valid` are zero.
void pack_tile(const float* source, ptrdiff_t line_stride, ptrdiff_t inner_stride, int valid, int width, int depth,
               float* out) {
  if (valid < width) std::fill(out, out + static_cast<size_t>(depth) * width, 0.0f);
  if (line_stride == 1) {
    for (int p = 0; p < depth; ++p, out += width) std::copy_n(source + p * inner_stride, valid, out);
    return;
  }
  for (int i = 0; i < valid; ++i) {
    const float* line = source + i * line_stride;
    for (int p = 0; p < depth; ++p) out[static_cast<size_t>(p) * width + i] = line[p * inner_stride];
  }
}

}  // namespace

void Gemm::Panels::pack_task(int task, int start, int depth) {
  const int end = std::min(tiles, (task + 1) * kTaskTiles);
  for (int tile = task * kTaskTiles; tile < end; ++tile) {
    const int line = tile * width;
    pack_tile(source + line * line_stride + start * inner_stride, line_stride, inner_stride,
              std::min(width, lines - line), width, depth, panel(tile, depth));
  }
}

void Gemm::Panels::set(const float* from, ptrdiff_t by_line, ptrdiff_t by_inner, int count, int tile_width) {
  source = from;
  line_stride = by_line;
  inner_stride = by_inner;
  lines = count;
  width = tile_width;
  tiles = ceil_div(count, tile_width);
  packed.resize(static_cast<size_t>(tiles) * width * kInner);
}

void Gemm::multiply(const Operand& a, const Operand& b, float* c, int m, int n, int k) {
  a_.set(a.data, a.row_stride, a.col_stride, m, kTileRows);
  b_.set(b.data, b.col_stride, b.row_stride, n, 2 * math_.lanes);
  std::fill(c, c + static_cast<size_t>(m) * n, 0.0f);
  const int a_tasks = ceil_div(a_.tiles, kTaskTiles), b_tasks = ceil_div(b_.tiles, kTaskTiles);
  for (int start = 0; start < k; start += kInner) {
    const int depth = std::min(kInner, k - start);
    pool_.parallel_for(a_tasks + b_tasks, [&](int task) {
      if (task < a_tasks) {
        a_.pack_task(task, start, depth);
      } else {
        b_.pack_task(task - a_tasks, start, depth);
      }
    });
    pool_.parallel_for(a_tasks * b_tasks, [&](int task) { product_task(task / b_tasks, task % b_tasks, depth, c); });
  }
}

void Gemm::product_task(int a_task, int b_task, int depth, float* c) {
  const int rows_end = std::min(a_.tiles, (a_task + 1) * kTaskTiles);
  const int cols_end = std::min(b_.tiles, (b_task + 1) * kTaskTiles);
  for (int j = b_task * kTaskTiles; j < cols_end; ++j) {
    for (int i = a_task * kTaskTiles; i < rows_end; ++i) tile(i, j, depth, c);
  }
}

void Gemm::tile(int i, int j, int depth, float* c) {
  const int stride = b_.lines, row = i * a_.width, col = j * b_.width;
  const int rows = std::min(a_.width, a_.lines - row), cols = std::min(b_.width, b_.lines - col);
  float* const out = c + static_cast<size_t>(row) * stride + col;
  if (rows == a_.width && cols == b_.width) {
    math_.tile(depth, a_.panel(i, depth), b_.panel(j, depth), out, stride);
    return;
  }
  float edge[kTileRows * kMaxTileCols] = {};
  math_.tile(depth, a_.panel(i, depth), b_.panel(j, depth), edge, b_.width);
  for (int r = 0; r < rows; ++r) {
    for (int q = 0; q < cols; ++q) out[static_cast<size_t>(r) * stride + q] += edge[r * b_.width + q];
  }
}

}  // namespace pi::train
