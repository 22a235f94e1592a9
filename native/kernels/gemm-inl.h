// Prefill: many tokens at once, one a lane; compiled once per instruction set, as kernels-inl.h is. Weights are
// unpacked a panel of rows at a time and broadcast; activations were packed by pack_tokens, or left so by the product
// before.

namespace pi::kernels::PI_ISA {
namespace {

constexpr int kTileTokens = 2 * kLanes;
constexpr int kPanel = kGemmPanel;
// Columns of a panel: 64 rows of f32 are 128 KiB, of 8 bits as much, so that a panel and a tile's share of the
// activations stay in L2.
constexpr int kPanelCols = 512, kIntPanelCols = kPanelRows;
constexpr size_t kIntBlockBytes = kQuantBlock * kTileTokens * sizeof(GemmX) + kTileTokens * sizeof(float);

// ---------------------------------------------------------------------------------------------------------- packing

// [cols][tile] of f32.
inline void pack_floats(const PackTokens& o) {
  float* out = reinterpret_cast<float*>(o.out);
  for (int j = 0; j < o.cols; ++j) {
    for (int t = 0; t < kTileTokens; ++t) out[j * kTileTokens + t] = t < o.n ? o.x[t * o.stride + j] : 0.0f;
  }
}

// Of each 32 columns: [32 / step][tile][step] integers, then the tile's scales.
inline void pack_ints(const PackTokens& o) {
  uint8_t* out = o.out;
  for (int j = 0; j < o.cols; j += kQuantBlock, out += kIntBlockBytes) {
    GemmX* ints = reinterpret_cast<GemmX*>(out);
    float* scale = reinterpret_cast<float*>(out + kQuantBlock * kTileTokens * sizeof(GemmX));
    for (int t = 0; t < kTileTokens; ++t) {
      int8_t q[kQuantBlock] = {};
      scale[t] = t < o.n ? quantize_block(o.x + t * o.stride + j, q) : 0.0f;
      for (int i = 0; i < kQuantBlock; ++i) {
        ints[(i / kGemmStep * kTileTokens + t) * kGemmStep + i % kGemmStep] = static_cast<GemmX>(q[i] + kGemmOffset);
      }
    }
  }
}

void pack_tokens(const PackTokens& o) {
  if (o.quantize) {
    pack_ints(o);
  } else {
    pack_floats(o);
  }
}

void pack_rows(const PackRows& o) {
  int8_t q[kQuantBlock][kTileTokens] = {};
  float* scale = reinterpret_cast<float*>(o.out + kQuantBlock * kTileTokens * sizeof(GemmX));
  for (int v = 0; v < kTileTokens; v += kLanes) {
    V high = zero();
    for (int i = 0; i < o.n; ++i) high = max(high, abs(load(o.x + i * kTileTokens + v)));
    // A column of zeros: zeros times a large number.
    const V inverse = div(set1(127.0f), max(high, set1(1e-30f)));
    for (int i = 0; i < o.n; ++i) store_i8(q[i] + v, mul(load(o.x + i * kTileTokens + v), inverse));
    store(scale + v, mul(max(high, set1(1e-30f)), set1(1 / 127.0f)));
  }
  GemmX* ints = reinterpret_cast<GemmX*>(o.out);
  for (int i = 0; i < kQuantBlock; i += kGemmStep) {
    for (int t = 0; t < kTileTokens; ++t) {
      for (int k = 0; k < kGemmStep; ++k) *ints++ = static_cast<GemmX>(q[i + k][t] + kGemmOffset);
    }
  }
}

// ------------------------------------------------------------------------------------------------------------- tiles

// c[r][t] += Σ_k w[r][k] x[k][t] for R rows and one or two vectors of tokens; `first`: c starts from zero. Strides of w
// are those of its rows and of k.
template <int R, int N, bool kRowsApart>
inline void float_tile(const float* w, int stride, int n, const float* x, float* c, bool first) {
  V acc[R][N];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < N; ++v) acc[r][v] = first ? zero() : load(c + r * kTileTokens + v * kLanes);
  }
  for (int k = 0; k < n; ++k) {
    V xv[N];
    for (int v = 0; v < N; ++v) xv[v] = load(x + k * kTileTokens + v * kLanes);
    for (int r = 0; r < R; ++r) {
      const V wv = set1(kRowsApart ? w[r * stride + k] : w[k * stride + r]);
      for (int v = 0; v < N; ++v) acc[r][v] = fma(wv, xv[v], acc[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < N; ++v) store(c + r * kTileTokens + v * kLanes, acc[r][v]);
  }
}

// A panel of block weights: integers, and per row and block the scale and minus the offset of the activations' share.
// The integers stand row by row, or, where they were rows of neurons, a step of all rows after the other.
struct IntPanel {
  alignas(64) GemmW w[kPanel * kIntPanelCols];
  float scale[kPanel][kIntPanelCols / kQuantBlock];
  int32_t offset[kPanel][kIntPanelCols / kQuantBlock];
};

// As float_tile, over `blocks` blocks of 32 columns; x is what pack_ints wrote.
template <int R, int N, bool kRowsApart>
inline void int_tile(const IntPanel& p, int row, int blocks, const uint8_t* x, float* c, bool first) {
  V acc[R][N];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < N; ++v) acc[r][v] = first ? zero() : load(c + r * kTileTokens + v * kLanes);
  }
  for (int b = 0; b < blocks; ++b, x += kIntBlockBytes) {
    const GemmX* ints = reinterpret_cast<const GemmX*>(x);
    const float* scale = reinterpret_cast<const float*>(x + kQuantBlock * kTileTokens * sizeof(GemmX));
    I s[R][N];
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < N; ++v) s[r][v] = set1_int(p.offset[row + r][b]);
    }
    for (int i = 0; i < kQuantBlock; i += kGemmStep, ints += kTileTokens * kGemmStep) {
      I xv[N];
      for (int v = 0; v < N; ++v) xv[v] = load_step(ints + v * kLanes * kGemmStep);
      for (int r = 0; r < R; ++r) {
        const int k = b * kQuantBlock + i;
        const I wv = load_step1(&p.w[kRowsApart ? (row + r) * kIntPanelCols + k : k * kPanel + (row + r) * kGemmStep]);
        for (int v = 0; v < N; ++v) s[r][v] = add_step(xv[v], wv, s[r][v]);
      }
    }
    for (int v = 0; v < N; ++v) {
      const V xs = load(scale + v * kLanes);
      for (int r = 0; r < R; ++r) acc[r][v] = fma(to_float(s[r][v]), mul(set1(p.scale[row + r][b]), xs), acc[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < N; ++v) store(c + r * kTileTokens + v * kLanes, acc[r][v]);
  }
}

