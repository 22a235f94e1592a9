// Rows of weights times activations; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

// Asks for the cache line of `next` that a walk along the row is level with. Rows are too short, and R of them at once
// too many streams, for the hardware to see the next group of rows coming.
template <int R>
inline void prefetch(const uint8_t* const* next, size_t offset) {
  if (offset % 64 != 0) return;
  for (int r = 0; r < R; ++r) __builtin_prefetch(next[r] + offset, 0, 2);
}

// Also for rows of blocks: `bytes` from `offset` on.
template <int R>
inline void prefetch_span(const uint8_t* const* next, size_t offset, size_t bytes) {
  for (int r = 0; r < R; ++r) {
    for (size_t at = 0; at < bytes; at += 64) __builtin_prefetch(next[r] + offset + at, 0, 2);
  }
}

// y[t][r] = w[r] · x[t] for R rows and T tokens. Each pair has one accumulator that runs along the row in order, so the
// result does not depend on R and T. `next` are the rows that will be wanted after these, or null.
template <typename W, int R, int T>
inline void dot_tile(const uint8_t* const* w, const uint8_t* const* next, int cols, const Activations& x, int t0, float* y,
                     size_t y_stride) {
  V acc[T][R];
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) acc[t][r] = zero();
  }
  if constexpr (W::kBlocks) {
    using Block = typename W::Block;
    const int n = cols / kQuantBlock, whole = n / kGroup;
    const size_t stride = quantized_bytes(cols);
    const uint8_t* quants = x.quants + t0 * stride;
    for (int g = 0; g < whole; ++g) {
      if (next) prefetch_span<R>(next, g * kGroup * sizeof(Block), kGroup * sizeof(Block));
      Quants<Block> q[R];
      for (int r = 0; r < R; ++r) q[r] = load_quants(reinterpret_cast<const Block*>(w[r]) + g * kGroup);
      for (int t = 0; t < T; ++t) {
        const Acts a = load_acts(quants + t * stride + g * kGroupBytes);
        for (int r = 0; r < R; ++r) acc[t][r] = add_dot(q[r], a, acc[t][r]);
      }
    }
    if (whole * kGroup < n) {
      for (int r = 0; r < R; ++r) {
        Block padded[kGroup] = {};  // a group past the end of the row would be read past its end
        __builtin_memcpy(padded, reinterpret_cast<const Block*>(w[r]) + whole * kGroup, (n - whole * kGroup) * sizeof(Block));
        const Quants<Block> q = load_quants(padded);
        for (int t = 0; t < T; ++t) acc[t][r] = add_dot(q, load_acts(quants + t * stride + whole * kGroupBytes), acc[t][r]);
      }
    }
  } else {
    int j = 0;
    for (; j + kLanes <= cols; j += kLanes) {
      if (next) prefetch<R>(next, j * W::kBytes);
      V xv[T];
      for (int t = 0; t < T; ++t) xv[t] = load(x.x + (t0 + t) * x.stride + j);
      for (int r = 0; r < R; ++r) {
        const V wv = W::vector(w[r], j);
        for (int t = 0; t < T; ++t) acc[t][r] = fma(wv, xv[t], acc[t][r]);
      }
    }
    if (j < cols) {
      for (int t = 0; t < T; ++t) {
        const V xv = tail(x.x + (t0 + t) * x.stride + j, cols - j);
        for (int r = 0; r < R; ++r) acc[t][r] = fma(tail<W>(w[r], j, cols - j), xv, acc[t][r]);
      }
    }
  }
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) y[t * y_stride + r] = sum(acc[t][r]);
  }
}

// Tokens whose activations (of a row of 2,048) stay in a 512 KiB L2 while rows stream past.
constexpr int kTokenBlock = 48;

// Addresses of rows i … i + R - 1 of the operation; past its end, of the last one.
template <int R>
inline void row_addresses(const DotRows& o, int i, const uint8_t** out) {
  for (int r = 0; r < R; ++r) {
    const int at = i + r < o.end ? i + r : o.end - 1;
    out[r] = o.w.data + (o.rows ? o.rows[at] : at) * o.w.row_bytes;
  }
}

// R rows against one token: decoding, which streams the weights once.
template <typename W, int R>
inline void dot_one_token(const DotRows& o, int i) {
  const uint8_t *w[R], *next[R];
  row_addresses<R>(o, i, w);
  row_addresses<R>(o, i + R, next);
  dot_tile<W, R, 1>(w, next, o.w.cols, o.x, 0, o.y + i, 0);
}

// R rows against tokens [t0, t1): a batch.
template <typename W, int R>
inline void dot_tokens(const DotRows& o, int i, int t0, int t1) {
  constexpr int kT = W::kBlocks ? 4 : 3;
  const uint8_t* w[R];
  row_addresses<R>(o, i, w);
  int t = t0;
  for (; t + kT <= t1; t += kT) {
    dot_tile<W, R, kT>(w, nullptr, o.w.cols, o.x, t, o.y + t * o.y_stride + i, o.y_stride);
  }
  for (; t < t1; ++t) {
    dot_tile<W, R, 1>(w, nullptr, o.w.cols, o.x, t, o.y + t * o.y_stride + i, 0);
  }
}

template <typename W>
inline void dot_rows_of(const DotRows& o) {
  constexpr int kR = 4;
  if (o.x.n == 1) {
    // Eight rows at a time hide the latency of their single accumulators; blocks have enough to do in between.
    constexpr int kOne = W::kBlocks ? 4 : 8;
    int i = o.begin;
    for (; i + kOne <= o.end; i += kOne) dot_one_token<W, kOne>(o, i);
    for (; i < o.end; ++i) dot_one_token<W, 1>(o, i);
    return;
  }
  for (int t0 = 0; t0 < o.x.n; t0 += kTokenBlock) {
    const int t1 = t0 + kTokenBlock < o.x.n ? t0 + kTokenBlock : o.x.n;
    int i = o.begin;
    for (; i + kR <= o.end; i += kR) dot_tokens<W, kR>(o, i, t0, t1);
    for (; i < o.end; ++i) dot_tokens<W, 1>(o, i, t0, t1);
  }
}

void dot_rows(const DotRows& o) {
  with_type(o.w.type, [&](auto weights) { dot_rows_of<decltype(weights)>(o); });
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
