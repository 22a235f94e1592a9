#include "engine/head.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "quant/convert.h"

namespace pi {

// Scales are fitted: a block's errors are then at right angles to what is kept of it, so that no logit is too large or
// too small on average, and a quarter smaller than by GGUF's rule.
void Head::build(const Executor& on) {
  const size_t cols = w_.cols, blocks = cols / kQuantBlock;
  sketch_.resize(w_.rows * blocks);
  on.ranges(w_.rows, 64, [&](int begin, int end) {
    std::vector<float> row(cols);
    for (int i = begin; i < end; ++i) {
      k_.dequantize_row(w_, i, row.data());
      quant::convert(reinterpret_cast<const uint8_t*>(row.data()), DType::kF32,
                     reinterpret_cast<uint8_t*>(&sketch_[i * blocks]), DType::kQ4_0, 1, cols, false,
                     quant::Scales::kFitted, 1);
    }
  });
}

size_t Head::shortlist(const float* x, int rows, float* logits, const Executor& on) {
  if (sketch_.empty()) build(on);
  const size_t vocab = w_.rows, row_bytes = pi::row_bytes(DType::kQ4_0, w_.cols),
               quants = kernels::quantized_bytes(w_.cols);
  const kernels::Matrix sketch{reinterpret_cast<const uint8_t*>(sketch_.data()), DType::kQ4_0, row_bytes, w_.cols};
  grow(quants_, rows * quants);
  grow(tokens_, vocab);
  grow(exact_, vocab);
  for (int t = 0; t < rows; ++t) k_.quantize(x + size_t(t) * w_.cols, w_.cols, &quants_[t * quants]);
  const kernels::Activations in{x, size_t(w_.cols), quants_.data(), rows};
  on.ranges(w_.rows, 16, [&](int begin, int end) {
    k_.dot_rows({sketch, nullptr, begin, end, in, logits, vocab});
    for (int t = 0; bias_ && t < rows; ++t) k_.add(bias_ + begin, logits + t * vocab + begin, end - begin);
  });
  size_t exact = 0;
  for (int t = 0; t < rows; ++t) {
    const int count = choose(logits + t * vocab, on);
    rescore(count, {x + size_t(t) * w_.cols, 0, &quants_[t * quants], 1}, logits + t * vocab, on);
    exact += count;
  }
  return vocab * row_bytes + exact * w_.row_bytes;
}

// Leaves the shortlist of a row's logits in tokens_, ascending. @returns its length
int Head::choose(const float* logits, const Executor& on) {
  struct Chunk {
    int begin, end;
    float high;
    double sum;  // of exp(logit - high)
    int count;   // of its tokens in the shortlist
  };
  std::array<Chunk, kChunks> chunks;
  on.each(kChunks, [&](int i) {
    Chunk& c = chunks[i];
    c.begin = static_cast<int>(int64_t(w_.rows) * i / kChunks),
    c.end = static_cast<int>(int64_t(w_.rows) * (i + 1) / kChunks);
    c.high = k_.highest(logits + c.begin, c.end - c.begin);
    c.sum = k_.sum_exp(logits + c.begin, c.high, c.end - c.begin);
  });
  float high = chunks[0].high;
  for (const Chunk& c : chunks) high = std::max(high, c.high);
  double sum = 0;
  for (const Chunk& c : chunks) sum += c.sum * std::exp(c.high - high);
  const float least = high + static_cast<float>(std::min(0.0, std::log(kLeast * sum / w_.rows)));
  on.each(kChunks, [&](int i) {
    Chunk& c = chunks[i];
    c.count = 0;
    for (int token = c.begin; token < c.end; ++token) {
      tokens_[c.begin + c.count] = token;  // beyond what was chosen there is always room for one
      c.count += logits[token] >= least ? 1 : 0;
    }
  });
  int count = 0;
  for (const Chunk& c : chunks) {
    std::copy_n(&tokens_[c.begin], c.count, &tokens_[count]);
    count += c.count;
  }
  return count;
}

// Exact logits of the first `count` of tokens_.
void Head::rescore(int count, const kernels::Activations& x, float* logits, const Executor& on) {
  on.ranges(count, 16, [&](int begin, int end) {
    k_.dot_rows({w_, tokens_.data(), begin, end, x, exact_.data(), 0});
    for (int i = begin; i < end; ++i) {
      const int token = tokens_[i];
      logits[token] = exact_[i] + (bias_ ? bias_[token] : 0.0f);
    }
  });
}

}  // namespace pi
