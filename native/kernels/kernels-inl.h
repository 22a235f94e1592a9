// The kernels, compiled once per instruction set: PI_ISA names the namespace that simd-<isa>.h has filled. Only plain
// loops and that vocabulary here: an inline library function compiled with these flags could be linked in elsewhere.

#include <cmath>

#include "kernels/exp-inl.h"

namespace pi::kernels::PI_ISA {
namespace {

// ---------------------------------------------------------------------------------------------------------- weights

// How a row of weights is read: a vector at a time, or a block of 32 quants with one scale.
template <DType>
struct Weights;

template <>
struct Weights<DType::kF32> {
  static constexpr DType kType = DType::kF32;
  static constexpr int kBytes = 4;
  static constexpr bool kBlocks = false;
  static V vector(const uint8_t* row, int j) { return load(reinterpret_cast<const float*>(row) + j); }
  static float element(const uint8_t* row, int j) { return reinterpret_cast<const float*>(row)[j]; }
};

template <>
struct Weights<DType::kF16> {
  static constexpr DType kType = DType::kF16;
  static constexpr int kBytes = 2;
  static constexpr bool kBlocks = false;
  static V vector(const uint8_t* row, int j) { return load_f16(reinterpret_cast<const uint16_t*>(row) + j); }
  static float element(const uint8_t* row, int j) { return f16(reinterpret_cast<const uint16_t*>(row)[j]); }
};

template <>
struct Weights<DType::kBF16> {
  static constexpr DType kType = DType::kBF16;
  static constexpr int kBytes = 2;
  static constexpr bool kBlocks = false;
  static V vector(const uint8_t* row, int j) { return load_bf16(reinterpret_cast<const uint16_t*>(row) + j); }
  static float element(const uint8_t* row, int j) { return bf16_to_f32(reinterpret_cast<const uint16_t*>(row)[j]); }
};

template <typename B>
struct BlockWeights {
  static constexpr bool kBlocks = true;
  using Block = B;
  static const B& block(const uint8_t* row, int j) { return reinterpret_cast<const B*>(row)[j / kQuantBlock]; }
};

template <>
struct Weights<DType::kQ8_0> : BlockWeights<BlockQ8_0> {};
template <>
struct Weights<DType::kQ4_0> : BlockWeights<BlockQ4_0> {};

constexpr int kBlockVectors = kQuantBlock / kLanes;

// The last n < kLanes elements of a row, padded with zeros.
template <typename W>
inline V tail(const uint8_t* row, int j, int n) {
  float buffer[kLanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = W::element(row, j + i);
  return load(buffer);
}

inline V tail(const float* x, int n) {
  float buffer[kLanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = x[i];
  return load(buffer);
}

inline void store_tail(float* y, V a, int n) {
  float buffer[kLanes];
  store(buffer, a);
  for (int i = 0; i < n; ++i) y[i] = buffer[i];
}

// Calls f with the Weights of a run-time type.
template <typename F>
inline void with_type(DType type, F&& f) {
  switch (type) {
    case DType::kF32:
      return f(Weights<DType::kF32>{});
    case DType::kF16:
      return f(Weights<DType::kF16>{});
    case DType::kBF16:
      return f(Weights<DType::kBF16>{});
    case DType::kQ8_0:
      return f(Weights<DType::kQ8_0>{});
    case DType::kQ4_0:
      return f(Weights<DType::kQ4_0>{});
    case DType::kI32:
      return;
  }
}

// ------------------------------------------------------------------------------------------------------ dot products

// Asks for the cache line of `next` that a walk along the row is level with. Rows are too short, and R of them at once
// too many streams, for the hardware to see the next group of rows coming.
template <int R>
inline void prefetch(const uint8_t* const* next, size_t offset) {
  if (offset % 64 != 0) return;
  for (int r = 0; r < R; ++r) __builtin_prefetch(next[r] + offset, 0, 2);
}

template <typename Block, int R>
inline void prefetch_blocks(const uint8_t* const* next, int j) {
  for (int r = 0; r < R; ++r) __builtin_prefetch(next[r] + j / kQuantBlock * sizeof(Block), 0, 2);
}

// y[t][r] = w[r] · x[t] for R rows and T tokens. Each pair has one accumulator that runs along the row in order, so the
// result does not depend on R and T. `next` are the rows that will be wanted after these, or null.
template <typename W, int R, int T>
inline void dot_tile(const uint8_t* const* w, const uint8_t* const* next, int cols, const float* x, size_t x_stride,
                     float* y, size_t y_stride) {
  V acc[T][R];
  for (int t = 0; t < T; ++t) {
    for (int r = 0; r < R; ++r) acc[t][r] = zero();
  }
  if constexpr (W::kBlocks) {
    for (int j = 0; j < cols; j += kQuantBlock) {
      if (next) prefetch_blocks<typename W::Block, R>(next, j);
      for (int r = 0; r < R; ++r) {
        const auto& block = W::block(w[r], j);
        V q[kBlockVectors];
        unpack(block, q);
        const V d = set1(f16(block.d));
        for (int t = 0; t < T; ++t) {
          const float* xt = x + t * x_stride + j;
          V s = mul(q[0], load(xt));
          for (int k = 1; k < kBlockVectors; ++k) s = fma(q[k], load(xt + k * kLanes), s);
          acc[t][r] = fma(d, s, acc[t][r]);
        }
      }
    }
  } else {
    int j = 0;
    for (; j + kLanes <= cols; j += kLanes) {
      if (next) prefetch<R>(next, j * W::kBytes);
      V xv[T];
      for (int t = 0; t < T; ++t) xv[t] = load(x + t * x_stride + j);
      for (int r = 0; r < R; ++r) {
        const V wv = W::vector(w[r], j);
        for (int t = 0; t < T; ++t) acc[t][r] = fma(wv, xv[t], acc[t][r]);
      }
    }
    if (j < cols) {
      for (int t = 0; t < T; ++t) {
        const V xv = tail(x + t * x_stride + j, cols - j);
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

// R rows against tokens [t0, t1): prefill.
template <typename W, int R>
inline void dot_tokens(const DotRows& o, int i, int t0, int t1) {
  constexpr int kT = W::kBlocks ? 4 : 3;
  const uint8_t* w[R];
  row_addresses<R>(o, i, w);
  int t = t0;
  for (; t + kT <= t1; t += kT) {
    dot_tile<W, R, kT>(w, nullptr, o.w.cols, o.x + t * o.x_stride, o.x_stride, o.y + t * o.y_stride + i, o.y_stride);
  }
  for (; t < t1; ++t) {
    dot_tile<W, R, 1>(w, nullptr, o.w.cols, o.x + t * o.x_stride, 0, o.y + t * o.y_stride + i, 0);
  }
}

template <typename W>
inline void dot_rows_of(const DotRows& o) {
  constexpr int kR = 4;
  if (o.n_tokens == 1) {
    // Eight rows at a time hide the latency of their single accumulators.
    int i = o.begin;
    for (; i + 2 * kR <= o.end; i += 2 * kR) dot_one_token<W, 2 * kR>(o, i);
    for (; i < o.end; ++i) dot_one_token<W, 1>(o, i);
    return;
  }
  for (int t0 = 0; t0 < o.n_tokens; t0 += kTokenBlock) {
    const int t1 = t0 + kTokenBlock < o.n_tokens ? t0 + kTokenBlock : o.n_tokens;
    int i = o.begin;
    for (; i + kR <= o.end; i += kR) dot_tokens<W, kR>(o, i, t0, t1);
    for (; i < o.end; ++i) dot_tokens<W, 1>(o, i, t0, t1);
  }
}

void dot_rows(const DotRows& o) {
  with_type(o.w.type, [&](auto weights) { dot_rows_of<decltype(weights)>(o); });
}

// -------------------------------------------------------------------------------------------------------------- AXPY

// y[c] += Σ_r a[r] · w[r][c] over R rows in order, for one token.
template <typename W, int R>
inline void axpy_one_token(const uint8_t* const* w, const uint8_t* const* next, const float* a, float* y, int begin, int end) {
  const uint8_t *row[R], *ahead[R];  // locals: a store to y could otherwise change the caller's
  for (int r = 0; r < R; ++r) row[r] = w[r], ahead[r] = next[r];
  int c = begin;
  if constexpr (W::kBlocks) {
    for (; c < end; c += kQuantBlock) {
      prefetch_blocks<typename W::Block, R>(ahead, c);
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

void dequantize_row(const Matrix& w, int row, float* out) {
  const uint8_t* data = w.data + row * w.row_bytes;
  with_type(w.type, [&](auto weights) {
    using W = decltype(weights);
    if constexpr (W::kBlocks) {
      for (int j = 0; j < w.cols; j += kQuantBlock) {
        const auto& block = W::block(data, j);
        V q[kBlockVectors];
        unpack(block, q);
        for (int k = 0; k < kBlockVectors; ++k) store(out + j + k * kLanes, mul(q[k], set1(f16(block.d))));
      }
    } else {
      for (int j = 0; j < w.cols; ++j) out[j] = W::element(data, j);
    }
  });
}

// --------------------------------------------------------------------------------------------------------- functions

template <typename F>
inline void map_vectors(float* x, int n, F&& f) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store(x + i, f(load(x + i)));
  if (i < n) store_tail(x + i, f(tail(x + i, n - i)), n - i);
}

void activate(Unary f, float threshold, float* x, int n) {
  switch (f) {
    case Unary::kRelu:
      return map_vectors(x, n, [](V a) { return max(a, zero()); });
    case Unary::kRelu2:
      return map_vectors(x, n, [](V a) { return mul(max(a, zero()), max(a, zero())); });
    case Unary::kFatRelu:
      return map_vectors(x, n, [&](V a) { return keep_ge(a, set1(threshold)); });
    case Unary::kSilu:
      return map_vectors(x, n, [](V a) { return div(a, add(set1(1.0f), exp(sub(zero(), a)))); });
    case Unary::kGelu:
      for (int i = 0; i < n; ++i) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678118654752f));
      return;
    case Unary::kGeluTanh:
      for (int i = 0; i < n; ++i) {
        x[i] = 0.5f * x[i] * (1.0f + std::tanh(0.79788456080286536f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
      }
      return;
  }
}

template <typename F>
inline float sum_over(int n, F&& f) {
  V acc = zero();
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) acc = f(acc, i, kLanes);
  if (i < n) acc = f(acc, i, n - i);
  return sum(acc);
}

inline V load_some(const float* x, int n) { return n == kLanes ? load(x) : tail(x, n); }

void rms_norm(const float* x, const float* weight, float eps, int n, float* y) {
  const float squares = sum_over(n, [&](V acc, int i, int m) {
    const V a = load_some(x + i, m);
    return fma(a, a, acc);
  });
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
  for (int i = 0; i < n; ++i) y[i] = x[i] * scale * weight[i];
}

void layer_norm(const float* x, const float* weight, const float* bias, float eps, int n, float* y) {
  const float mean = sum_over(n, [&](V acc, int i, int m) { return add(acc, load_some(x + i, m)); }) / static_cast<float>(n);
  float squares = 0;
  for (int i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.0f / std::sqrt(squares / static_cast<float>(n) + eps);
  for (int i = 0; i < n; ++i) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

void rope(float* x, int heads, int head_dim, const float* cosine, const float* sine) {
  const int half = head_dim / 2;
  for (int h = 0; h < heads; ++h, x += head_dim) {
    for (int i = 0; i < half; ++i) {
      const float a = x[i], b = x[i + half];
      x[i] = a * cosine[i] - b * sine[i];
      x[i + half] = b * cosine[i] + a * sine[i];
    }
  }
}

void add_to(const float* x, float* y, int n) {
  for (int i = 0; i < n; ++i) y[i] += x[i];
}

void multiply_to(const float* x, float* y, int n) {
  for (int i = 0; i < n; ++i) y[i] *= x[i];
}

double sum_exp(const float* x, float shift, int n) {
  constexpr int kChunk = 1024;  // short f32 sums, collected in f64
  double total = 0;
  for (int begin = 0; begin < n; begin += kChunk) {
    const int m = n - begin < kChunk ? n - begin : kChunk;
    V acc = zero();
    int i = 0;
    for (; i + kLanes <= m; i += kLanes) acc = add(acc, exp(sub(load(x + begin + i), set1(shift))));
    total += sum(acc);
    for (; i < m; ++i) total += std::exp(x[begin + i] - shift);
  }
  return total;
}

void to_f16(const float* x, uint16_t* y, int n) {
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) store_f16(y + i, load(x + i));
  for (; i < n; ++i) y[i] = f32_to_f16(x[i]);
}

// --------------------------------------------------------------------------------------------------------- attention

constexpr int kMaxTile = 64;

// Folds `n` positions into one query head's running softmax (Milakov & Gimelshein 2018; tiled as in FlashAttention):
// `out` is the sum of exp(score - max_score) * value, `total` the sum of the weights.
template <typename W>
inline void attend_tile(const float* q, int head_dim, const uint8_t* keys, const uint8_t* values, int n, float scale,
                        float& max_score, float& total, float* out) {
  constexpr int kPositions = 4;
  const size_t stride = row_bytes(W::kType, head_dim);
  float p[kMaxTile];
  for (int j = 0; j < n; j += kPositions) {
    const int m = n - j < kPositions ? n - j : kPositions;
    const uint8_t* rows[kPositions];
    for (int k = 0; k < kPositions; ++k) rows[k] = keys + (j + (k < m ? k : 0)) * stride;
    float scores[kPositions];
    dot_tile<W, kPositions, 1>(rows, nullptr, head_dim, q, 0, scores, 0);
    for (int k = 0; k < m; ++k) p[j + k] = scores[k] * scale;
  }

  float high = max_score;
  for (int j = 0; j < n; ++j) high = p[j] > high ? p[j] : high;
  map_vectors(p, n, [&](V a) { return exp(sub(a, set1(high))); });
  // The first tile starts from nothing; exp(-inf) must not be asked of the polynomial.
  const float keep = total > 0 ? std::exp(max_score - high) : 0.0f;
  max_score = high;
  total *= keep;
  for (int j = 0; j < n; ++j) total += p[j];

  const uint8_t* rows[kMaxTile];
  for (int j = 0; j < n; ++j) rows[j] = values + j * stride;
  for (int d = 0; d < head_dim; d += kLanes) {
    const int m = head_dim - d < kLanes ? head_dim - d : kLanes;
    V acc = mul(load_some(out + d, m), set1(keep));
    for (int j = 0; j < n; ++j) acc = fma(m == kLanes ? W::vector(rows[j], d) : tail<W>(rows[j], d, m), set1(p[j]), acc);
    store_tail(out + d, acc, m);
  }
}

template <typename W>
inline void attention_of(const Attention& o) {
  for (int g = 0; g < o.group; ++g) {
    const float* q = o.q + g * o.head_dim;
    float* out = o.out + g * o.head_dim;
    float max_score = -3.4e38f, total = 0;
    for (int d = 0; d < o.head_dim; ++d) out[d] = 0;
    for (int start = 0, tile = 0; start < o.n_positions; start += o.block_tokens, ++tile) {
      const int n = o.n_positions - start < o.block_tokens ? o.n_positions - start : o.block_tokens;
      const size_t offset = o.table[tile] * o.block_bytes;
      attend_tile<W>(q, o.head_dim, o.keys + offset, o.values + offset, n, o.scale, max_score, total, out);
    }
    for (int d = 0; d < o.head_dim; ++d) out[d] /= total;
  }
}

void attention(const Attention& o) {
  if (o.f16) {
    attention_of<Weights<DType::kF16>>(o);
  } else {
    attention_of<Weights<DType::kF32>>(o);
  }
}

const Table kTable = {kName,    kLanes,     dot_rows, axpy_rows, attention, dequantize_row, rms_norm,
                      layer_norm, rope, activate, add_to,    multiply_to, sum_exp, to_f16};

}  // namespace
}  // namespace pi::kernels::PI_ISA