// Calls f(rows, vectors, first row, tile) for all rows of the panel, R at a time, and all tiles of tokens; both counts
// are compile-time constants.
template <int kCount>
struct Count {
  static constexpr int value = kCount;
};
template <int R, typename F>
inline void for_tiles(int rows, int n_tokens, F&& f) {
  for (int tile = 0; tile * kTileTokens < n_tokens; ++tile) {
    const bool half = n_tokens - tile * kTileTokens <= kLanes;
    int row = 0;
    for (; row + R <= rows; row += R)
      half ? f(Count<R>{}, Count<1>{}, row, tile) : f(Count<R>{}, Count<2>{}, row, tile);
    for (; row < rows; ++row) half ? f(Count<1>{}, Count<1>{}, row, tile) : f(Count<1>{}, Count<2>{}, row, tile);
  }
}

// ------------------------------------------------------------------------------------------------------------ panels

template <typename W>
inline void unpack_floats(const uint8_t* row, int begin, int n, float* out) {
  int j = 0;
  if constexpr (W::kBlocks) {
    for (; j < n; j += kQuantBlock) {
      const auto& block = W::block(row, begin + j);
      V q[kBlockVectors];
      unpack(block, q);
      const V d = set1(f16(block.d));
      for (int k = 0; k < kBlockVectors; ++k) store(out + j + k * kLanes, mul(q[k], d));
    }
  } else {
    for (; j + kLanes <= n; j += kLanes) store(out + j, W::vector(row, begin + j));
    for (; j < n; ++j) out[j] = W::element(row, begin + j);
  }
}

using PI_ISA::unpack_bytes;
inline void unpack_bytes(const BlockQ8_0& block, int8_t* q) { __builtin_memcpy(q, block.q, sizeof block.q); }

template <typename W>
inline void unpack_panel_row(const uint8_t* row, int begin, int n, int r, IntPanel& p) {
  for (int j = 0; j < n; j += kQuantBlock) {
    const auto& block = W::block(row, begin + j);
    int8_t q[kQuantBlock];
    unpack_bytes(block, q);
    int16_t sum = 0;
    for (int i = 0; i < kQuantBlock; ++i) sum = static_cast<int16_t>(sum + q[i]);
    for (int i = 0; i < kQuantBlock; ++i) p.w[r * kIntPanelCols + j + i] = q[i];
    p.scale[r][j / kQuantBlock] = f16(block.d);
    p.offset[r][j / kQuantBlock] = -kGemmOffset * sum;
  }
}

