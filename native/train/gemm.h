// f32 matrix product for predictor training. Both operands are packed into panels first, so that one inner loop serves
// all three shapes: plain · plain, plain · transposed, transposed · plain.
#pragma once

#include <cstddef>
#include <vector>

#include "base/thread_pool.h"
#include "train/math.h"

namespace pi::train {

// A strided view: element (i, j) is data[i * row_stride + j * col_stride].
struct Operand {
  const float* data;
  ptrdiff_t row_stride, col_stride;
};

// A row-major matrix of `cols` columns, and its transpose.
inline Operand plain(const float* data, int cols) { return {data, cols, 1}; }
inline Operand transposed(const float* data, int cols) { return {data, 1, cols}; }

// Keeps the packing buffers between calls; one call at a time.
class Gemm {
 public:
  explicit Gemm(ThreadPool& pool, const Math& isa = math()) : pool_(pool), math_(isa) {}

  // c [m, n] row-major = a [m, k] · b [k, n]. Each element is summed over k in an order that depends on neither
  // threads nor m and n.
  void multiply(const Operand& a, const Operand& b, float* c, int m, int n, int k);

 private:
  // One operand cut into tiles of `width` lines: rows of A, columns of B.
  struct Panels {
    const float* source;
    ptrdiff_t line_stride, inner_stride;
    int lines, width, tiles;
    std::vector<float> packed;

    void set(const float* from, ptrdiff_t by_line, ptrdiff_t by_inner, int count, int tile_width);
    // Packs the task's tiles over inner indices [start, start + depth).
    void pack_task(int task, int start, int depth);
    float* panel(int tile, int depth) { return packed.data() + static_cast<size_t>(tile) * width * depth; }
  };

  void product_task(int a_task, int b_task, int depth, float* c);
  void tile(int i, int j, int depth, float* c);

  ThreadPool& pool_;
  const Math& math_;
  Panels a_, b_;
};

}  // namespace pi::train
