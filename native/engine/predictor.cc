#include "engine/predictor.h"

#include <algorithm>

namespace pi {

void Predictor::set_rows(const PredictorWeights& p, const kernels::Activations& x, const Executor& on) {
  x_ = x;
  if (p.signs) {
    grow(signs_, x.n * p.signs.row_bytes);
    grow(counts_, p.signs.rows);
    for (int t = 0; t < x.n; ++t) k_.sign_bits(x.x + t * x.stride, p.signs.cols, &signs_[t * p.signs.row_bytes]);
  }
  if (!p.fc1) return;
  const size_t rank = p.fc1.rows, bytes = kernels::quantized_bytes(rank);
  grow(hidden_, x.n * rank);
  grow(quants_, x.n * bytes);
  on.ranges(p.fc1.rows, 16, [&](int begin, int end) {
    k_.dot_rows({p.fc1, nullptr, begin, end, x, hidden_.data(), rank});
    for (int t = 0; t < x.n; ++t) {
      float* hidden = &hidden_[t * rank];
      if (p.fc1_bias) k_.add(p.fc1_bias + begin, hidden + begin, end - begin);
      if (!p.linear) k_.activate(kernels::Unary::kRelu, 0, hidden + begin, end - begin);
    }
  });
  for (int t = 0; p.fc2.blocks() && t < x.n; ++t) k_.quantize(&hidden_[t * rank], p.fc1.rows, &quants_[t * bytes]);
}

void Predictor::score(const PredictorWeights& p, int begin, int end, float* scores, size_t stride) {
  if (p.signs) return score_signs(p, begin, end, scores, stride);
  const kernels::Activations hidden{hidden_.data(), size_t(p.fc1.rows), quants_.data(), x_.n};
  k_.dot_rows({p.gate ? p.gate : p.fc2, nullptr, begin, end, p.gate ? x_ : hidden, scores, stride});
  const VectorView bias = p.gate ? p.gate_bias : p.fc2_bias;
  for (int t = 0; bias && t < x_.n; ++t) k_.add(bias + begin, &scores[t * stride + begin], end - begin);
}

void Predictor::score_signs(const PredictorWeights& p, int begin, int end, float* scores, size_t stride) {
  for (int t = 0; t < x_.n; ++t) {
    k_.count_signs({p.signs, begin, end, &signs_[t * p.signs.row_bytes], counts_.data()});
    for (int i = begin; i < end; ++i) {
      const float agreement = static_cast<float>(p.signs.cols - 2 * counts_[i]);
      scores[t * stride + i] = p.signs_scale[i] * agreement + p.signs_bias[i];
    }
  }
}

void predictor_scores(const PredictorWeights& p, int dim, int n_neurons, const uint16_t* hidden,
                      std::span<const int32_t> rows, float* out, int threads) {
  constexpr size_t kRows = 64;  // whose inputs stay in the second-level cache
  const kernels::Table& k = kernels::active();
  ThreadPool pool(threads);
  const Executor on{&pool};
  const size_t width = dim, bytes = kernels::quantized_bytes(width);
  Buffer<float> x(kRows * width);
  Buffer<uint8_t> quants(kRows * bytes);
  Predictor predictor(k);
  for (size_t start = 0; start < rows.size(); start += kRows) {
    const int n = static_cast<int>(std::min(kRows, rows.size() - start));
    on.each(n, [&](int t) {
      const uint16_t* from = hidden + size_t(rows[start + t]) * width;
      std::transform(from, from + width, &x[t * width], f16_to_f32);
      if (p.blocks()) k.quantize(&x[t * width], dim, &quants[t * bytes]);
    });
    predictor.set_rows(p, {x.data(), width, quants.data(), n}, on);
    float* const scores = out + start * n_neurons;
    on.ranges(n_neurons, 64, [&](int begin, int end) { predictor.score(p, begin, end, scores, n_neurons); });
  }
}

}  // namespace pi
