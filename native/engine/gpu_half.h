// The GPU's half of the forward pass. A step is given to the device whole, as one recorded program where it only
// decodes; where a layer is split both halves run at once and leave each other what is needed in the mailbox: the GPU
// never comes back to the host for orders. Steps that are not recorded are given to it layer by layer, as the host gets
// there, so that no more launches wait than a queue holds, and prompts' weights can be sent in between. The host's half
// is Engine::walk_beside_gpu.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "cuda/arena.h"
#include "cuda/device.h"
#include "engine/gpu_model.h"
#include "engine/gpu_programs.h"
#include "engine/gpu_scratch.h"
#include "engine/gpu_stream.h"
#include "engine/mailbox.h"
#include "engine/split.h"
#include "engine/stats.h"
#include "engine/trace.h"

namespace pi {

// Rows of a step, those of decoding first; views.
struct GpuStep {
  int n = 0, n_decode = 0;
  std::span<const int32_t> positions;
  std::span<const int32_t* const> blocks;  // block table of each row
  std::span<const FfnMode> modes;
  std::span<const int32_t> outputs;
  Executor on;  // packs what is streamed
  std::span<const cuda::Draw>
      draws;  // of the outputs, where tokens and their log probabilities are wanted; empty: logits
};

struct GpuModelView {
  const ModelConfig& config;
  const ModelWeights& weights;
  KvShape kv;
  int max_position;
};

// What a split would take of a device.
GpuMemory gpu_memory(const GpuModelView& model, const GpuOptions& options, size_t context_bytes);

// Device memory that goes with its owner.
struct DeviceMemory {
  std::shared_ptr<cuda::Device> device;
  uint8_t* data = nullptr;
  size_t bytes = 0;

  DeviceMemory(std::shared_ptr<cuda::Device> device, size_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
};

// The same of page-locked host memory; `grow` forgets what was there.
template <typename T>
class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::shared_ptr<cuda::Device> device) : device_(std::move(device)) {}
  ~PinnedBuffer() { grow(0); }
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;

  T* data() const { return data_; }
  size_t size() const { return size_; }
  void grow(size_t size);

 private:
  std::shared_ptr<cuda::Device> device_;
  T* data_ = nullptr;
  size_t size_ = 0;
};

// Not thread-safe: one step at a time.
class GpuHalf {
 public:
  // Throws std::runtime_error with the bytes when the split does not fit into options.vram_bytes or the device.
  // `cosine` and `sine` [max_position, head_dim / 2] are the engine's.
  GpuHalf(std::shared_ptr<cuda::Device> device, const GpuModelView& model, GpuOptions options, const float* cosine,
          const float* sine);
  ~GpuHalf();

  const cuda::DeviceInfo& device_info() const { return device_->info(); }
  const GpuMemory& memory() const { return memory_; }
  const LayerSplit& split(int layer) const { return options_.layers[layer]; }
  bool has_head() const { return options_.head; }
  int max_rows() const { return options_.max_rows; }
  // The stream is on the GPU after this layer.
  bool merges(int layer) const { return layer + 1 < c_.n_layers ? split(layer + 1).attention : options_.head; }
  // What engine/replacement.h works on.
  const std::shared_ptr<cuda::Device>& device() const { return device_; }
  const GpuOptions& options() const { return options_; }
  const DeviceModel& model() const { return m_; }
  uint8_t* swap_space() const { return s_.swaps; }
  // Calls f(host memory, bytes) for what only the GPU reads.
  template <typename F>
  void each_exclusive(F&& f) const {
    layout_.each_exclusive(f);
  }

  void set_thresholds(std::span<const float> thresholds);
  // Null: none. Steps are not recorded meanwhile.
  void set_trace(Trace* trace);

  // ------------------------------------------------------------------------------------------------- one step, in
  // order
  void start(const GpuStep& step);
  // Of prompts, this layer's FFN is computed here alone, the host's neurons streamed.
  bool streams(int layer) const { return streaming_ && cold(layer); }
  // The GPU has its work up to this layer afterwards. Comes when the host has given what the layer begins with, and
  // before it takes anything of it.
  void go_on(int layer);
  // Rows of prompts are multiplied here with the host's projections of attention, too.
  bool projects(int layer) const { return streaming_ && !split(layer).attention; }
  // The projections of x [rows, cols] in this step, in the order q, k, v, o. Waits for them.
  void project_streamed(int layer, std::span<const Projection> projections, const float* x, int rows);
  // Leaves `floats` for the GPU.
  void give(Mail mail, int layer, const float* rows, size_t floats);
  // Waits for what the GPU has for the host. Throws when it will not come.
  const float* take(Mail mail, int layer);
  // After take(kFfnAsked): the masks of a decoding row, and whether they ask for any neuron that the GPU has not.
  const uint32_t* asked(int layer, int row) { return mail_.mask(layer) + row * cuda::mask_words(c_.n_neurons); }
  bool any_cold(int layer);
  // Waits for the end.
  void finish();
  // Ends a step that the host cannot finish.
  void abandon() noexcept;

