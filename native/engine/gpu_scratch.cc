#include "engine/gpu_scratch.h"

#include <algorithm>

#include "cuda/workspace.h"
#include "engine/replacement.h"
#include "kernels/kernels.h"

namespace pi {
namespace {

using cuda::Use;

cuda::DeviceRows take_rows(cuda::Arena& arena, size_t rows, int cols) {
  return {arena.take<float>(Use::kScratch, rows * cols), arena.take<int8_t>(Use::kScratch, rows * cols),
          arena.take<float>(Use::kScratch, rows * ((cols + kQuantBlock - 1) / kQuantBlock)), cols};
}

constexpr size_t kHeaderBytes = 64;  // of the state: the step's number on a line of its own

size_t tables_offset(int max_rows) {
  return cuda::align_up(kHeaderBytes + size_t(max_rows) * (2 * sizeof(int32_t) + 1), 64);
}

}  // namespace

StepState::StepState(void* memory, int max_rows, int max_position) {
  auto* at = static_cast<uint8_t*>(memory);
  step = reinterpret_cast<uint32_t*>(at);
  positions = reinterpret_cast<int32_t*>(at + kHeaderBytes);
  sequences = positions + max_rows;
  modes = reinterpret_cast<uint8_t*>(sequences + max_rows);
  tables = reinterpret_cast<int32_t*>(at + tables_offset(max_rows));
  stride = (max_position + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
}

size_t StepState::bytes(int max_rows, int max_position, int sequences) {
  const size_t stride = (max_position + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  return tables_offset(max_rows) + sequences * stride * sizeof(int32_t);
}

size_t GpuScratch::arrival_words(const ModelConfig& c) { return cuda::arrival_words(kDecodeRows, c.n_heads, c.dim); }

GpuScratch::GpuScratch(const ModelConfig& c, const DeviceModel& model, const GpuOptions& options,
                       const StreamPlan& streamed, int max_position, cuda::Arena& arena) {
  const size_t rows = options.max_rows, decode = std::min(options.max_rows, kDecodeRows);
  bool attention = false;
  int neurons = 0, rank = 0;
  size_t gemm = streamed.product_bytes;
  const auto need = [&](const cuda::DeviceMatrix& w, bool transposed) {
    if (w) gemm = std::max(gemm, cuda::gemm_workspace(w, transposed, options.max_rows));
  };
  for (size_t layer = 0; layer < model.layers.size(); ++layer) {
    const DeviceLayer& l = model.layers[layer];
    attention = attention || options.layers[layer].attention;
    neurons = std::max(neurons, options.layers[layer].neurons);
    rank = std::max(rank, l.fc1.rows);
    for (const cuda::DeviceMatrix* w : {&l.q, &l.k, &l.v, &l.o, &l.gate, &l.up}) need(*w, false);
    need(l.down, true);
  }
  state = arena.take<uint8_t>(Use::kScratch, StepState::bytes(options.max_rows, max_position, options.max_rows));
  x = arena.take<float>(Use::kScratch, rows * c.dim);
  h = take_rows(arena, rows, c.dim);
  ffn_in = take_rows(arena, rows, c.dim);
  if (attention) {
    q = arena.take<float>(Use::kScratch, rows * c.n_heads * c.head_dim);
    key = arena.take<float>(Use::kScratch, rows * c.n_kv_heads * c.head_dim);
    value = arena.take<float>(Use::kScratch, rows * c.n_kv_heads * c.head_dim);
    attended = take_rows(arena, rows, c.n_heads * c.head_dim);
    const size_t work =
        cuda::attention_workspace(static_cast<int>(decode), c.n_heads, c.head_dim, attention_splits(c.n_kv_heads));
    attention_work = arena.take<uint8_t>(Use::kScratch, work);
  }
  if (rank > 0) hidden = take_rows(arena, decode, rank);
  mask = arena.take<uint32_t>(Use::kScratch, decode * cuda::mask_words(c.n_neurons));
  list = arena.take<int32_t>(Use::kScratch, c.n_neurons);
  count = arena.take<int32_t>(Use::kScratch, 1);
  cold = arena.take<int32_t>(Use::kScratch, 1);
  act = arena.take<float>(Use::kScratch, decode * neurons);
  active = arena.take<uint32_t>(Use::kScratch, cuda::mask_words(c.n_neurons) + 1);
  arrivals = arena.take<uint32_t>(Use::kScratch, arrival_words(c));
  parts = arena.take<float>(Use::kScratch, kDownParts * decode * c.dim);
  counters = arena.take<unsigned long long>(Use::kScratch, 2 * model.layers.size());
  const int most = std::max(neurons, streamed.most_rows);
  gate = arena.take<float>(Use::kScratch, c.gated ? rows * most : 0);
  up = arena.take<float>(Use::kScratch, rows * most);
  prompt_part = arena.take<float>(Use::kScratch, most > 0 ? rows * c.dim : 0);
  stream = arena.take<uint8_t>(Use::kScratch, streamed.device_bytes());
  stream_in = arena.take<float>(Use::kScratch, streamed.projects ? rows * std::max(c.dim, c.n_heads * c.head_dim) : 0);
  gemm_work = arena.take<uint8_t>(Use::kScratch, gemm);
  swaps = arena.take<uint8_t>(Use::kScratch, swap_bytes(model, options, c.n_neurons));
  if (!options.head) return;
  out = take_rows(arena, kOutputRows, c.dim);
  logits = arena.take<float>(Use::kScratch, size_t(kOutputRows) * c.vocab);
  highest_work = arena.take<uint8_t>(Use::kScratch, cuda::highest_workspace(kOutputRows, c.vocab));
}

}  // namespace pi
