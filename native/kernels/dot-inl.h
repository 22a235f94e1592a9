// Rows of weights times activations; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

// How far ahead of its use memory is asked for, in bytes. Rows are read one after the other, each line once and in
// order: with several rows side by side, or without asking, a core gets half of the bandwidth.
constexpr size_t kAhead = 12288;

// Into L1 and L2. Past L2 (without temporal locality) a core alone reads a quarter faster, but two beside each other
// and whole tokens are slower (docs/log.md).
inline void fetch(const uint8_t* line) { __builtin_prefetch(line, 0, 3); }

// How many rows ahead that is.
inline int rows_ahead(const Matrix& w) { return w.row_bytes < kAhead ? static_cast<int>(kAhead / w.row_bytes) : 1; }

// Lines of R rows that will be wanted, row after row.
template <int R>
struct Lines {
  const uint8_t* row[R];
  size_t row_bytes, at = 0, in_row = 0;
  int r = 0;

  // Asks for those of the first `end` bytes that were not asked for yet.
  void fetch_until(size_t end) {
    while (at < end && r < R) {
      fetch(row[r] + in_row);
      at += 64, in_row += 64;
      if (R > 1 && in_row >= row_bytes) {
        at -= in_row - row_bytes;
        in_row = 0;
        ++r;
      }
    }
  }
};

inline const uint8_t* row_address(const Matrix& w, const int32_t* rows, int i) {
  return w.data + (rows ? rows[i] : i) * w.row_bytes;
}

// Sums along a row of floats, each of every fourth vector: one alone would wait for its additions.
constexpr int kChains = 4;

// y[t][r] = w[r] · x[t] for R rows and T tokens from t0 on. Each pair's accumulators run along the row in order, so the
// result does not depend on R and T.
template <typename W, int R, int T>
[[gnu::always_inline]] inline void dot_blocks(const uint8_t* const* w, Lines<R>* ahead, int cols, const Activations& x,
                                              int t0, float* y, size_t y_stride) {
  using Block = typename W::Block;
  const int n = cols / kQuantBlock, whole = n / kGroup;
  const size_t stride = quantized_bytes(cols);
  const uint8_t* quants = x.quants + t0 * stride;
  const Reader<Block> read;
  V acc[T][R];
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) acc[t][r] = zero();
  }
  for (int g = 0; g < whole; ++g) {
    if (ahead) ahead->fetch_until((g + 1) * R * kGroup * sizeof(Block));
    Quants<Block> q[R];
    for (int r = 0; r < R; ++r) q[r] = read(reinterpret_cast<const Block*>(w[r]) + g * kGroup);
    for (int t = 0; t < T; ++t) {
      const Acts a = load_acts(quants + t * stride + g * kGroupBytes);
      for (int r = 0; r < R; ++r) acc[t][r] = add_dot(q[r], a, acc[t][r]);
    }
  }
  if (whole * kGroup < n) {
    for (int r = 0; r < R; ++r) {
      const Quants<Block> q = read(reinterpret_cast<const Block*>(w[r]) + whole * kGroup, n - whole * kGroup);
      for (int t = 0; t < T; ++t)
        acc[t][r] = add_dot(q, load_acts(quants + t * stride + whole * kGroupBytes), acc[t][r]);
    }
  }
  if (ahead) ahead->fetch_until(R * ahead->row_bytes);
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) y[t * y_stride + r] = sum(acc[t][r]);
  }
}

template <typename W, int R, int T>
[[gnu::always_inline]] inline void dot_floats(const uint8_t* const* w, Lines<R>* ahead, int cols, const Activations& x,
                                              int t0, float* y, size_t y_stride) {
  V acc[T][R][kChains];
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) {
      for (V& a : acc[t][r]) a = zero();
    }
  }
  const auto add_vector = [&](int j, int chain) {
    V xv[T];
    for (int t = 0; t < T; ++t) xv[t] = load(x.x + (t0 + t) * x.stride + j);
    for (int r = 0; r < R; ++r) {
      const V wv = W::vector(w[r], j);
      for (int t = 0; t < T; ++t) acc[t][r][chain] = fma(wv, xv[t], acc[t][r][chain]);
    }
  };
  int j = 0;
  for (; j + kChains * kLanes <= cols; j += kChains * kLanes) {
    if (ahead) ahead->fetch_until(R * (j + kChains * kLanes) * W::kBytes);
    for (int k = 0; k < kChains; ++k) add_vector(j + k * kLanes, k);
  }
  for (int k = 0; j + kLanes <= cols; j += kLanes) add_vector(j, k++);
  if (j < cols) {
    for (int t = 0; t < T; ++t) {
      const V xv = tail(x.x + (t0 + t) * x.stride + j, cols - j);
      for (int r = 0; r < R; ++r) acc[t][r][kChains - 1] = fma(tail<W>(w[r], j, cols - j), xv, acc[t][r][kChains - 1]);
    }
  }
  if (ahead) ahead->fetch_until(R * ahead->row_bytes);
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r)
      y[t * y_stride + r] = sum(add(add(acc[t][r][0], acc[t][r][1]), add(acc[t][r][2], acc[t][r][3])));
  }
}

