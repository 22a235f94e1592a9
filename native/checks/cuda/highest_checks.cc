// The choice of tokens on the device against the CPU's sampler.
#include <algorithm>
#include <cstring>

#include "checks/check.h"
#include "checks/cuda/device.h"
#include "cuda/workspace.h"
#include "engine/sampler.h"

namespace pi::checks {
namespace {

struct Tokens {
  std::vector<int32_t> token;
  std::vector<float> logit, log_sum;
};

Tokens run(const std::vector<float>& logits, int rows, const std::vector<cuda::Draw>& draws = {}) {
  const int vocab = static_cast<int>(logits.size()) / rows;
  DeviceArray<float> in(logits), logit(rows), log_sum(rows);
  DeviceArray<int32_t> token(rows);
  DeviceArray<cuda::Draw> how(draws);
  DeviceArray<uint8_t> workspace(cuda::highest_workspace(rows, vocab));
  cuda::Highest a{in.data(),    rows,         vocab,          draws.empty() ? nullptr : how.data(),
                  token.data(), logit.data(), log_sum.data(), workspace.data()};
  kernels_of_device().highest(stream(), a);
  return {token.get(), logit.get(), log_sum.get()};
}

double log_sum_exp(const float* x, int n) {
  double high = -1e300, sum = 0;
  for (int i = 0; i < n; ++i) high = std::max<double>(high, x[i]);
  for (int i = 0; i < n; ++i) sum += std::exp(x[i] - high);
  return high + std::log(sum);
}

// Against f64 and the greedy choice of the CPU.
std::string check_highest(int rows, int vocab, float scale) {
  std::vector<float> logits = random_vector(size_t(rows) * vocab, 51, scale);
  for (int t = 0; t < rows; ++t) {  // equal ones, in different parts where there are some
    float* row = &logits[size_t(t) * vocab];
    const float high = *std::max_element(row, row + vocab);
    row[(t * 977 + 13) % vocab] = row[(t * 3001 + vocab / 2) % vocab] = row[vocab - 1] = high;
  }
  const Tokens out = run(logits, rows);
  for (int t = 0; t < rows; ++t) {
    const float* row = &logits[size_t(t) * vocab];
    const Chosen expected = choose(row, vocab, Choice{}, 0);
    if (out.token[t] != expected.token)
      return "row " + std::to_string(t) + ": expected " + std::to_string(expected.token) + ", got " +
             std::to_string(out.token[t]);
    if (out.logit[t] != row[expected.token]) return "another logit";
    const double log_sum = log_sum_exp(row, vocab);
    // Differences to the highest are rounded once; sums have 16 terms and a tree of 8 levels.
    if (!(std::fabs(out.log_sum[t] - log_sum) <= 40 * 6e-8 + 1.2e-7 * std::fabs(log_sum))) {
      return "log of the sum: expected " + std::to_string(log_sum) + ", got " + std::to_string(out.log_sum[t]);
    }
    const Tokens alone = run({row, row + vocab}, 1);
    if (std::memcmp(&alone.log_sum[0], &out.log_sum[t], sizeof(float)) != 0) return "bits depend on the other rows";
  }
  return "";
}

// Some logits masked, a whole part among them.
std::string check_masked() {
  std::vector<float> logits = random_vector(9000, 52);
  std::fill_n(logits.begin(), 4200, -INFINITY);
  const Tokens out = run(logits, 1);
  if (out.token[0] != choose(logits.data(), 9000, Choice{}, 0).token) return "another token";
  return std::fabs(out.log_sum[0] - log_sum_exp(logits.data() + 4200, 4800)) < 1e-5
             ? ""
             : "log of the sum is " + std::to_string(out.log_sum[0]);
}

std::string check_nan() {
  std::vector<float> logits = random_vector(5000, 53);
  logits[7] = logits[4500] = NAN;
  logits[300] = 20;
  const Tokens some = run(logits, 1);
  if (some.token[0] != 300 || some.logit[0] != 20) return "a NaN was chosen before " + std::to_string(300);
  if (!std::isnan(some.log_sum[0])) return "the sum hides a NaN";
  const Tokens all = run(std::vector<float>(5000, NAN), 1, {{1, 3, 4}});
  return all.token[0] == 4999 && std::isnan(all.logit[0]) ? "" : "of NaNs alone, token " + std::to_string(all.token[0]);
}

// The CPU's draws: (seed, position) to token. They may differ where a draw falls between two tokens within rounding.
std::string check_draws(int vocab, float temperature, float scale) {
  const int n_rows = vocab > 100000 ? 4 : 24;
  const std::vector<float> row = random_vector(vocab, 54, scale);
  std::vector<float> logits;
  std::vector<cuda::Draw> draws;
  for (int t = 0; t < n_rows; ++t) {
    logits.insert(logits.end(), row.begin(), row.end());
    draws.push_back({t % 5 == 4 ? 0 : temperature, 100 * t, 0xfedcba9876543210u + 77 * (t / 3)});
  }
  const Tokens out = run(logits, n_rows, draws);
  int other = 0;
  for (int t = 0; t < n_rows; ++t) {
    Choice choice;
    choice.temperature = draws[t].temperature;
    choice.seed = draws[t].seed;
    const Chosen expected = choose(row.data(), vocab, choice, draws[t].position);
    other += out.token[t] != expected.token;
    if (std::abs(out.token[t] - expected.token) > 1)
      return "row " + std::to_string(t) + ": expected " + std::to_string(expected.token) + ", got " +
             std::to_string(out.token[t]);
    if (out.logit[t] != row[out.token[t]]) return "another logit";
    if (out.token[t] == expected.token && std::fabs(out.logit[t] - out.log_sum[t] - expected.logprob) > 1e-5f)
      return "another probability";
  }
  return other <= 1 ? "" : std::to_string(other) + " other tokens";
}

// Tokens that cannot be are never drawn, and one that must be always is.
std::string check_certain() {
  std::vector<float> logits(10000, -INFINITY);
  logits[4096 + 17] = -3;
  for (int position = 0; position < 8; ++position) {
    const Tokens out = run(logits, 1, {{0.7f, position, 9}});
    if (out.token[0] != 4096 + 17) return "drew " + std::to_string(out.token[0]);
  }
  return "";
}

struct Registration {
  Registration() {
    for (const int vocab : {1, 2, 100, 4096, 4097, 50257}) {
      const std::string name = std::to_string(vocab);
      Check("device: highest of " + name, [=] { return check_highest(vocab > 10000 ? 1 : 3, vocab, 3.0f); });
      Check("device: highest of " + name + ", far apart", [=] { return check_highest(1, vocab, 1e4f); });
    }
    Check("device: highest of more parts than a warp has lanes", [] { return check_highest(1, 140000, 1.0f); });
    Check("device: highest of masked logits", check_masked);
    Check("device: highest of NaN", check_nan);
    for (const int vocab : {1, 5, 300, 9001}) {
      Check("device: draws from " + std::to_string(vocab) + " as the CPU's",
            [=] { return check_draws(vocab, 0.8f, 2.0f); });
    }
    Check("device: draws at a high temperature as the CPU's", [] { return check_draws(5000, 5.0f, 2.0f); });
    Check("device: draws from more parts than a warp has lanes", [] { return check_draws(140000, 1.0f, 1.0f); });
    Check("device: draws of what is certain", check_certain);
  }
} const registration;

}  // namespace
}  // namespace pi::checks
