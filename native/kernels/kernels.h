// The numeric kernels, one table of them per instruction set.
//
// Every output element is computed by the same sequence of roundings whatever the tile, thread or batch it is computed
// in: a dot product keeps one accumulator of `Table::lanes` lanes and runs along the row in order; an AXPY sum runs
// over the rows in order; a product of the prefill runs along the row in order, too, one token a lane. So logits depend
// neither on threads nor on batch composition, and skipping a neuron whose activation is zero changes nothing.
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

// Bytes of a row of `cols` activations quantised to 8 bits: 128 columns at a time, two bytes each.
constexpr size_t quantized_bytes(size_t cols) { return (cols + 127) / 128 * 256; }

// Activations [n, cols]. Rows of `quants` (Table::quantize) stand quantized_bytes(cols) apart; matrices of block types
// are multiplied with those, all others with `x`.
struct Activations {
  const float* x;
  size_t stride;
  const uint8_t* quants;
  int n;
};

// y[t * y_stride + i] = W[row(i)] · x[t],  row(i) = rows ? rows[i] : i,  begin <= i < end, t < x.n.
struct DotRows {
  Matrix w;
  const int32_t* rows;
  int begin, end;
  Activations x;
  float* y;
  size_t y_stride;
  const uint8_t* next = nullptr;  // a matrix of rows like these, whose rows are probably wanted after these
};

// y[t * y_stride + c] += sum over begin <= i < end in order of a[t * a_stride + i] * W[row(i)][c], for all columns c.
struct AxpyRows {
  Matrix w;
  const int32_t* rows;
  int begin, end;
  const float* a;
  size_t a_stride;
  int n_tokens;
  float* y;
  size_t y_stride;
};

// Tokens [first, first + n) of a tile of the prefill, to be packed one token a lane: [cols, lanes] of f32, or, for
// block types, quantised to 8 bits and 32 columns at a time. n <= Table::tile_tokens; missing tokens are packed as
// zeros.
struct PackTokens {
  const float* x;
  size_t stride;
  int n, cols;
  bool quantize;
  uint8_t* out;  // packed_bytes of one tile
};

// The same of 32 rows [n <= 32, tile_tokens] that a product left: one block of the quantised tile.
struct PackRows {
  const float* x;
  int n;
  uint8_t* out;  // block_bytes of the tile
};

// Bytes of a packed tile of `tile_tokens` tokens, whatever the instruction set. Columns are quantised to at most 16
// bits.
constexpr size_t packed_bytes(size_t cols, int tile_tokens) { return cols * tile_tokens * sizeof(float); }

// Most rows of one Gemm: what it unpacks of them stays in L2.
constexpr int kGemmPanel = 64;

// Columns of a block matrix, quantised anew to 8 bits along its rows, 32 rows at a time, so that x · W can be computed
// with integers. The error is that of Q8_0. Panels: [columns / kGemmPanel][rows / kPanelRows][Table::panel_bytes].
constexpr int kPanelRows = 1024;
struct PackColumns {
  Matrix w;
  int begin, end;  // rows, of one block: begin is a multiple of 32
  int n_rows;      // of w
  uint8_t* panels;
};

// y[i] = columns of row i, begin <= i < end, whose sign is not that of the same column of `signs` (Table::sign_bits).
struct CountSigns {
  Matrix w;  // of type bit
  int begin, end;
  const uint8_t* signs;
  int32_t* y;
};

// Prefill: y = x · Wᵀ (or x · W with `transposed`) for tiles of tokens, y packed as x is: [tiles][rows][tile_tokens].
struct Gemm {
  Matrix w;
  bool transposed;  // the output's rows are columns of w, and its inner dimension w's `n_rows` rows; x is f32
  int n_rows;       // of w
  int begin, end;   // rows of the output; at most kGemmPanel, multiples of 32 where transposed
  const uint8_t* x;
  size_t x_bytes;  // from one tile to the next
  int n_tokens;
  const uint8_t* panels;  // of [begin, end), from PackColumns where `transposed` and of a block type
  float* y;
  size_t y_stride;  // floats from one tile to the next; row r of a tile is at (r - begin) * tile_tokens
};

// How keys and values are kept. q8: integers of up to 127 and, after them, an f32 scale per position.
enum class KvType : int32_t { kF32 = 0, kF16 = 1, kQ8 = 2 };

// Positions of a KV block, and bytes of one KV head's keys (or values) of a block.
constexpr int kKvBlockTokens = 32;
constexpr size_t kv_tile_bytes(KvType type, size_t head_dim) {
  if (type == KvType::kQ8) return kKvBlockTokens * (head_dim + sizeof(float));
  return kKvBlockTokens * head_dim * (type == KvType::kF16 ? 2 : 4);
}

// One query head of one row: attends over positions [0, n_positions).
struct Query {
  const float* q;  // [head_dim]
  float* out;      // [head_dim]
  int n_positions;
};

// Attention of query heads that share one KV head of one sequence, with an online softmax over tiles of one KV block.
// Keys of a block are [head_dim, kKvBlockTokens], values [kKvBlockTokens, head_dim]. A query's result does not depend
// on the others.
struct Attention {
  const Query* queries;
  int n_queries, head_dim;
  const uint8_t* keys;    // of block 0 and this KV head
  const uint8_t* values;  // likewise
  size_t block_bytes;     // from one block to the next
  KvType type;
  const int32_t* table;  // block of each tile
  float scale;
  const uint8_t* next_keys;  // what will be read after this, or null
};

enum class Unary : int32_t { kRelu, kRelu2, kFatRelu, kSilu, kGelu, kGeluTanh };

struct Table {
  const char* name;
  int lanes;
  int tile_tokens;
  size_t tile_block_bytes, panel_bytes;  // of 32 columns of a quantised tile; of a panel of PackColumns
  void (*dot_rows)(const DotRows&);
  void (*axpy_rows)(const AxpyRows&);
  void (*quantize)(const float* x, int cols, uint8_t* out);
  // Sign bits of x as a row of type bit; `cols` is a multiple of 8.
  void (*sign_bits)(const float* x, int cols, uint8_t* out);
  void (*count_signs)(const CountSigns&);
  void (*pack_tokens)(const PackTokens&);
  void (*pack_rows)(const PackRows&);
  void (*pack_columns)(const PackColumns&);
  void (*gemm)(const Gemm&);
  void (*attention)(const Attention&);
  // Stores key and value [head_dim] of one position into slot `slot` of a block of KV cache.
  void (*store_kv)(KvType type, const float* key, const float* value, int head_dim, int slot, uint8_t* keys,
                   uint8_t* values);
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
  // The highest of x[i], n > 0.
  float (*highest)(const float* x, int n);
  // Sum over i of e^(x[i] - shift), shift >= max x.
  double (*sum_exp)(const float* x, float shift, int n);
  void (*to_f16)(const float* x, uint16_t* y, int n);
};

// The fastest table this machine runs, chosen once; PI_ISA=scalar|avx2|avx512|neon overrides for tests.
const Table& active();

// Every table this machine runs, slowest first.
const std::vector<const Table*>& available();

}  // namespace pi::kernels
