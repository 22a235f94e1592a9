// Activations times rows of weights; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

// Most blocks of a tile: of R rows.
constexpr int kAxpyBlocks = 1024;

// In place of Lines, where there is nothing to fetch.
struct Fetched {
  static constexpr size_t row_bytes = 0;
  void fetch_until(size_t) const {}
};

// y[c] += Σ_r a[r] · w[r][c] over R rows of blocks in order, from column `begin` on. The blocks' scales times a[r] come
// first: read one at a time between the quants they would cost more than those.
template <typename W, int R, typename Ahead>
[[gnu::always_inline]] inline void axpy_blocks(const uint8_t* const* w, Ahead& ahead, int begin, int end,
                                               const float* a, float* y) {
  using Block = typename W::Block;
  const FloatReader<Block> read;
  const int n = (end - begin) / kQuantBlock;
  const Block* row[R];
  float factors[R][kAxpyBlocks / R];
  for (int r = 0; r < R; ++r) {
    row[r] = &W::block(w[r], begin);
    int b = 0;
    for (; b + kGroup <= n; b += kGroup) read.scales(row[r] + b, a[r], factors[r] + b);
    for (; b < n; ++b) factors[r][b] = f16(row[r][b].d) * a[r];
  }
  for (int b = 0; b < n; ++b) {
    ahead.fetch_until(R * (begin / kQuantBlock + b + 1) * sizeof(Block));
    float* const at = y + begin + b * kQuantBlock;
    V acc[kBlockVectors];
    for (int k = 0; k < kBlockVectors; ++k) acc[k] = load(at + k * kLanes);
    for (int r = 0; r < R; ++r) {
      V q[kBlockVectors];
      read.quants(row[r][b], q);
      const V factor = set1(factors[r][b]);
      for (int k = 0; k < kBlockVectors; ++k) acc[k] = fma(q[k], factor, acc[k]);
    }
    for (int k = 0; k < kBlockVectors; ++k) store(at + k * kLanes, acc[k]);
  }
}

template <typename W, int R, typename Ahead>
[[gnu::always_inline]] inline void axpy_floats(const uint8_t* const* w, Ahead& ahead, int cols, const float* a,
                                               float* y) {
  const uint8_t* row[R];  // locals: a store to y could otherwise change the caller's
  float factor[R];
  for (int r = 0; r < R; ++r) row[r] = w[r], factor[r] = a[r];
  int c = 0;
  for (; c + kLanes <= cols; c += kLanes) {
    ahead.fetch_until(R * (c + kLanes) * W::kBytes);
    V acc = load(y + c);
    for (int r = 0; r < R; ++r) acc = fma(W::vector(row[r], c), set1(factor[r]), acc);
    store(y + c, acc);
  }
  if (c == cols) return;
  V acc = tail(y + c, cols - c);
  for (int r = 0; r < R; ++r) acc = fma(tail<W>(row[r], c, cols - c), set1(factor[r]), acc);
  store_tail(y + c, acc, cols - c);
}

// y += Σ_r a[r] · w[r] of one token.
template <typename W, int R, typename Ahead>
[[gnu::always_inline]] inline void axpy_tile(const uint8_t* const* w, Ahead& ahead, int cols, const float* a,
                                             float* y) {
  if constexpr (W::kBlocks) {
    constexpr int kCols = kAxpyBlocks / R * kQuantBlock;
    for (int c = 0; c < cols; c += kCols) axpy_blocks<W, R>(w, ahead, c, cols < c + kCols ? cols : c + kCols, a, y);
  } else {
    axpy_floats<W, R>(w, ahead, cols, a, y);
  }
  ahead.fetch_until(R * ahead.row_bytes);
}

// R rows from i on, for every token, while those `distance` rows later are fetched.
template <typename W, int R>
inline void axpy_row_group(const AxpyRows& o, int i, int distance) {
  const uint8_t* w[R];
  Lines<R> ahead{{}, o.w.row_bytes};
  for (int r = 0; r < R; ++r) {
    const int later = i + distance + r;
    w[r] = row_address(o.w, o.rows, i + r);
    ahead.row[r] = row_address(o.w, o.rows, later < o.end ? later : o.end - 1);
  }
  axpy_tile<W, R>(w, ahead, o.w.cols, o.a + i, o.y);
  for (int t = 1; t < o.n_tokens; ++t) {
    Fetched fetched;
    axpy_tile<W, R>(w, fetched, o.w.cols, o.a + t * o.a_stride + i, o.y + t * o.y_stride);
  }
}

// Rows from i on, R at a time, so that the sum is read and written less often, as long as they stay in L1 while as many
// bytes again are fetched; what is left over by smaller groups.
template <typename W, int R>
inline void axpy_groups(const AxpyRows& o, int i, int distance) {
  if (R == 1 || R * o.w.row_bytes <= kAhead) {
    for (; i + R <= o.end; i += R) axpy_row_group<W, R>(o, i, distance);
  }
  if constexpr (R > 1) axpy_groups<W, R / 2>(o, i, distance);
}

void axpy_rows(const AxpyRows& o) {
  const int distance = rows_ahead(o.w);
  fetch_first(o, distance);
  with_type(o.w.type, [&](auto weights) { axpy_groups<decltype(weights), 8>(o, o.begin, distance); });
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
