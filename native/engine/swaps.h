// Which neurons should change places between host and GPU, by how often they were asked for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pi {

// Positions in a layer, the GPU's and the host's.
struct Swap {
  int32_t gpu, host;
};

// The GPU has neurons [0, resident). Pairs the host's most often asked for with the GPU's least often asked for, and so
// on while the difference is more than chance makes of equal ones; best first. counts[i]: how often neuron i was, in
// the rows that count.
std::vector<Swap> choose_swaps(std::span<const uint32_t> counts, int resident);

}  // namespace pi
