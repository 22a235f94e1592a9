// What the engine counted while it worked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/split.h"

namespace pi {

struct BytesTouched {
  uint64_t embed = 0, attention = 0, kv = 0, predictor = 0, ffn = 0, head = 0;
};

// Wall time of steps by part, norms with what reads them; what is left of a step is embedding and bookkeeping.
struct PartSeconds {
  double attention = 0, kv = 0, ffn = 0,
         head = 0;  // projections; keys and values; predictor and FFN; head and last norm
};

// Sums over sparse rows. Without recall tracking, `active` and `hit` count the predicted neurons that really fired.
struct LayerStats {
  uint64_t rows = 0, active = 0, predicted = 0, hit = 0;
  double weighted_recall = 0;

  void add(const LayerStats& o) {
    rows += o.rows, active += o.active, predicted += o.predicted, hit += o.hit, weighted_recall += o.weighted_recall;
  }
};

// What a GPU did, and what it and the host had to tell each other.
struct GpuStats {
  // Neuron-rows of decoding that each side was asked for, and those that fired.
  uint64_t gpu_neurons = 0, cpu_neurons = 0, gpu_fired = 0, cpu_fired = 0;
  uint64_t transfers = 0, transfer_bytes = 0;  // between the two memories, weights left out
  uint64_t streamed_bytes = 0;                 // of weights that went to the GPU for prompts
  uint64_t waits = 0;                          // of the host for the GPU
  double wait_seconds = 0;
  uint64_t launches = 0;  // calls that gave the GPU work: one a step where it was recorded
  uint64_t kernels = 0;   // that recorded steps did, copies among them: each takes its turn
  // Weights and KV that decoding touched in the GPU's memory.
  BytesTouched bytes;
  uint64_t swaps = 0;         // pairs of neurons that changed places
  std::string swaps_stopped;  // why no more will; empty otherwise
};

struct EngineStats {
  uint64_t rows = 0;
  BytesTouched bytes;
  std::vector<LayerStats> layers;
  double seconds = 0;
  PartSeconds parts;
  GpuStats gpu;
};

// Per-neuron sums of one layer in integers (2^-20 fixed point), so that merging runs is exact.
struct ActivationCounts {
  static constexpr double kOne = 1 << 20;
  std::vector<uint64_t> count, magnitude, contribution;
};

}  // namespace pi
