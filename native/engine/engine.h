// One decoder-only transformer with its KV cache and thread pool.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "base/mapped_file.h"
#include "base/thread_pool.h"
#include "engine/config.h"
#include "engine/ffn.h"
#include "engine/gpu_half.h"
#include "engine/head.h"
#include "engine/kv_cache.h"
#include "engine/prefill.h"
#include "engine/replacement.h"
#include "engine/sampler.h"
#include "engine/stats.h"
#include "engine/trace.h"
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
  const Choice* choices = nullptr;  // [n_outputs], where a token each is wanted and no logits
};

struct StepOutput {
  const float* logits = nullptr;       // [n_outputs, vocab], valid until the next step; null where `chosen` is filled
  std::vector<Chosen> chosen;          // [n_outputs], where a GPU has the head and chose by the batch's choices
  std::vector<uint16_t> hidden;        // f16 [n_layers, n_samples, dim]
  std::vector<uint8_t> contributions;  // [n_layers, n_samples, n_neurons]
};

struct EngineOptions {
  ModelConfig config;
  std::vector<std::string> files;
  std::vector<TensorRef> tensors;
  std::vector<float> thresholds;  // per layer, or empty
  int threads = 1;
  int kv_blocks = 1;
  kernels::KvType kv_type = kernels::KvType::kF16;
  GpuOptions gpu;
};

// What the options' split would take of the device that is there, or of any where none is. Throws as the engine does.
GpuMemory gpu_memory(const EngineOptions& options);
// The same of a device whose context takes `context_bytes`; opens none.
GpuMemory gpu_memory(const EngineOptions& options, size_t context_bytes);

// Not thread-safe. Holds no global state: any number of engines may live side by side.
class Engine {
 public:
  // Throws std::runtime_error when a file or tensor does not fit, or a split the GPU.
  explicit Engine(EngineOptions options);

  const ModelConfig& config() const { return c_; }
  int max_position() const { return max_position_; }
  int kv_blocks() const { return kv_.blocks(); }
  // True even where all layers are exact.
  bool has_predictors() const { return !thresholds_.empty(); }
  ThreadPool& pool() { return *pool_; }

  // Null without a GPU.
  const GpuHalf* gpu() const { return gpu_.get(); }

  // One forward pass. The batch is valid (checked at the N-API edge). With a GPU, throws std::runtime_error when that
  // fails.
  StepOutput step(const Batch& batch);

  void set_threads(int threads) { pool_ = std::make_unique<ThreadPool>(threads); }
  void set_thresholds(std::vector<float> thresholds);
  // Neither is done where a GPU has a part: throw std::runtime_error.
  void set_profiling(bool on);
  void set_recall_tracking(bool on);
  void set_tracing(bool on);
  // Has neurons change places between CPU and GPU now, as re-placement does on its own. Throws std::runtime_error where
  // it is off.
  void swap_neurons(std::span<const LayerSwap> swaps);
  std::vector<TraceSpan> take_trace() { return trace_.take(); }
  const ActivationCounts& activation_counts(int layer) const { return counts_[layer]; }
  // Of a GPU that failed, what it had told until then.
  const EngineStats& stats();
  void reset_stats();
  size_t allocated_bytes() const;

  // Some of a step's rows of decoding, and some of its prompts.
  struct Piece {
    int decode, n_decode;  // first and number
    int prompt, n_prompt;
  };

 private:
  // The batch's rows in the order the engine works in: those of decoding, then those of prefill. [n]
  struct Rows {
    int n = 0, n_decode = 0;
    std::vector<int32_t> tokens, positions, outputs, samples;
    std::vector<const int32_t*> blocks;  // block table of each row's sequence
    std::vector<FfnMode> modes;
    std::vector<std::pair<int, int>> runs;  // first row and number of a few neighbours of one sequence
    void set(const Batch& batch);
    void find_runs();
    // Those rows alone, and which of the outputs are theirs.
    Rows piece(const Piece& of, std::vector<int>& which) const;
  };

  void rotate_positions();
  void refuse_gpu(const char* what) const;
  void forward(StepOutput& out);
  void head();
  // engine/hybrid.cc
  void open_gpu(GpuOptions options, KvShape kv);
  void step_beside_gpu(const Batch& batch, StepOutput& out);
  void forward_beside_gpu(std::span<const cuda::Draw> draws);
  void walk_beside_gpu();
  bool layer_beside_gpu(int layer, bool here);
  int cold_ffn(int layer);
  void count_asked(int layer);
  void embed();
  void attention(int layer);
  void norm(const NormWeights& w, const float* x, int rows, float* y);
  void project(int layer, std::initializer_list<Projection> projections, const float* x, uint64_t& bytes);
  void project_decode(std::initializer_list<Projection> projections, const float* x, int rows);
  void project_outputs();
  void attend(int layer);
  void cache_position(int layer, int row, int head);
  void attend_head(int layer, int first, int rows, int head);
  // `asked`: the GPU said which neurons each row of decoding needs. `prompts`: their rows, too.
  void ffn(int layer, const LayerWeights& w, StepOutput& out, bool asked = false, bool prompts = true);
  void ffn_dense_rows(int layer, const LayerWeights& w, StepOutput& out);
  void ffn_sparse_rows(int layer, const LayerWeights& w, bool asked);
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

  std::unique_ptr<GpuHalf> gpu_;
  std::unique_ptr<Replacement> replacement_;
  std::string lost_;                // why nobody knows which neurons are where; empty: they are known
  std::vector<int> kv_layer_;       // where a layer's keys and values are in kv_
  std::vector<LayerWeights> cold_;  // the host's part of each layer's FFN
  Buffer<float> step_logits_;       // of steps that are cut
  Trace trace_;
  bool tracing_ = false;

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
