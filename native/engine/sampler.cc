#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <unordered_map>

#include "base/random.h"
#include "kernels/kernels.h"

namespace pi {
namespace {

struct Candidate {
  int32_t token;
  float weight;  // logit, later exp(logit - max)
};

// More likely first; equal ones by lower token, so that ties have one answer.
bool more_likely(const Candidate& a, const Candidate& b) {
  return a.weight != b.weight ? a.weight > b.weight : a.token < b.token;
}

// Uniform in [0, 1), a function of seed and position.
double uniform(uint64_t seed, int position) {
  uint64_t state = seed + 0x9e3779b97f4a7c15ull * static_cast<uint64_t>(position);
  return static_cast<double>(next_random(state) >> 11) * 0x1p-53;
}

// Repetition penalty as in CTRL (Keskar et al. 2019), over prompt and output; presence and frequency as in OpenAI's
// API, over the output alone.
void penalise(std::vector<float>& logits, const Choice& c) {
  std::unordered_map<int32_t, int> in_output;
  for (int i = 0; i < c.n_history; ++i) in_output[c.history[i]] += i >= c.output_start ? 1 : 0;
  for (const auto& [token, count] : in_output) {
    float& logit = logits[token];
    logit = logit > 0 ? logit / c.repetition_penalty : logit * c.repetition_penalty;
    if (count > 0) logit -= c.presence_penalty + c.frequency_penalty * static_cast<float>(count);
  }
}

// Cuts candidates down to the smallest likely set that holds top_p of the weight, at least one.
void keep_top_p(std::vector<Candidate>& candidates, double top_p) {
  double total = 0;
  for (const Candidate& c : candidates) total += c.weight;
  // A heap yields candidates in order without sorting the many that will be dropped.
  auto end = candidates.end();
  const auto less = [](const Candidate& a, const Candidate& b) { return more_likely(b, a); };
  std::make_heap(candidates.begin(), end, less);
  double kept = 0;
  do {
    kept += candidates.front().weight;
    std::pop_heap(candidates.begin(), end, less);
    --end;
  } while (end != candidates.begin() && kept < top_p * total);
  candidates.erase(candidates.begin(), end);
  std::reverse(candidates.begin(), candidates.end());
}

int32_t sample(std::vector<Candidate>& candidates, const Choice& c, int position) {
  const bool cut = c.top_k > 0 && c.top_k < static_cast<int>(candidates.size());
  if (cut) {
    std::nth_element(candidates.begin(), candidates.begin() + c.top_k, candidates.end(), more_likely);
    candidates.resize(c.top_k);
    std::sort(candidates.begin(), candidates.end(), more_likely);
  }
  const float high = std::max_element(candidates.begin(), candidates.end(), [](auto& a, auto& b) {
                       return a.weight < b.weight;
                     })->weight;
  for (Candidate& a : candidates) a.weight = std::exp((a.weight - high) / c.temperature);
  if (c.top_p < 1) keep_top_p(candidates, c.top_p);
  // Relative to the most likely token, whose weight is 1.
  if (c.min_p > 0) std::erase_if(candidates, [&](const Candidate& a) { return a.weight < c.min_p; });
  double total = 0;
  for (const Candidate& a : candidates) total += a.weight;
  double left = uniform(c.seed, position) * total;
  for (const Candidate& a : candidates) {
    left -= a.weight;
    if (left < 0) return a.token;
  }
  return candidates.back().token;
}

void report_top(const float* logits, int vocab, double normaliser, int n, Chosen& out) {
  std::vector<Candidate> best(vocab);
  for (int i = 0; i < vocab; ++i) best[i] = {i, logits[i]};
  n = std::min(n, vocab);
  std::partial_sort(best.begin(), best.begin() + n, best.end(), more_likely);
  for (int i = 0; i < n; ++i) {
    out.top_tokens.push_back(best[i].token);
    out.top_logprobs.push_back(static_cast<float>(best[i].weight - normaliser));
  }
}

// The lowest of the tokens with the highest logit; the last one where logits are not numbers.
int32_t most_likely(const float* logits, int vocab) {
  const float* const found = std::find(logits, logits + vocab - 1, kernels::active().highest(logits, vocab));
  return static_cast<int32_t>(found - logits);
}

int32_t pick(const float* logits, int vocab, const Choice& c, int position) {
  const bool penalties = c.repetition_penalty != 1 || c.presence_penalty != 0 || c.frequency_penalty != 0;
  std::vector<float> changed;
  if (penalties || c.n_logit_bias > 0) {
    changed.assign(logits, logits + vocab);
    for (int i = 0; i < c.n_logit_bias; ++i) {
      changed[static_cast<int32_t>(c.logit_bias[2 * i])] += static_cast<float>(c.logit_bias[2 * i + 1]);
    }
    if (penalties) penalise(changed, c);
    logits = changed.data();
  }
  if (c.temperature <= 0) return most_likely(logits, vocab);
  std::vector<Candidate> candidates(vocab);
  for (int i = 0; i < vocab; ++i) candidates[i] = {i, logits[i]};
  return sample(candidates, c, position);
}

}  // namespace

bool is_plain(const Choice& c) {
  const bool penalties = c.repetition_penalty != 1 || c.presence_penalty != 0 || c.frequency_penalty != 0;
  const bool cut = c.temperature > 0 && (c.top_k > 0 || c.top_p < 1 || c.min_p > 0);
  return c.target < 0 && !penalties && !cut && c.n_logit_bias == 0 && c.top_logprobs == 0;
}

Chosen choose(const float* logits, int vocab, const Choice& choice, int position) {
  Chosen out;
  out.token = choice.target >= 0 ? choice.target : pick(logits, vocab, choice, position);
  const float high = kernels::active().highest(logits, vocab);
  const double normaliser = high + std::log(kernels::active().sum_exp(logits, high, vocab));
  out.logprob = static_cast<float>(logits[out.token] - normaliser);
  if (choice.top_logprobs > 0) report_top(logits, vocab, normaliser, choice.top_logprobs, out);
  return out;
}

}  // namespace pi
