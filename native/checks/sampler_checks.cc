// The sampler against probabilities computed by hand.
#include "checks/check.h"
#include "engine/sampler.h"

namespace pi::checks {
namespace {

// Share of `n` positions at which each token of `logits` is drawn.
std::vector<double> draw(const std::vector<float>& logits, const Choice& choice, int n = 40000) {
  std::vector<double> share(logits.size());
  for (int position = 0; position < n; ++position) {
    share[choose(logits.data(), static_cast<int>(logits.size()), choice, position).token] += 1.0 / n;
  }
  return share;
}

// Expects `share` to be near `expected`: five standard deviations of a share of 40,000 draws are below 0.0125.
std::string near(const std::vector<double>& share, const std::vector<double>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (std::fabs(share[i] - expected[i]) > 0.0125) {
      return "token " + std::to_string(i) + ": expected " + std::to_string(expected[i]) + ", drew " +
             std::to_string(share[i]);
    }
  }
  return "";
}

// Probabilities 0.5, 0.25, 0.125, 0.125.
const std::vector<float> kLogits = {std::log(4.0f), std::log(2.0f), 0.0f, 0.0f};

Choice sampled() {
  Choice choice;
  choice.temperature = 1;
  choice.seed = 11;
  return choice;
}

const Check greedy("sampler: greedy takes the first of equals", [] {
  const std::vector<float> logits = {1, 3, 3, 2};
  return choose(logits.data(), 4, Choice{}, 0).token == 1 ? "" : "took another";
});

const Check plain("sampler: temperature 1 draws the distribution", [] {
  return near(draw(kLogits, sampled()), {0.5, 0.25, 0.125, 0.125});
});

const Check cold("sampler: temperature 0.5 squares it", [] {
  Choice choice = sampled();
  choice.temperature = 0.5f;
  return near(draw(kLogits, choice), {16.0 / 22, 4.0 / 22, 1.0 / 22, 1.0 / 22});
});

const Check top_k("sampler: top-k keeps k, ties by lower token", [] {
  Choice choice = sampled();
  choice.top_k = 3;
  return near(draw(kLogits, choice), {4.0 / 7, 2.0 / 7, 1.0 / 7, 0});
});

const Check top_p("sampler: top-p keeps the smallest set", [] {
  Choice choice = sampled();
  choice.top_p = 0.7f;
  return near(draw(kLogits, choice), {2.0 / 3, 1.0 / 3, 0, 0});
});

const Check top_p_none("sampler: top-p 0 keeps the most likely", [] {
  Choice choice = sampled();
  choice.top_p = 0;
  return near(draw(kLogits, choice), {1, 0, 0, 0});
});

const Check min_p("sampler: min-p is relative to the most likely", [] {
  Choice choice = sampled();
  choice.min_p = 0.4f;
  return near(draw(kLogits, choice), {2.0 / 3, 1.0 / 3, 0, 0});
});

const Check penalties("sampler: penalties", [] {
  const int32_t history[] = {0, 1, 1};
  Choice choice = sampled();
  choice.history = history;
  choice.n_history = 3;
  choice.output_start = 1;
  choice.repetition_penalty = 2;                  // weights 4, 2 become 2, sqrt(2)
  choice.presence_penalty = std::log(2.0f) / 2;   // token 1 alone is in the output: / sqrt(2)
  choice.frequency_penalty = std::log(2.0f) / 2;  // twice: / 2
  return near(draw(kLogits, choice), {2 / 4.5, 0.5 / 4.5, 1 / 4.5, 1 / 4.5});
});

const Check bias("sampler: logit bias", [] {
  const double pairs[] = {3, std::log(4.0), 0, -100};
  Choice choice = sampled();
  choice.logit_bias = pairs;
  choice.n_logit_bias = 2;
  return near(draw(kLogits, choice), {0, 2.0 / 7, 1.0 / 7, 4.0 / 7});
});

const Check logprobs("sampler: log probabilities are of the unmodified logits", []() -> std::string {
  Choice choice = sampled();
  choice.temperature = 0.1f;
  choice.target = 2;
  choice.top_logprobs = 2;
  const Chosen chosen = choose(kLogits.data(), 4, choice, 0);
  if (chosen.token != 2 || std::fabs(chosen.logprob - std::log(0.125f)) > 1e-6f) return "of the target";
  if (chosen.top_tokens != std::vector<int32_t>{0, 1}) return "most likely tokens";
  return std::fabs(chosen.top_logprobs[1] - std::log(0.25f)) <= 1e-6f ? "" : "of the second";
});

}  // namespace
}  // namespace pi::checks