template <typename W, int R, int T>
[[gnu::always_inline]] inline void dot_tile(const uint8_t* const* w, Lines<R>* ahead, const DotRows& o, int i, int t0) {
  float* y = o.y + t0 * o.y_stride + i;
  if constexpr (W::kBlocks) {
    dot_blocks<W, R, T>(w, ahead, o.w.cols, o.x, t0, y, o.y_stride);
  } else {
    dot_floats<W, R, T>(w, ahead, o.w.cols, o.x, t0, y, o.y_stride);
  }
}

// Fetches the first rows of a product, which its loop will not see coming.
template <typename Product>
inline void fetch_first(const Product& o, int rows) {
  for (int i = o.begin; i < o.end && i < o.begin + rows; ++i)
    Lines<1>{{row_address(o.w, o.rows, i)}, o.w.row_bytes}.fetch_until(o.w.row_bytes);
}

// One token: decoding. Row after row, while a later one is fetched, behind the last the first of what comes next.
template <typename W>
inline void dot_one_token(const DotRows& o) {
  const int distance = rows_ahead(o.w);
  fetch_first(o, distance);
  for (int i = o.begin; i < o.end; ++i) {
    const uint8_t* w[1] = {row_address(o.w, o.rows, i)};
    const int later = i + distance;
    const uint8_t* const row = later < o.end ? row_address(o.w, o.rows, later) : nullptr;
    const int next = o.begin + later - o.end;
    Lines<1> ahead{{row                      ? row
                    : o.next && next < o.end ? o.next + (o.rows ? o.rows[next] : next) * o.w.row_bytes
                                             : w[0]},
                   o.w.row_bytes};
    dot_tile<W, 1, 1>(w, &ahead, o, i, 0);
  }
}

// One token and rows of a few lines: several at once, which read the activations together.
template <typename W>
inline void dot_short_rows(const DotRows& o) {
  constexpr int kR = 4;
  const int distance = rows_ahead(o.w);
  fetch_first(o, distance);
  int i = o.begin;
  for (; i + kR <= o.end; i += kR) {
    const uint8_t* w[kR];
    for (int r = 0; r < kR; ++r) {
      w[r] = row_address(o.w, o.rows, i + r);
      const int later = i + r + distance;
      const uint8_t* ahead = row_address(o.w, o.rows, later < o.end ? later : o.end - 1);
      for (size_t at = 0; at < o.w.row_bytes; at += 64) fetch(ahead + at);
    }
    dot_tile<W, kR, 1>(w, nullptr, o, i, 0);
  }
  for (; i < o.end; ++i) {
    const uint8_t* w[1] = {row_address(o.w, o.rows, i)};
    dot_tile<W, 1, 1>(w, nullptr, o, i, 0);
  }
}

// R rows from i on against all tokens, T at a time, while the next rows are fetched.
template <typename W, int R, int T>
[[gnu::always_inline]] inline void dot_row_group(const DotRows& o, int i) {
  const uint8_t* w[R];
  Lines<R> ahead{{}, o.w.row_bytes};
  for (int r = 0; r < R; ++r) {
    w[r] = row_address(o.w, o.rows, i + r);
    ahead.row[r] = row_address(o.w, o.rows, i + R + r < o.end ? i + R + r : o.end - 1);
  }
  int t = 0;
  for (; t + T <= o.x.n; t += T) dot_tile<W, R, T>(w, t == 0 ? &ahead : nullptr, o, i, t);
  for (; t < o.x.n; ++t) dot_tile<W, R, 1>(w, t == 0 ? &ahead : nullptr, o, i, t);
}

template <typename W, int R, int T>
inline void dot_tokens(const DotRows& o) {
  fetch_first(o, R);
  int i = o.begin;
  for (; i + R <= o.end; i += R) dot_row_group<W, R, T>(o, i);
  for (; i < o.end; ++i) dot_row_group<W, 1, T>(o, i);
}

void dot_rows(const DotRows& o) {
  with_type(o.w.type, [&](auto weights) {
    using W = decltype(weights);
    if (o.x.n == 1 && o.w.row_bytes <= 256) {
      dot_short_rows<W>(o);
    } else if (o.x.n == 1) {
      dot_one_token<W>(o);
    } else {
      dot_tokens<W, W::kBlocks ? 4 : 1, 4>(o);
    }
  });
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
