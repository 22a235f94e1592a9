// One decoder-only transformer with its KV cache and thread pool.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "engine/config.h"
#include "engine/ffn.h"
#include "engine/head.h"
#include "engine/kv_cache.h"
#include "engine/prefill.h"
#include "engine/stats.h"
#include "engine/weights.h"
#include "kernels/kernels.h"

namespace pi {

// Rows of one forward pass; meanings and shapes as in native/index.ts. Views: the caller keeps the memory.
struct Batch {
  int n_rows = 0;
  const int32_t* tokens = nullptr;
  const int32_t* positions = nullptr;
  const int32_t* sequences = nullptr;
  const int32_t* block_tables = nullptr;
  int blocks_per_sequence = 0;
  const uint8_t* modes = nullptr;
  const uint8_t* prefill = nullptr;  // or null: no row is
  int n_outputs = 0;
  const int32_t* outputs = nullptr;
  int n_samples = 0;
  const int32_t* samples = nullptr;
};

struct StepOutput {
  const float* logits = nullptr;        // [n_outputs, vocab], valid until the next step
  std::vector<uint16_t> hidden;         // f16 [n_layers, n_samples, dim]
  std::vector<uint8_t> contributions;   // [n_layers, n_samples, n_neurons]
};

struct EngineOptions {
  ModelConfig config;
  std::vector<std::string> files;
  std::vector<TensorRef> tensors;
  std::vector<float> thresholds;  // per layer, or empty
  int threads = 1;
  int kv_blocks = 1;
  kernels::KvType kv_type = kernels::KvType::kF16;
};

// Not thread-safe. Holds no global state: any number of engines may live side by side.
class Engine {
 public:
  // Throws std::runtime_error when a file or tensor does not fit.
  explicit Engine(EngineOptions options);

  const ModelConfig& config() const { return c_; }
  int max_position() const { return max_position_; }
  int kv_blocks() const { return kv_.blocks(); }
  // True even where all layers are exact.
  bool has_predictors() const { return !thresholds_.empty(); }
  ThreadPool& pool() { return *pool_; }

  // One forward pass. The batch is valid (checked at the N-API edge).
  StepOutput step(const Batch& batch);

  void set_threads(int threads) { pool_ = std::make_unique<ThreadPool>(threads); }
  void set_thresholds(std::vector<float> thresholds) { thresholds_ = std::move(thresholds); }
  void set_profiling(bool on) { profiling_ = on; }
  void set_recall_tracking(bool on) { recall_tracking_ = on; }
  const ActivationCounts& activation_counts(int layer) const { return counts_[layer]; }
  const EngineStats& stats() const { return stats_; }
  void reset_stats();
  size_t allocated_bytes() const;

 private:
  // The batch's rows in the order the engine works in: those of decoding, then those of prefill. [n]
  struct Rows {
    int n = 0, n_decode = 0;
    std::vector<int32_t> tokens, positions, outputs, samples;
    std::vector<const int32_t*> blocks;  // block table of each row's sequence
    std::vector<FfnMode> modes;
    std::vector<std::pair<int, int>> runs;  // first row and number of a few neighbours of one sequence
    void set(const Batch& batch);
  };

  void embed();
  void norm(const NormWeights& w, const float* x, int rows, float* y);
  void project(std::initializer_list<Projection> projections, const float* x, uint64_t& bytes);
  void project_decode(std::initializer_list<Projection> projections, const float* x, int rows);
  void project_outputs();
  void attend(int layer);
  void cache_position(int layer, int row, int head);
  void attend_head(int layer, int first, int rows, int head);
  void ffn(int layer, StepOutput& out);
  void ffn_dense_rows(int layer, StepOutput& out);
  void ffn_sparse_rows(int layer);
  void count_activations(int layer, int rows);
  void copy_samples(int layer, StepOutput& out);
  const std::vector<float>& down_norms(int layer);
  void reserve();

  ModelConfig c_;
  const kernels::Table& k_;
  std::vector<MappedFile> files_;
  ModelWeights w_;
  std::vector<float> thresholds_;
  std::unique_ptr<ThreadPool> pool_;
  KvCache kv_;
  Ffn ffn_;
  Prefill prefill_;
  Head head_;
  int max_position_;
  std::vector<float> cosine_, sine_;  // [max_position, head_dim / 2]

  Rows rows_;
  // Scratch, [rows, …].
  Buffer<float> x_, h_, q_, key_, value_, attended_, attn_out_, ffn_in_, ffn_out_, dense_in_, dense_out_, logits_;
  Buffer<uint8_t> quants_;
  std::vector<int> dense_rows_, sparse_rows_;
  Buffer<float> activations_;  // [dense rows, n_neurons], while they are counted or sampled

  bool profiling_ = false, recall_tracking_ = false;
  std::vector<ActivationCounts> counts_;
  std::vector<std::vector<float>> down_norms_;
  EngineStats stats_;
};

}  // namespace pi
