// From logits to a token.
#pragma once

#include <cstdint>
#include <vector>

namespace pi {

// Meanings and neutral values as in native/index.ts.
struct Choice {
  int32_t target = -1;
  float temperature = 0;
  int top_k = 0;
  float top_p = 1, min_p = 0;
  float repetition_penalty = 1, presence_penalty = 0, frequency_penalty = 0;
  const int32_t* history = nullptr;
  int n_history = 0, output_start = 0;
  const double* logit_bias = nullptr;  // pairs token, bias
  int n_logit_bias = 0;
  uint64_t seed = 0;
  int top_logprobs = 0;
};

struct Chosen {
  int32_t token = 0;
  float logprob = 0;
  std::vector<int32_t> top_tokens;  // most likely first; ties by lower id
  std::vector<float> top_logprobs;
};

// True when temperature alone decides, and nothing but the token and its log probability is wanted.
bool is_plain(const Choice& choice);

// Chooses from logits [vocab]. Order: logit bias, penalties, temperature, top-k, top-p, min-p, as vLLM and Hugging Face
// do. The draw depends on (seed, position) alone. Log probabilities are those of the unmodified logits.
Chosen choose(const float* logits, int vocab, const Choice& choice, int position);

}  // namespace pi