  // Logits [outputs, vocab]; with draws instead a token each, and its log probability.
  const float* logits() const { return logits_.data(); }
  int32_t token(int output) const { return tokens_.data()[output]; }
  float logprob(int output) const { return highest_.data()[output] - log_sums_.data()[output]; }

  // Adds what was counted since the last time.
  void collect(GpuStats& stats, std::vector<LayerStats>& layers);

 private:
  void clear_between();
  size_t write_state(const GpuStep& step);
  bool recordable(const GpuStep& step) const;
  const Recorded& recorded();
  void reserve_outputs(size_t n);
  void count_bytes();
  void issue_state(size_t state_bytes);
  void issue_layer(int layer);
  void issue_up_to(int layer);
  void attention(int layer, bool normed);
  void project(const cuda::Project::Output (&outputs)[3], const cuda::DeviceRows& x, bool add, const cuda::Norm& norm);
  void attend(const cuda::DeviceKv& kv);
  cuda::Norm norm_of(const DeviceNorm& w, const cuda::DeviceRows& out) const;
  cuda::Norm attention_norm(int layer);
  cuda::Norm ffn_norm(int layer);
  void publish(int layer, cuda::Norm& norm);
  bool ffn(int layer);
  void score(int layer);
  void neurons(int layer, const cuda::Merge& merge);
  void prompt_ffn(int layer);
  void prompt_neurons(const StreamedNeurons& w, bool add);
  void publish_decoding(int layer);
  void stream_neurons(int layer);
  bool merge(int layer);
  void head();
  void mark(int layer, const char* name);
  void count_transfer(size_t bytes);
  void calibrate();
  void read_trace();
  cuda::Meeting meet(Mail mail, int layer) { return mail_.meeting(mail, layer, state_.step); }
  bool cold(int layer) const { return split(layer).neurons < c_.n_neurons; }
  bool masks(int layer) const { return split(layer).predictor && step_.n_decode > 0; }
  const cuda::DeviceRows& ffn_rows() const { return c_.shared_norm ? s_.h : s_.ffn_in; }

  std::shared_ptr<cuda::Device> device_;
  const cuda::Kernels& k_;
  const ModelConfig& c_;
  GpuOptions options_;
  KvShape kv_;
  int max_position_;
  GpuMemory memory_;
  DeviceMemory memory_block_;
  cuda::Arena arena_;
  ModelLayout layout_;
  const DeviceModel& m_;
  const StreamPlan stream_plan_;
  GpuScratch s_;
  StepState state_, host_state_;  // the same block on the device and in page-locked memory
  Mailbox mail_;
  PinnedBuffer<uint8_t> state_memory_;
  PinnedBuffer<float> logits_, highest_, log_sums_;
  PinnedBuffer<int32_t> tokens_;
  PinnedBuffer<cuda::Draw> draws_;
  PinnedBuffer<unsigned long long> counters_;
  PinnedBuffer<float> project_in_, projected_;
  std::unique_ptr<cuda::Event> end_;
  GpuPrograms programs_;
  std::unique_ptr<WeightStream> stream_;  // null: nothing is streamed

  std::vector<float> thresholds_;
  GpuStep step_;
  bool apart_ = false;   // every row of the step is of a sequence of its own
  uint32_t number_ = 0;  // of the step
  int issued_ = 0;       // layers of it that the GPU has
  bool streaming_ = false;
  bool normed_ = false;  // what the next layer's attention reads is there
  Traffic traffic_;
  GpuStats stats_;

  Trace* trace_ = nullptr;
  PinnedBuffer<uint64_t> stamps_;
  std::vector<std::pair<int, const char*>> marks_;
  double clock_offset_ = 0;  // seconds to add to a stamp
};

}  // namespace pi
