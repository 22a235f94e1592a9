// The head's shortlist against the whole head.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "checks/check.h"
#include "engine/head.h"
#include "quant/convert.h"

namespace pi::checks {
namespace {

// A head in q8_0 of an odd size, with biases, and rows to multiply.
struct Fixture {
  static constexpr int kVocab = 1003, kDim = 96, kRows = 3;
  std::vector<uint8_t> bytes;
  std::vector<float> bias, x;
  MatrixView view;

  explicit Fixture(float scale)
      : bytes(kVocab * row_bytes(DType::kQ8_0, kDim)),
        bias(random_vector(kVocab, 2)),
        x(random_vector(kRows * kDim, 3, scale)) {
    const std::vector<float> weights = random_vector(kVocab * kDim, 1);
    quant::convert(reinterpret_cast<const uint8_t*>(weights.data()), DType::kF32, bytes.data(), DType::kQ8_0, kVocab,
                   kDim, false, quant::Scales::kPlain, 1);
    view.data = bytes.data();
    view.type = DType::kQ8_0;
    view.row_bytes = row_bytes(DType::kQ8_0, kDim);
    view.rows = kVocab;
    view.cols = kDim;
  }

  std::vector<float> whole(const kernels::Table& k) const {
    std::vector<float> logits(kRows * kVocab);
    for (int t = 0; t < kRows; ++t) {
      Buffer<uint8_t> quants(kernels::quantized_bytes(kDim));
      k.quantize(&x[t * kDim], kDim, quants.data());
      float* const y = &logits[t * kVocab];
      k.dot_rows({view, nullptr, 0, kVocab, {&x[t * kDim], kDim, quants.data(), 1}, y, kVocab});
      for (int i = 0; i < kVocab; ++i) y[i] += bias[i];
    }
    return logits;
  }

  std::vector<float> listed(const kernels::Table& k, int first, int rows, int threads, size_t* read = nullptr) const {
    std::unique_ptr<ThreadPool> pool = threads > 0 ? std::make_unique<ThreadPool>(threads) : nullptr;
    Head head(view, bias.data(), k);
    std::vector<float> logits(rows * kVocab);
    const size_t bytes_read = head.shortlist(&x[first * kDim], rows, logits.data(), Executor{pool.get()});
    if (read) *read = bytes_read;
    return logits;
  }
};

// Likely tokens have the whole head's logits to the bit, the others' are within what a block's rounding can do.
std::string check_exactness(float scale) {
  const kernels::Table& k = kernels::active();
  const Fixture f(scale);
  const std::vector<float> whole = f.whole(k);
  size_t read = 0;
  const std::vector<float> listed = f.listed(k, 0, Fixture::kRows, 2, &read);
  size_t exact = 0;
  for (int t = 0; t < Fixture::kRows; ++t) {
    const float *want = &whole[t * Fixture::kVocab], *got = &listed[t * Fixture::kVocab];
    double mean = 0, norm = 0;
    for (int i = 0; i < Fixture::kVocab; ++i) mean += std::exp(double(got[i])) / Fixture::kVocab;
    for (int c = 0; c < Fixture::kDim; ++c) norm += std::fabs(f.x[t * Fixture::kDim + c]);
    const double cut = std::log(Head::kLeast * mean);
    for (int i = 0; i < Fixture::kVocab; ++i) {
      exact += got[i] == want[i] ? 1 : 0;
      // Random weights are below 4.5; a nibble's step is an eighth of the largest, and half of it, or a value cut off,
      // is lost.
      if (std::fabs(got[i] - want[i]) > 4.5 / 8 * norm)
        return "token " + std::to_string(i) + ": " + std::to_string(got[i]) + ", whole " + std::to_string(want[i]);
      // Rescoring moves the cut a little: what is well above it must be exact.
      if (got[i] > cut + 0.5 && got[i] != want[i]) return "likely token " + std::to_string(i) + " keeps its estimate";
    }
    const auto best = [](const float* from) { return std::max_element(from, from + Fixture::kVocab) - from; };
    if (best(want) != best(got)) return "another token is likeliest";
  }
  const size_t sketch = Fixture::kVocab * row_bytes(DType::kQ4_0, Fixture::kDim);
  if (read > sketch + exact * f.view.row_bytes)
    return "says to have read " + std::to_string(read) + " bytes for " + std::to_string(exact) + " exact tokens";
  if (exact == 0 || (scale >= 0.3f && exact > Fixture::kRows * Fixture::kVocab / 3))
    return std::to_string(exact) + " tokens are exact";
  return "";
}

std::string check_independence() {
  const kernels::Table& k = kernels::active();
  const Fixture f(0.3f);
  const std::vector<float> all = f.listed(k, 0, Fixture::kRows, 1);
  for (int threads : {0, 2, 5}) {
    if (f.listed(k, 0, Fixture::kRows, threads) != all)
      return "other logits with " + std::to_string(threads) + " threads";
  }
  for (int t = 0; t < Fixture::kRows; ++t) {
    const std::vector<float> alone = f.listed(k, t, 1, 3);
    if (std::memcmp(alone.data(), &all[t * Fixture::kVocab], alone.size() * sizeof(float)) != 0)
      return "row " + std::to_string(t) + " alone has other logits";
  }
  return "";
}

// Zeros are all alike: all are exact, and none is missing.
std::string check_alike() { return check_exactness(0.0f); }

const Check exact("head: likely tokens of the shortlist are exact, others near", [] { return check_exactness(0.3f); });
const Check sharp("head: one token far above all others", [] { return check_exactness(20.0f); });
const Check alike("head: nothing but biases", check_alike);
const Check independent("head: a row's shortlist depends neither on threads nor on other rows", check_independence);

}  // namespace
}  // namespace pi::checks
