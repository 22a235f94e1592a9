// What the GPU works in: the step's rows, and what every part of the forward pass leaves to the next.
#pragma once

#include <cstdint>

#include "cuda/arena.h"
#include "cuda/kernels.h"
#include "engine/gpu_model.h"
#include "engine/gpu_stream.h"

namespace pi {

// Rows of decoding that are computed together.
constexpr int kDecodeRows = 32;
// Logits that are computed together, and what sums are cut into whatever the device: results depend on neither it nor
// timing.
constexpr int kOutputRows = 32;
constexpr int kDownParts = 8;

// Pieces that a row's positions are cut into: more where few heads would leave multiprocessors idle.
constexpr int attention_splits(int kv_heads) { return kv_heads >= 32 ? 8 : kv_heads >= 8 ? 16 : 32; }

// What changes from step to step, one copy from page-locked memory: [step], positions, sequences, modes, tables.
struct StepState {
  uint32_t* step = nullptr;
  int32_t* positions = nullptr;  // [max_rows]
  int32_t* sequences = nullptr;  // [max_rows]
  uint8_t* modes = nullptr;      // [max_rows]
  int32_t* tables = nullptr;     // [sequences, stride]
  int stride = 0;

  StepState() = default;
  StepState(void* memory, int max_rows, int max_position);
  static size_t bytes(int max_rows, int max_position, int sequences);
};

struct GpuScratch {
  uint8_t* state = nullptr;  // StepState::bytes
  float *x = nullptr, *q = nullptr, *key = nullptr, *value = nullptr;
  cuda::DeviceRows h, ffn_in, attended;
  // Decoding.
  cuda::DeviceRows hidden;
  uint32_t* mask = nullptr;                                    // [kDecodeRows, mask words]
  int32_t *list = nullptr, *count = nullptr, *cold = nullptr;  // [most neurons]
  float* act = nullptr;                                        // [most neurons, kDecodeRows]
  uint32_t* active = nullptr;                                  // [mask words + 1], 0 between layers
  uint32_t* arrivals = nullptr;                                // [arrival_words], 0 between launches
  float* parts = nullptr;                                      // [kDownParts, kDecodeRows, dim]
  unsigned long long* counters = nullptr;                      // [n_layers, 2]
  void* attention_work = nullptr;
  // Prompts.
  float *gate = nullptr, *up = nullptr;  // [max_rows, most neurons, resident or of a streamed piece]
  float* prompt_part = nullptr;          // [max_rows, dim]
  void* gemm_work = nullptr;
  uint8_t* stream = nullptr;   // engine/gpu_stream.h
  float* stream_in = nullptr;  // [max_rows, what the host's projections read]
  uint8_t* swaps = nullptr;    // engine/replacement.h
  // Head.
  cuda::DeviceRows out;     // [kOutputRows, dim]
  float* logits = nullptr;  // [kOutputRows, vocab]
  void* highest_work = nullptr;

  GpuScratch() = default;
  static size_t arrival_words(const ModelConfig& config);
  GpuScratch(const ModelConfig& config, const DeviceModel& model, const GpuOptions& options, const StreamPlan& stream,
             int max_position, cuda::Arena& arena);
};

}  // namespace pi
