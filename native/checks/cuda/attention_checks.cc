// The KV cache and attention on the device, against the CPU's kernels and an f64 twin, and its promises about bits.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "checks/cuda/sequences.h"

namespace pi::checks {
namespace {

Rows positions(int sequence, int begin, int end) {
  Rows rows;
  for (int p = begin; p < end; ++p) rows.push_back({sequence, p});
  return rows;
}

Rows operator+(Rows a, const Rows& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

std::vector<float> row_of(const std::vector<float>& x, size_t n_rows, size_t row) {
  const size_t n = x.size() / n_rows;
  return {x.begin() + row * n, x.begin() + (row + 1) * n};
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Sequences of 1, 31, 32, 33 and 500 positions; a step of the last row of each, and of two more of the longest.
std::string check_decoding(Shape shape) {
  const std::vector<int> lengths = {1, 31, 32, 33, 500};
  Sequences all(shape, lengths);
  for (int i = 0; i < 5; ++i) all.store(positions(i, 0, lengths[i]));
  const Rows rows = {{0, 0}, {1, 30}, {2, 31}, {4, 250}, {0, -1}, {3, 32}, {4, 498}, {4, 499}};
  const std::vector<float> queries = all.store(rows);
  if (const std::string problem = all.compare_caches(); !problem.empty()) return problem;
  for (const int splits : shape.group > 8 ? std::vector<int>{4} : std::vector<int>{1, 4, 16}) {
    const auto out = all.attend(rows, queries, {splits});
    const std::string problem = all.compare(rows, queries, out.x);
    if (!problem.empty()) return std::to_string(splits) + " splits: " + problem;
    if (splits != 4) continue;
    if (!same_bits(all.attend(rows, queries, {splits}).x, out.x)) return "another run has other bits";
    for (const size_t t : {0, 3, 5, 7}) {
      const auto alone = all.attend({rows[t]}, row_of(queries, rows.size(), t), {splits});
      if (!same_bits(alone.x, row_of(out.x, rows.size(), t)))
        return "bits of row " + std::to_string(t) + " depend on the others";
    }
  }
  return "";
}

// Attention that rotates and stores: the bits of a launch that stores and one that attends.
std::string check_storing(Shape shape) {
  const std::vector<int> lengths = {1, 32, 33, 180};
  Sequences apart(shape, lengths), together(shape, lengths);
  const Rows rows = {{0, 0}, {1, 31}, {0, -1}, {2, 32}, {3, 179}};
  for (Sequences* all : {&apart, &together}) {
    for (int i = 1; i < 4; ++i) all->store(positions(i, 0, lengths[i] - 1));
  }
  for (const bool quants : {false, true}) {
    if (quants && shape.n_heads() * shape.head_dim % kQuantBlock != 0) continue;
    const auto expected = apart.attend(rows, apart.store(rows), {.splits = 4, .quants = quants});
    const auto out = together.attend(rows, together.queries_of(rows), {.splits = 4, .quants = quants, .stores = true});
    if (!same_bits(out.x, expected.x)) return "the result has other bits";
    if (quants && (out.quants != expected.quants || !same_bits(out.scales, expected.scales)))
      return "the quants differ";
    if (apart.cache() != together.cache()) return "the cache has other bytes";
  }
  return "";
}

// Two prompts and two pieces of a third, with a row that is nobody's, in one step.
std::string check_prompts(Shape shape) {
  Sequences all(shape, {1, 70, 150});
  all.store(positions(2, 0, 100));
  const Rows rows =
      positions(1, 0, 70) + positions(0, 0, 1) + Rows{{0, -1}} + positions(2, 100, 131) + positions(2, 131, 150);
  const std::vector<float> queries = all.store(rows);
  const auto out = all.attend(rows, queries, {4, true});
  if (const std::string problem = all.compare(rows, queries, out.x); !problem.empty()) return problem;
  if (!same_bits(all.attend(rows, queries, {4, true}).x, out.x)) return "another run has other bits";

  // The same prompt in steps: nothing of later ones is in the cache.
  Sequences again(shape, {1, 70, 150});
  const int cuts[] = {0, 1, 18, 33, 70};
  for (int i = 0; i + 1 < 5; ++i) {
    const Rows step = positions(1, cuts[i], cuts[i + 1]);
    const std::vector<float> part = again.attend(step, again.store(step), {4, true}).x;
    const size_t n = part.size() / step.size();
    if (std::memcmp(part.data(), &out.x[cuts[i] * n], part.size() * sizeof(float)) != 0)
      return "bits depend on how the prompt was cut";
  }
  return "";
}

// The CPU's kernel on the CPU's cache. Where a rotation rounds differently a quantised key may, too.
std::string check_against_cpu(Shape shape) {
  Sequences all(shape, {77});
  all.store(positions(0, 0, 77));
  const Rows rows = {{0, 0}, {0, 31}, {0, 32}, {0, 76}};
  const std::vector<float> queries = all.store(rows);
  for (const bool prefill : {false, true}) {
    const std::vector<float> out = all.attend(rows, queries, {4, prefill}).x;
    for (size_t t = 0; t < rows.size(); ++t) {
      const std::vector<float> expected = all.attend_on_cpu(rows[t]), actual = row_of(out, rows.size(), t);
      const double step[] = {2e-5, 1e-3, 2e-2};
      for (size_t i = 0; i < expected.size(); ++i) {
        if (!(std::fabs(expected[i] - actual[i]) <= step[int(shape.type)])) {
          return "position " + std::to_string(rows[t].position) + ": expected " + std::to_string(expected[i]) +
                 ", got " + std::to_string(actual[i]);
        }
      }
    }
  }
  return "";
}

// Scores of millions: one position wins and is the result, or all are equal and it is their mean.
std::string check_saturated(KvType type, bool one_wins) {
  constexpr int kLength = 45, kWinner = 33, kDim = 64;
  Sequences all({type, 1, 2, kDim, false}, {kLength});
  std::fill(all.q.begin(), all.q.end(), 1e4f);
  std::fill(all.key.begin(), all.key.end(), one_wins ? -1e4f : 1e4f);
  if (one_wins) std::fill_n(all.key.begin() + kWinner * kDim, kDim, 1e4f);
  const Rows rows = positions(0, 0, kLength);
  const std::vector<float> queries = all.store(rows);
  for (const bool prefill : {false, true}) {
    const auto out = row_of(all.attend(rows, queries, {2, prefill}).x, kLength, kLength - 1);
    for (int i = 0; i < 2 * kDim; ++i) {
      double expected = 0;
      for (int p = 0; p < kLength; ++p)
        expected +=
            one_wins ? (p == kWinner) * all.value[p * kDim + i % kDim] : all.value[p * kDim + i % kDim] / kLength;
      const double step[] = {1e-5, 2e-3, 2e-2};  // of the type
      if (!(std::fabs(out[i] - expected) <= step[int(type)]))
        return "expected " + std::to_string(expected) + ", got " + std::to_string(out[i]);
    }
  }
  return "";
}

// Blocks of 32 columns go across heads of 40.
std::string check_quants(int head_dim, bool prefill) {
  Sequences all({KvType::kF16, 2, 4, head_dim, true}, {40});
  const Rows rows = positions(0, 0, 40);
  const std::vector<float> queries = all.store(rows);
  const auto out = all.attend(rows, queries, {4, prefill, true});
  for (size_t i = 0; i < out.x.size(); i += kQuantBlock) {
    float high = 0;
    for (int j = 0; j < kQuantBlock; ++j) high = std::max(high, std::fabs(out.x[i + j]));
    if (std::fabs(out.scales[i / kQuantBlock] - high / 127) > 1e-7f * high)
      return "scale " + std::to_string(i / kQuantBlock);
    for (int j = 0; j < kQuantBlock; ++j) {
      if (std::fabs(out.quants[i + j] - out.x[i + j] * 127 / high) > 0.501f) return "quant " + std::to_string(i + j);
    }
  }
  return "";
}

struct Registration {
  Registration() {
    const Shape shapes[] = {
        {KvType::kF16, 2, 1, 40, true},   {KvType::kF16, 1, 4, 128, true}, {KvType::kF16, 1, 71, 64, true},
        {KvType::kF32, 2, 4, 64, false},  {KvType::kF32, 1, 8, 96, true},  {KvType::kF32, 1, 1, 256, true},
        {KvType::kQ8, 2, 8, 32, true},    {KvType::kQ8, 1, 3, 72, false},  {KvType::kQ8, 1, 1, 200, true},
        {KvType::kF16, 1, 2, 256, false}, {KvType::kQ8, 1, 5, 128, true},  {KvType::kF32, 1, 3, 128, true}};
    for (const Shape& s : shapes) {
      Check("device: attention, decoding, " + s.name(), [=] { return check_decoding(s); });
      Check("device: attention that stores, " + s.name(), [=] { return check_storing(s); });
      Check("device: attention, prompts, " + s.name(), [=] { return check_prompts(s); });
      Check("device: attention as the CPU's, " + s.name(), [=] { return check_against_cpu(s); });
    }
    for (const KvType type : {KvType::kF32, KvType::kF16, KvType::kQ8}) {
      const std::string name = kKvNames[int(type)];
      Check("device: attention, scores of millions, one wins, " + name, [=] { return check_saturated(type, true); });
      Check("device: attention, scores of millions, all equal, " + name, [=] { return check_saturated(type, false); });
    }
    for (const int head_dim : {32, 40}) {
      Check("device: attention in 8 bits, heads of " + std::to_string(head_dim),
            [=] { return check_quants(head_dim, false); });
      Check("device: prompts' attention in 8 bits, heads of " + std::to_string(head_dim),
            [=] { return check_quants(head_dim, true); });
    }
  }
} const registration;

}  // namespace
}  // namespace pi::checks
