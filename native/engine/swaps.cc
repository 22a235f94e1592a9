#include "engine/swaps.h"

#include <algorithm>
#include <cmath>

namespace pi {
namespace {

// Fewer times say nothing.
constexpr uint32_t kLeast = 16;
// Two equal neurons' counts differ by the root of their sum (standard deviation, were rows independent); of thousands
// of them, the extremes by some four times that.
constexpr double kDeviations = 4;

bool clearly_above(uint32_t host, uint32_t gpu) {
  return host >= kLeast && host > gpu && host - gpu > kDeviations * std::sqrt(static_cast<double>(host) + gpu);
}

}  // namespace

std::vector<Swap> choose_swaps(std::span<const uint32_t> counts, int resident) {
  const int n = static_cast<int>(counts.size());
  if (resident <= 0 || resident >= n) return {};
  // Only what beats the other side's extreme has to be put in order.
  const uint32_t lowest = *std::min_element(counts.begin(), counts.begin() + resident);
  const uint32_t highest = *std::max_element(counts.begin() + resident, counts.end());
  std::vector<int32_t> here, there;
  for (int i = 0; i < resident; ++i) {
    if (clearly_above(highest, counts[i])) here.push_back(i);
  }
  for (int i = resident; i < n; ++i) {
    if (clearly_above(counts[i], lowest)) there.push_back(i);
  }
  std::stable_sort(here.begin(), here.end(), [&](int a, int b) { return counts[a] < counts[b]; });
  std::stable_sort(there.begin(), there.end(), [&](int a, int b) { return counts[a] > counts[b]; });
  std::vector<Swap> out;
  for (size_t k = 0; k < std::min(here.size(), there.size()) && clearly_above(counts[there[k]], counts[here[k]]); ++k)
    out.push_back({here[k], there[k]});
  return out;
}

}  // namespace pi
