// Activations times rows of weights; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

// y[c] += a · w[c] of one block.
template <typename Block>
inline void axpy_block(const Block& block, float a, float* y) {
  V q[kBlockVectors];
  unpack(block, q);
  const V s = set1(a * f16(block.d));
  for (int k = 0; k < kBlockVectors; ++k) store(y + k * kLanes, fma(q[k], s, load(y + k * kLanes)));
}

// y[c] += Σ_r a[r] · w[r][c] over R rows in order, for one token, while the rows after them are fetched.
template <typename W, int R>
inline void axpy_tile(const uint8_t* const* w, Lines<R>* ahead, int cols, const float* a, float* y) {
  const uint8_t* row[R];  // locals: a store to y could otherwise change the caller's
  float factor[R];
  for (int r = 0; r < R; ++r) row[r] = w[r], factor[r] = a[r];
  if constexpr (W::kBlocks) {
    using Block = typename W::Block;
    const FloatReader<Block> read;
    int c = 0;
    for (; c + kGroupCols <= cols; c += kGroupCols) {
      if (ahead) ahead->fetch_until(R * (c + kGroupCols) / kQuantBlock * sizeof(Block));
      V acc[kGroup * kBlockVectors];
      for (int k = 0; k < kGroup * kBlockVectors; ++k) acc[k] = load(y + c + k * kLanes);
      for (int r = 0; r < R; ++r) {
        V q[kGroup * kBlockVectors], s[kGroup];
        read(&W::block(row[r], c), set1(factor[r]), q, s);
        for (int k = 0; k < kGroup * kBlockVectors; ++k) acc[k] = fma(q[k], s[k / kBlockVectors], acc[k]);
      }
      for (int k = 0; k < kGroup * kBlockVectors; ++k) store(y + c + k * kLanes, acc[k]);
    }
    for (; c < cols; c += kQuantBlock) {
      for (int r = 0; r < R; ++r) axpy_block(W::block(row[r], c), factor[r], y + c);
    }
  } else {
    int c = 0;
    for (; c + kLanes <= cols; c += kLanes) {
      if (ahead) ahead->fetch_until(R * (c + kLanes) * W::kBytes);
      V acc = load(y + c);
      for (int r = 0; r < R; ++r) acc = fma(W::vector(row[r], c), set1(factor[r]), acc);
      store(y + c, acc);
    }
    if (c < cols) {
      V acc = tail(y + c, cols - c);
      for (int r = 0; r < R; ++r) acc = fma(tail<W>(row[r], c, cols - c), set1(factor[r]), acc);
      store_tail(y + c, acc, cols - c);
    }
  }
  if (ahead) ahead->fetch_until(R * ahead->row_bytes);
}

// R rows from i on, for every token.
template <typename W, int R>
inline void axpy_row_group(const AxpyRows& o, int i) {
  const uint8_t* w[R];
  Lines<R> ahead{{}, o.w.row_bytes};
  for (int r = 0; r < R; ++r) {
    w[r] = row_address(o.w, o.rows, i + r);
    ahead.row[r] = row_address(o.w, o.rows, i + R + r < o.end ? i + R + r : o.end - 1);
  }
  for (int t = 0; t < o.n_tokens; ++t) {
    axpy_tile<W, R>(w, t == 0 ? &ahead : nullptr, o.w.cols, o.a + t * o.a_stride + i, o.y + t * o.y_stride);
  }
}

template <typename W>
inline void axpy_rows_of(const AxpyRows& o) {
  constexpr int kR = 8;
  for (int i = o.begin; i < o.end && i < o.begin + kR; ++i) Lines<1>{{row_address(o.w, o.rows, i)}, o.w.row_bytes}.fetch_until(o.w.row_bytes);
  int i = o.begin;
  for (; i + kR <= o.end; i += kR) axpy_row_group<W, kR>(o, i);
  if (i + kR / 2 <= o.end) {
    axpy_row_group<W, kR / 2>(o, i);
    i += kR / 2;
  }
  for (; i < o.end; ++i) axpy_row_group<W, 1>(o, i);
}

void axpy_rows(const AxpyRows& o) {
  with_type(o.w.type, [&](auto weights) { axpy_rows_of<decltype(weights)>(o); });
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
