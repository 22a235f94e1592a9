// How far one set of logits is from another.
#pragma once

#include <cstdint>
#include <vector>

namespace pi::engine {

// Per position, in nats.
struct LogitComparison {
  std::vector<double> nll_reference, nll_test;  // -log p(target)
  std::vector<double> kl;                       // KL(reference || test)
  std::vector<uint8_t> same_top;                // 1 where the most likely token (the first of equals) is the same
};

// reference, test: f32 [n, vocab]; targets: [n], each below vocab. Equal logits give a KL of exactly 0.
LogitComparison compare_logits(const float* reference, const float* test, const int32_t* targets, int n, int vocab);

}  // namespace pi::engine
