// Norms, activations and other element-wise functions; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

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
  const float mean =
      sum_over(n, [&](V acc, int i, int m) { return add(acc, load_some(x + i, m)); }) / static_cast<float>(n);
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

float highest_of(const float* x, int n) {
  V high[kChains];  // one alone would wait for its comparisons
  for (V& h : high) h = set1(x[0]);
  int i = 0;
  for (; i + kChains * kLanes <= n; i += kChains * kLanes) {
    for (int k = 0; k < kChains; ++k) high[k] = max(high[k], load(x + i + k * kLanes));
  }
  float best = highest(max(max(high[0], high[1]), max(high[2], high[3])));
  for (; i < n; ++i) best = x[i] > best ? x[i] : best;
  return best;
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

}  // namespace
}  // namespace pi::kernels::PI_ISA