// Quantises 32 columns of 32 rows (n of which are there) anew, along the rows, into rows of a panel from `r` on.
template <typename W>
inline void pack_square(const uint8_t* w, size_t row_bytes, int n, int col, int k, int r, IntPanel& p) {
  float values[kQuantBlock][kQuantBlock] = {};
  for (int i = 0; i < n; ++i) {
    const auto& block = W::block(w + i * row_bytes, col);
    V q[kBlockVectors];
    unpack(block, q);
    for (int v = 0; v < kBlockVectors; ++v) store(values[i] + v * kLanes, mul(q[v], set1(f16(block.d))));
  }
  int8_t ints[kQuantBlock][kQuantBlock];
  for (int v = 0; v < kQuantBlock; v += kLanes) {
    V high = set1(1e-30f);
    for (int i = 0; i < n; ++i) high = max(high, abs(load(values[i] + v)));
    const V inverse = div(set1(127.0f), high);
    for (int i = 0; i < kQuantBlock; ++i) store_i8(ints[i] + v, mul(load(values[i] + v), inverse));
    float scale[kLanes];
    store(scale, mul(high, set1(1 / 127.0f)));
    for (int c = 0; c < kLanes; ++c) p.scale[r + v + c][k / kQuantBlock] = scale[c];
  }
  int32_t sums[kQuantBlock] = {};
  for (int i = 0; i < kQuantBlock; i += kGemmStep) {
    GemmW* out = &p.w[(k + i) * kPanel + r * kGemmStep];
    for (int c = 0; c < kQuantBlock; ++c) {
      for (int step = 0; step < kGemmStep; ++step) {
        out[c * kGemmStep + step] = ints[i + step][c];
        sums[c] += ints[i + step][c];
      }
    }
  }
  for (int c = 0; c < kQuantBlock; ++c) p.offset[r + c][k / kQuantBlock] = -kGemmOffset * sums[c];
}

// Panels of one group of columns, one after the other.
inline IntPanel* column_panels(uint8_t* panels, int col, int n_rows) {
  return reinterpret_cast<IntPanel*>(panels) + col / kPanel * ((n_rows + kPanelRows - 1) / kPanelRows);
}

void pack_columns(const PackColumns& o) {
  with_type(o.w.type, [&](auto weights) {
    using W = decltype(weights);
    if constexpr (W::kBlocks) {
      for (int col = 0; col < o.w.cols; col += kQuantBlock) {
        IntPanel& panel = column_panels(o.panels, col, o.n_rows)[o.begin / kPanelRows];
        pack_square<W>(o.w.data + o.begin * o.w.row_bytes, o.w.row_bytes, o.end - o.begin, col, o.begin % kPanelRows,
                       col % kPanel, panel);
      }
    }
  });
}

template <bool kRowsApart>
inline void multiply_panel(const Gemm& o, const IntPanel& panel, int k0, int n) {
  for_tiles<kIntGemmRows>(o.end - o.begin, o.n_tokens, [&](auto count, auto vectors, int row, int tile) {
    int_tile<count.value, vectors.value, kRowsApart>(panel, row, n / kQuantBlock,
                                                     o.x + tile * o.x_bytes + k0 / kQuantBlock * kIntBlockBytes,
                                                     o.y + tile * o.y_stride + row * kTileTokens, k0 == 0);
  });
}

template <typename W>
void gemm_ints(const Gemm& o) {
  const int inner = o.transposed ? (o.n_rows + kQuantBlock - 1) / kQuantBlock * kQuantBlock : o.w.cols;
  const IntPanel* packed = o.transposed ? column_panels(const_cast<uint8_t*>(o.panels), o.begin, o.n_rows) : nullptr;
  for (int k0 = 0; k0 < inner; k0 += kIntPanelCols) {
    const int n = inner - k0 < kIntPanelCols ? inner - k0 : kIntPanelCols;
    if (o.transposed) {
      multiply_panel<false>(o, packed[k0 / kIntPanelCols], k0, n);
      continue;
    }
    IntPanel panel;
    for (int r = 0; r < o.end - o.begin; ++r)
      unpack_panel_row<W>(o.w.data + (o.begin + r) * o.w.row_bytes, k0, n, r, panel);
    multiply_panel<true>(o, panel, k0, n);
  }
}

template <typename W, bool kRowsApart>
void gemm_floats(const Gemm& o) {
  alignas(64) float panel[kPanel * kPanelCols];
  const int rows = o.end - o.begin, cols = kRowsApart ? o.w.cols : o.n_rows;
  for (int k0 = 0; k0 < cols; k0 += kPanelCols) {
    const int n = cols - k0 < kPanelCols ? cols - k0 : kPanelCols;
    if (kRowsApart) {
      for (int r = 0; r < rows; ++r)
        unpack_floats<W>(o.w.data + (o.begin + r) * o.w.row_bytes, k0, n, panel + r * kPanelCols);
    } else {
      for (int k = 0; k < n; ++k)
        unpack_floats<W>(o.w.data + (k0 + k) * o.w.row_bytes, o.begin, rows, panel + k * kPanel);
    }
    for_tiles<kGemmRows>(rows, o.n_tokens, [&](auto count, auto vectors, int row, int tile) {
      const float* x = reinterpret_cast<const float*>(o.x + tile * o.x_bytes) + size_t(k0) * kTileTokens;
      float_tile<count.value, vectors.value, kRowsApart>(panel + row * (kRowsApart ? kPanelCols : 1),
                                                         kRowsApart ? kPanelCols : kPanel, n, x,
                                                         o.y + tile * o.y_stride + row * kTileTokens, k0 == 0);
    });
  }
}

void gemm(const Gemm& o) {
  with_type(o.w.type, [&](auto weights) {
    using W = decltype(weights);
    if constexpr (W::kBlocks) {
      gemm_ints<W>(o);
    } else if (o.transposed) {
      gemm_floats<W, false>(o);
    } else {
      gemm_floats<W, true>(o);
    }
  });
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
