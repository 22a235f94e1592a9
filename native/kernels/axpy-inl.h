// Activations times rows of weights; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

// y[c] += Σ_r a[r] · w[r][c] over R rows in order, for one token.
template <typename W, int R>
inline void axpy_one_token(const uint8_t* const* w, const uint8_t* const* next, const float* a, float* y, int begin, int end) {
  const uint8_t *row[R], *ahead[R];  // locals: a store to y could otherwise change the caller's
  for (int r = 0; r < R; ++r) row[r] = w[r], ahead[r] = next[r];
  int c = begin;
  if constexpr (W::kBlocks) {
    for (; c < end; c += kQuantBlock) {
      prefetch_span<R>(ahead, c / kQuantBlock * sizeof(typename W::Block), 1);
      V acc[kBlockVectors];
      for (int k = 0; k < kBlockVectors; ++k) acc[k] = load(y + c + k * kLanes);
      for (int r = 0; r < R; ++r) {
        const auto& block = W::block(row[r], c);
        V q[kBlockVectors];
        unpack(block, q);
        const V s = set1(a[r] * f16(block.d));
        for (int k = 0; k < kBlockVectors; ++k) acc[k] = fma(q[k], s, acc[k]);
      }
      for (int k = 0; k < kBlockVectors; ++k) store(y + c + k * kLanes, acc[k]);
    }
  } else {
    V s[R];
    for (int r = 0; r < R; ++r) s[r] = set1(a[r]);
    for (; c + kLanes <= end; c += kLanes) {
      prefetch<R>(ahead, c * W::kBytes);
      V acc = load(y + c);
      for (int r = 0; r < R; ++r) acc = fma(W::vector(row[r], c), s[r], acc);
      store(y + c, acc);
    }
    if (c < end) {
      V acc = tail(y + c, end - c);
      for (int r = 0; r < R; ++r) acc = fma(tail<W>(row[r], c, end - c), s[r], acc);
      store_tail(y + c, acc, end - c);
    }
  }
}

// T tokens times two vectors of columns, over rows [0, n): the register tile of prefill.
template <typename W, int T>
inline void axpy_tile(const uint8_t* const* w, int n, const float* a, size_t a_stride, float* y, size_t y_stride) {
  V acc[T][2];
  for (int t = 0; t < T; ++t) {
    acc[t][0] = load(y + t * y_stride);
    acc[t][1] = load(y + t * y_stride + kLanes);
  }
  for (int i = 0; i < n; ++i) {
    const V w0 = W::vector(w[i], 0), w1 = W::vector(w[i], kLanes);
    for (int t = 0; t < T; ++t) {
      const V s = set1(a[t * a_stride + i]);
      acc[t][0] = fma(w0, s, acc[t][0]);
      acc[t][1] = fma(w1, s, acc[t][1]);
    }
  }
  for (int t = 0; t < T; ++t) {
    store(y + t * y_stride, acc[t][0]);
    store(y + t * y_stride + kLanes, acc[t][1]);
  }
}

// Rows a block of which (times the column range of one thread) stays in L2 while all tokens pass over it.
constexpr int kRowBlock = 32;

template <typename W>
inline void axpy_rows_of(const AxpyRows& o) {
  constexpr int kR = 8, kT = 4;
  const uint8_t* w[kRowBlock + kR];  // and the first rows of the next block, to prefetch
  for (int i0 = 0; i0 < o.n_rows; i0 += kRowBlock) {
    const int n = o.n_rows - i0 < kRowBlock ? o.n_rows - i0 : kRowBlock;
    for (int i = 0; i < n + kR; ++i) {
      const int at = i0 + i < o.n_rows ? i0 + i : o.n_rows - 1;
      w[i] = o.w.data + (o.rows ? o.rows[at] : at) * o.w.row_bytes;
    }
    int t = 0;
    if constexpr (!W::kBlocks) {
      const bool whole = (o.col_end - o.col_begin) % (2 * kLanes) == 0;
      for (; whole && t + kT <= o.n_tokens; t += kT) {
        for (int c = o.col_begin; c < o.col_end; c += 2 * kLanes) {
          const uint8_t* at[kRowBlock];
          for (int i = 0; i < n; ++i) at[i] = w[i] + row_bytes(o.w.type, c);
          axpy_tile<W, kT>(at, n, o.a + t * o.a_stride + i0, o.a_stride, o.y + t * o.y_stride + c, o.y_stride);
        }
      }
    }
    for (; t < o.n_tokens; ++t) {
      const float* a = o.a + t * o.a_stride + i0;
      float* y = o.y + t * o.y_stride;
      int i = 0;
      for (; i + kR <= n; i += kR) axpy_one_token<W, kR>(w + i, w + i + kR, a + i, y, o.col_begin, o.col_end);
      for (; i < n; ++i) axpy_one_token<W, 1>(w + i, w + i + 1, a + i, y, o.col_begin, o.col_end);
    }
  }
}

void axpy_rows(const AxpyRows& o) {
  with_type(o.w.type, [&](auto weights) { axpy_rows_of<decltype(weights)>(o); });
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
