// What checks of a split model share: steps' rows, logits and how far they are apart, simple splits.
#pragma once

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks/hybrid/tiny_model.h"
#include "cuda/device.h"
#include "engine/engine.h"

namespace pi::checks {

// A step's rows of several sequences; sequence s has the KV blocks 5 s … 5 s + 4.
struct Rows {
  static constexpr int kBlocks = 5, kSequences = 3;
  std::vector<int32_t> tokens, positions, sequences, outputs, tables;
  std::vector<uint8_t> modes, prefill;

  Rows() {
    for (int i = 0; i < kSequences * kBlocks; ++i) tables.push_back(i * 7 % (kSequences * kBlocks));
  }
  void add(int sequence, int position, FfnMode mode, bool prompt = false, bool output = true) {
    if (output) outputs.push_back(static_cast<int32_t>(tokens.size()));
    tokens.push_back((position * 37 + sequence * 11 + 5) % 96);
    positions.push_back(position);
    sequences.push_back(sequence);
    modes.push_back(static_cast<uint8_t>(prompt ? FfnMode::kDense : mode));
    prefill.push_back(prompt);
  }
  Batch batch() const {
    Batch b;
    b.n_rows = static_cast<int>(tokens.size());
    b.tokens = tokens.data(), b.positions = positions.data(), b.sequences = sequences.data();
    b.block_tables = tables.data(), b.blocks_per_sequence = kBlocks;
    b.modes = modes.data(), b.prefill = prefill.data();
    b.n_outputs = static_cast<int>(outputs.size()), b.outputs = outputs.data();
    return b;
  }
};

inline std::vector<float> logits(Engine& engine, const Rows& rows) {
  const StepOutput out = engine.step(rows.batch());
  return {out.logits, out.logits + rows.outputs.size() * engine.config().vocab};
}

// Root mean square of the difference over that of the logits, of the worst row.
inline double distance(const std::vector<float>& a, const std::vector<float>& b, int vocab) {
  double worst = a.size() == b.size() ? 0 : 1e9;
  for (size_t row = 0; row * vocab < std::min(a.size(), b.size()); ++row) {
    double squares = 0, off = 0;
    for (int i = 0; i < vocab; ++i) {
      const size_t at = row * vocab + i;
      squares += double(a[at]) * a[at];
      off += (double(a[at]) - b[at]) * (double(a[at]) - b[at]);
      if (!std::isfinite(b[at])) return 1e9;
    }
    worst = std::max(worst, std::sqrt(off / squares));
  }
  return worst;
}

inline GpuOptions nothing(const Shape& shape) {
  GpuOptions gpu;
  gpu.layers.resize(shape.n_layers);
  gpu.vram_bytes = size_t{4} << 30;
  gpu.max_rows = 34;
  return gpu;
}

// A share of every layer's neurons; attention and head here or there by the bits of `where`.
inline GpuOptions share(const Shape& shape, double part, unsigned where) {
  GpuOptions gpu = nothing(shape);
  for (size_t layer = 0; layer < gpu.layers.size(); ++layer) {
    const int neurons = static_cast<int>(std::lround(part * shape.n_neurons));
    gpu.layers[layer] = {neurons, (where >> layer & 1) != 0, !shape.predictor.empty() && neurons > 0};
  }
  gpu.head = (where >> gpu.layers.size() & 1) != 0;
  return gpu;
}

// The same, of neurons that change places.
inline EngineOptions adapting(const TinyModel& model, double part, unsigned where) {
  EngineOptions options = model.options();
  options.gpu = share(model.shape(), part, where);
  options.gpu.adapt = true;
  return options;
}

// Rows of one sequence.
inline Rows decoding(int first, int n, FfnMode mode) {
  Rows rows;
  for (int i = 0; i < n; ++i) rows.add(0, first + i, mode);
  return rows;
}

// A kind of model by what is told of it; and two architectures that are not Llama's.
struct Kind {
  const char* name;
  Shape shape;
};
inline Kind opt() { return {"OPT, f32, MLP", {.llama = false, .n_kv_heads = 4}}; }
inline Kind falcon() {
  Shape shape{.type = DType::kF16, .predictor = "", .llama = false};
  shape.parallel = true, shape.activation = Activation::kGelu, shape.n_kv_heads = 1;
  return {"Falcon, f16, GELU", shape};
}

// What opening an engine says; empty: nothing.
inline std::string error_of(const EngineOptions& options) {
  try {
    Engine engine(options);
    return "";
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

// Empty if an engine takes no more of the device than was counted, whatever `work` it does, and a budget of one byte
// less is refused with both numbers.
template <typename F>
std::string keeps_budget(EngineOptions options, F&& work) {
  const GpuMemory memory = gpu_memory(options);
  options.gpu.vram_bytes = memory.total();
  const size_t before = cuda::open_device().device->free_bytes();
  {
    Engine engine(options);
    if (engine.gpu()->memory().total() != memory.total()) return "memory differs from what was announced";
    work(engine);
    const size_t taken = before - cuda::open_device().device->free_bytes(), promised = memory.total() - memory.context;
    if (taken > promised) return "took " + std::to_string(taken) + " bytes of " + std::to_string(promised);
  }
  options.gpu.vram_bytes = memory.total() - 1;
  const std::string error = error_of(options);
  const bool both = error.find(std::to_string(memory.total())) != std::string::npos &&
                    error.find(std::to_string(memory.total() - 1)) != std::string::npos;
  return both ? "" : "error: " + error;
}

// A model for many steps.
inline Shape small() {
  return {.dim = 32, .n_layers = 2, .n_heads = 2, .n_kv_heads = 1, .head_dim = 16, .n_neurons = 100, .rank = 16};
}

}  // namespace pi::checks
