// How a matrix product of a prompt is cut into blocks of threads, and the memory that it works in: functions of its
// shape alone. Sums do not depend on the cut.
#pragma once

#include <algorithm>

#include "cuda/kernels.h"
#include "cuda/layout.h"

namespace pi::cuda {

// y [rows, outer] = x [rows, inner] * weights.
constexpr int kOuter = 128;          // of a block
constexpr int kInner = 32;           // of a step
constexpr int kSegmentSteps = 32;    // partial sums begin anew every 1024 elements, whoever computes them
constexpr int kXBytes = 4 * kInner;  // of a row of x and a step: 32 high and 32 low halves, or 32 f32
constexpr int kMostRows = 128;       // of a block
constexpr int kManyBlocks = 128;     // keep a big GPU's multiprocessors busy

constexpr int div_up(int n, int by) { return (n + by - 1) / by; }

struct GemmCut {
  int outer, inner, steps, rows;
  bool plain;  // f32 weights: half as much in a block

  GemmCut(const DeviceMatrix& w, bool transposed, int rows)
      : outer(transposed ? w.cols : w.rows),
        inner(transposed ? w.rows : w.cols),
        steps(div_up(inner, kInner)),
        rows(rows),
        plain(w.type == DType::kF32) {}

  int tile_rows(int busy) const {
    if (!plain && rows > 64 && blocks(kMostRows) >= busy) return kMostRows;
    return rows <= 32 ? 32 : 64;
  }
  // 1: a block walks the whole sum. More rows than a block has are worth their sums' way through memory only where most
  // of the GPU would be idle.
  int segments(int busy) const {
    const int apart = blocks(tile_rows(busy));
    return apart < busy && (rows <= kMostRows || 2 * apart <= busy) ? div_up(steps, kSegmentSteps) : 1;
  }

  // The workspace: split rows, what undoes their scaling, and sums of segments. As much as fewer rows need, or more.
  size_t x_bytes() const { return whole_rows() * steps * kXBytes; }
  size_t inverse_bytes() const { return whole_rows() * sizeof(float); }
  size_t workspace_bytes() const {
    const bool apart = steps > kSegmentSteps && div_up(outer, kOuter) < kManyBlocks;
    const int most = std::max(kMostRows, kManyBlocks / 2 / div_up(outer, kOuter) * 64);  // rows in segments
    const size_t parts = apart ? size_t(div_up(steps, kSegmentSteps)) * std::min(rows, most) * outer : 0;
    return x_bytes() + inverse_bytes() + align_up(parts * sizeof(float), 256);
  }

 private:
  int blocks(int tile) const { return div_up(rows, tile) * div_up(outer, kOuter); }
  size_t whole_rows() const { return size_t(div_up(rows, kMostRows)) * kMostRows; }  // 512 bytes of floats at least
};

}  // namespace pi::cuda
