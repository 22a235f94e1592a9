#include "engine/head.h"

#include <algorithm>
#include <cstdlib>
#include <functional>

namespace pi {
namespace {

// The block in four bits: q ≈ 16 * nibble, with the sign that gives the largest quant its place at -8 (there is no +8).
BlockQ4_0 sketch_block(const BlockQ8_0& block) {
  int high = 0;
  for (const int8_t q : block.q) high = std::abs(q) > std::abs(high) ? q : high;
  const int sign = high > 0 ? -1 : 1;
  const auto nibble = [&](int i) { return std::clamp((sign * block.q[i] + 8) >> 4, -8, 7) + 8; };
  BlockQ4_0 out;
  out.d = f32_to_f16(f16_to_f32(block.d) * static_cast<float>(16 * sign));
  for (int i = 0; i < kQuantBlock / 2; ++i) out.q[i] = static_cast<uint8_t>(nibble(i) | nibble(i + kQuantBlock / 2) << 4);
  return out;
}

}  // namespace

void Head::build(const Executor& on) {
  const size_t blocks = size_t(w_.cols) / kQuantBlock;
  sketch_.resize(w_.rows * blocks);
  on.ranges(w_.rows, 64, [&](int begin, int end) {
    const BlockQ8_0* from = reinterpret_cast<const BlockQ8_0*>(w_.data);
    for (size_t i = begin * blocks; i < end * blocks; ++i) sketch_[i] = sketch_block(from[i]);
  });
}

size_t Head::shortlist(const float* x, int rows, float* logits, const Executor& on) {
  if (sketch_.empty()) build(on);
  const size_t row_bytes = pi::row_bytes(DType::kQ4_0, w_.cols), quants = kernels::quantized_bytes(w_.cols);
  const kernels::Matrix sketch{reinterpret_cast<const uint8_t*>(sketch_.data()), DType::kQ4_0, row_bytes, w_.cols};
  grow(quants_, rows * quants);
  for (int t = 0; t < rows; ++t) k_.quantize(x + size_t(t) * w_.cols, w_.cols, &quants_[t * quants]);
  const kernels::Activations in{x, size_t(w_.cols), quants_.data(), rows};
  on.ranges(w_.rows, 16, [&](int begin, int end) {
    k_.dot_rows({sketch, nullptr, begin, end, in, logits, size_t(w_.rows)});
    for (int t = 0; bias_ && t < rows; ++t) k_.add(bias_ + begin, logits + size_t(t) * w_.rows + begin, end - begin);
  });
  on.each(rows * kChunks, [&](int task) {
    const int t = task / kChunks;
    rescore(task % kChunks, {x + size_t(t) * w_.cols, 0, &quants_[t * quants], 1}, logits + size_t(t) * w_.rows);
  });
  return w_.rows * row_bytes + rows * kChunks * kept() * w_.row_bytes;
}

// Replaces a chunk's highest logits by exact ones; of equal ones, those of lower tokens.
void Head::rescore(int chunk, const kernels::Activations& x, float* logits) const {
  std::vector<float> values;
  values.reserve(w_.rows / kChunks + 1);
  for (int token = chunk; token < w_.rows; token += kChunks) values.push_back(logits[token]);
  std::vector<float> ranked = values;
  std::nth_element(ranked.begin(), ranked.begin() + kept() - 1, ranked.end(), std::greater<>());
  const float least = ranked[kept() - 1];
  int above = 0;  // strictly
  for (int i = 0; i < kept(); ++i) above += ranked[i] > least ? 1 : 0;
  std::vector<int32_t> tokens;
  for (size_t i = 0; i < values.size(); ++i) {
    const bool tie = values[i] == least && above < kept();
    above += tie ? 1 : 0;
    if (values[i] > least || tie) tokens.push_back(static_cast<int32_t>(i) * kChunks + chunk);
  }
  std::vector<float> exact(tokens.size());
  k_.dot_rows({w_, tokens.data(), 0, static_cast<int>(tokens.size()), x, exact.data(), 0});
  for (size_t i = 0; i < tokens.size(); ++i) logits[tokens[i]] = exact[i] + (bias_ ? bias_[tokens[i]] : 0.0f);
}

}  // namespace pi
