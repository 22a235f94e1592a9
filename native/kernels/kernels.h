// The numeric kernels, one table of them per instruction set.
//
// Every output element is computed by the same sequence of roundings whatever the tile, thread or batch it is computed
// in: a dot product keeps one accumulator of `Table::lanes` lanes and runs along the row in order; an AXPY sum runs over
// the rows in order. So logits depend neither on threads nor on batch composition, and skipping a neuron whose
// activation is zero changes nothing.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/types.h"

namespace pi::kernels {

// A weight matrix, or some of its rows: row r starts at data + r * row_bytes.
struct Matrix {
  const uint8_t* data;
  DType type;
  size_t row_bytes;
  int cols;
};

// y[t * y_stride + i] = W[row(i)] · x[t],  row(i) = rows ? rows[i] : i,  begin <= i < end, t < n_tokens.
struct DotRows {
  Matrix w;
  const int32_t* rows;
  int begin, end;
  const float* x;
  size_t x_stride;
  int n_tokens;
  float* y;
  size_t y_stride;
};

// y[t * y_stride + c] += sum over i < n_rows in order of a[t * a_stride + i] * W[row(i)][c],  col_begin <= c < col_end.
// For block types the column bounds are multiples of 32.
struct AxpyRows {
  Matrix w;
  const int32_t* rows;
  int n_rows;
  const float* a;
  size_t a_stride;
  int n_tokens;
  float* y;
  size_t y_stride;
  int col_begin, col_end;
};

// Attention of the `group` query heads that share one KV head, over positions [0, n_positions), with an online softmax
// over tiles of one KV block. Keys and values of a block are [block_tokens, head_dim], f32 or f16.
struct Attention {
  const float* q;  // [group, head_dim]
  int group, head_dim;
  const uint8_t* keys;    // of block 0 and this KV head
  const uint8_t* values;  // likewise
  size_t block_bytes;     // from one block to the next
  bool f16;
  const int32_t* table;  // block of each tile
  int block_tokens;      // <= 64
  int n_positions;
  float scale;
  float* out;  // [group, head_dim]
};

enum class Unary : int32_t { kRelu, kRelu2, kFatRelu, kSilu, kGelu, kGeluTanh };

struct Table {
  const char* name;
  int lanes;
  void (*dot_rows)(const DotRows&);
  void (*axpy_rows)(const AxpyRows&);
  void (*attention)(const Attention&);
  // out[c] = row `row` of w as f32.
  void (*dequantize_row)(const Matrix& w, int row, float* out);
  // y = x / rms(x) * weight.
  void (*rms_norm)(const float* x, const float* weight, float eps, int n, float* y);
  // y = (x - mean) / sqrt(var + eps) * weight + bias.
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int n, float* y);
  // Rotates `heads` heads of `head_dim` in place; cosine and sine are [head_dim / 2] of the row's position.
  void (*rope)(float* x, int heads, int head_dim, const float* cosine, const float* sine);
  // x[i] = f(x[i]); `threshold` is FATReLU's.
  void (*activate)(Unary f, float threshold, float* x, int n);
  // y[i] += x[i]
  void (*add)(const float* x, float* y, int n);
  // y[i] *= x[i]
  void (*multiply)(const float* x, float* y, int n);
  // Sum over i of e^(x[i] - shift), shift >= max x.
  double (*sum_exp)(const float* x, float shift, int n);
  void (*to_f16)(const float* x, uint16_t* y, int n);
};

// The fastest table this machine runs, chosen once; PI_ISA=scalar|avx2|avx512|neon overrides for tests.
const Table& active();

// Every table this machine runs, slowest first.
const std::vector<const Table*>& available();

}  // namespace pi::kernels
