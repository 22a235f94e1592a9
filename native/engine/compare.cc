#include "engine/compare.h"

#include <algorithm>
#include <cmath>

namespace pi::engine {

LogitComparison compare_logits(const float* reference, const float* test, const int32_t* targets, int n, int vocab) {
  LogitComparison out;
  out.nll_reference.resize(n);
  out.nll_test.resize(n);
  out.kl.resize(n);
  out.same_top.resize(n);
  for (int row = 0; row < n; ++row, reference += vocab, test += vocab) {
    const float* top_r = std::max_element(reference, reference + vocab);
    const float* top_t = std::max_element(test, test + vocab);
    // Exponentials in f32, sums in f64: each term is off by 2^-24 of itself at most.
    double sum_r = 0, sum_t = 0, difference = 0;
    for (int i = 0; i < vocab; ++i) {
      const double e = std::exp(reference[i] - *top_r);
      sum_r += e;
      sum_t += std::exp(test[i] - *top_t);
      difference += e * (static_cast<double>(reference[i]) - test[i]);
    }
    const double log_sum_r = *top_r + std::log(sum_r), log_sum_t = *top_t + std::log(sum_t);
    out.nll_reference[row] = log_sum_r - reference[targets[row]];
    out.nll_test[row] = log_sum_t - test[targets[row]];
    out.kl[row] = std::max(0.0, difference / sum_r - (log_sum_r - log_sum_t));
    out.same_top[row] = top_r - reference == top_t - test;
  }
  return out;
}

}  // namespace pi::engine
