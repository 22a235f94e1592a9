#include "engine/gpu_half.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

namespace pi {
namespace {

using cuda::Queue;
using cuda::Use;

constexpr int kMarks = 4096;

const GpuOptions& checked(const GpuOptions& options, const ModelConfig& config, const ModelWeights& weights) {
  if (options.layers.size() != size_t(config.n_layers))
    throw std::runtime_error("GPU split: expected " + std::to_string(config.n_layers) + " layers, got " +
                             std::to_string(options.layers.size()));
  for (int layer = 0; layer < config.n_layers; ++layer) {
    const LayerSplit& split = options.layers[layer];
    const std::string at = "GPU split: layer " + std::to_string(layer) + ": ";
    if (split.neurons < 0 || split.neurons > config.n_neurons)
      throw std::runtime_error(at + std::to_string(split.neurons) + " neurons of " + std::to_string(config.n_neurons));
    const bool has = bool(weights.layers[layer].predictor);
    if (split.predictor && !has) throw std::runtime_error(at + "no predictor to put on the GPU");
    if (has && split.neurons > 0 && !split.predictor)
      throw std::runtime_error(at + "GPU neurons need the layer's predictor there too");
  }
  if (config.head_dim % 8 != 0 || config.head_dim > 256) {
    throw std::runtime_error("GPU: expected heads of a multiple of 8 elements, at most 256, got " +
                             std::to_string(config.head_dim));
  }
  if (config.dim > 16384)
    throw std::runtime_error("GPU: expected a stream of at most 16384 elements, got " + std::to_string(config.dim));
  if (options.stream_rows < 1 || options.stream_neurons < 0)
    throw std::runtime_error("GPU split: expected to stream from a row on");
  if (options.max_rows < 1) throw std::runtime_error("GPU split: expected at least one row of scratch");
  return options;
}

void place(const GpuModelView& model, const GpuOptions& options, cuda::Arena& arena) {
  const ModelLayout layout(model.config, model.weights, options, model.kv, model.max_position, arena);
  GpuScratch(model.config, layout.model(), options, plan_stream(model.config, model.weights, options),
             model.max_position, arena);
}

// Refuses what is above the promise, with all its parts.
GpuMemory affordable(const GpuMemory& memory, const GpuOptions& options) {
  if (memory.total() <= options.vram_bytes) return memory;
  const auto part = [](const char* name, size_t bytes) { return std::string(name) + " " + std::to_string(bytes); };
  throw std::runtime_error("GPU memory: the split needs " + std::to_string(memory.total()) +
                           " bytes, more than the budget of " + std::to_string(options.vram_bytes) + " (" +
                           part("weights", memory.weights) + ", " + part("predictors", memory.predictors) + ", " +
                           part("KV cache", memory.kv) + ", " + part("scratch", memory.scratch) + ", " +
                           part("context", memory.context) + ")");
}

// Ends a recording that came to nothing.
void end_quietly(cuda::Device& device) {
  try {
    device.end_recording();
  } catch (const std::exception&) {
    // What broke it off is the error to tell.
  }
}

}  // namespace

GpuMemory gpu_memory(const GpuModelView& model, const GpuOptions& options, size_t context_bytes) {
  cuda::Arena counting;
  place(model, checked(options, model.config, model.weights), counting);
  return {counting.used(Use::kWeights), counting.used(Use::kPredictors), counting.used(Use::kKv),
          counting.used(Use::kScratch) + GpuPrograms::bytes(model.config.n_layers), context_bytes};
}

DeviceMemory::DeviceMemory(std::shared_ptr<cuda::Device> on, size_t size) : device(std::move(on)), bytes(size) {
  data = static_cast<uint8_t*>(device->allocate(std::max<size_t>(bytes, 256)));
  if (!data) {
    throw std::runtime_error("GPU memory: " + std::to_string(bytes) + " bytes could not be had on " +
                             device->info().name + ", of which " + std::to_string(device->free_bytes()) + " are free");
  }
}

DeviceMemory::~DeviceMemory() {
  if (data) device->free(data);
}

template <typename T>
void PinnedBuffer<T>::grow(size_t size) {
  if (size != 0 && size <= size_) return;
  if (data_) device_->free_host(data_);
  data_ = size > 0 ? static_cast<T*>(device_->allocate_host(size * sizeof(T))) : nullptr;
  if (size > 0 && !data_)
    throw std::runtime_error("GPU: no page-locked memory for " + std::to_string(size * sizeof(T)) + " bytes");
  size_ = size;
}

GpuHalf::GpuHalf(std::shared_ptr<cuda::Device> device, const GpuModelView& model, GpuOptions options,
                 const float* cosine, const float* sine)
    : device_(std::move(device)),
      k_(device_->kernels()),
      c_(model.config),
      options_(std::move(options)),
      kv_(model.kv),
      max_position_(model.max_position),
      memory_(affordable(gpu_memory(model, options_, device_->info().context_bytes), options_)),
      memory_block_(device_, memory_.total() - memory_.context - GpuPrograms::bytes(c_.n_layers)),
      arena_(memory_block_.data, memory_block_.bytes),
      layout_(c_, model.weights, options_, kv_, max_position_, arena_),
      m_(layout_.model()),
      stream_plan_(plan_stream(c_, model.weights, options_)),
      s_(c_, m_, options_, stream_plan_, max_position_, arena_),
      state_(s_.state, options_.max_rows, max_position_),
      mail_(device_, c_.n_layers, c_.dim, options_.max_rows, cuda::mask_words(c_.n_neurons),
            std::min(options_.max_rows, kDecodeRows)),
      state_memory_(device_),
      logits_(device_),
      highest_(device_),
      log_sums_(device_),
      tokens_(device_),
      draws_(device_),
      counters_(device_),
      project_in_(device_),
      projected_(device_),
      end_(device_->event()),
      stamps_(device_) {
  state_memory_.grow(StepState::bytes(options_.max_rows, max_position_, options_.max_rows));
  host_state_ = StepState(state_memory_.data(), options_.max_rows, max_position_);
  counters_.grow(2 * size_t(c_.n_layers));
  if (options_.head) reserve_outputs(kOutputRows);
  if (stream_plan_.bytes > 0) {
    std::vector<LayerWeights> cold;
    for (int layer = 0; layer < c_.n_layers; ++layer)
      cold.push_back(model.weights.layers[layer].from(split(layer).neurons));
    stream_ = std::make_unique<WeightStream>(device_, std::move(cold), stream_plan_, s_.stream);
  }
  if (stream_plan_.projects) {
    const size_t rows = options_.max_rows, q_dim = size_t(c_.n_heads) * c_.head_dim,
                 kv_dim = size_t(c_.n_kv_heads) * c_.head_dim;
    project_in_.grow(rows * std::max<size_t>(c_.dim, q_dim));
    projected_.grow(rows * std::max<size_t>(c_.dim, q_dim + 2 * kv_dim));
  }
  layout_.upload(*device_, cosine, sine);
  device_->zero(Queue::kCompute, s_.counters, counters_.size() * sizeof(unsigned long long));
  clear_between();
  for (const DeviceLayer& layer : m_.layers) {
    const size_t side = cuda::device_kv_side_bytes(kv_.type, c_.n_kv_heads, c_.head_dim);
    if (layer.kv.data) device_->zero(Queue::kCompute, layer.kv.data, 2 * side * kv_.blocks);
  }
  device_->synchronize(Queue::kCompute);
}

GpuHalf::~GpuHalf() { abandon(); }

// What kernels find 0 and leave 0.
void GpuHalf::clear_between() {
  device_->zero(Queue::kCompute, s_.active, (cuda::mask_words(c_.n_neurons) + 1) * sizeof(uint32_t));
  device_->zero(Queue::kCompute, s_.arrivals, GpuScratch::arrival_words(c_) * sizeof(uint32_t));
}

void GpuHalf::set_thresholds(std::span<const float> thresholds) {
  thresholds_.assign(thresholds.begin(), thresholds.end());
  programs_.clear();
}

// Copies what the step needs to page-locked memory, block tables of neighbours of one sequence once; returns its bytes.
size_t GpuHalf::write_state(const GpuStep& step) {
  *host_state_.step = number_;
  int sequences = 0;
  for (int t = 0; t < step.n; ++t) {
    const bool same = t > 0 && step.blocks[t] == step.blocks[t - 1];
    const int used = step.positions[t] / kernels::kKvBlockTokens + 1;
    if (!same) ++sequences;
    std::copy_n(step.blocks[t], used, host_state_.tables + size_t(sequences - 1) * host_state_.stride);
    host_state_.positions[t] = step.positions[t];
    host_state_.sequences[t] = sequences - 1;
    host_state_.modes[t] = static_cast<uint8_t>(step.modes[t]);
  }
  return StepState::bytes(options_.max_rows, max_position_, sequences);
}

// Steps of decoding whose logits are all wanted, or computed elsewhere, differ in their state alone.
bool GpuHalf::recordable(const GpuStep& step) const {
  if (trace_ || step.n_decode != step.n) return false;
  if (!options_.head) return true;
  if (step.outputs.size() != size_t(step.n)) return false;
  for (int i = 0; i < step.n; ++i) {
    if (step.outputs[i] != i) return false;
  }
  return true;
}

void GpuHalf::start(const GpuStep& step) {
  step_ = step;
  ++number_;
  const size_t state_bytes = write_state(step);
  apart_ = host_state_.sequences[step.n - 1] == step.n - 1;
  if (options_.head) reserve_outputs(step.outputs.size());
  std::copy(step.draws.begin(), step.draws.end(), draws_.data());
  count_bytes();
  traffic_ = {};
  marks_.clear();
  streaming_ = stream_ && step.n - step.n_decode >= options_.stream_rows;
  issued_ = 0;
  ++stats_.launches;
  if (recordable(step)) {
    const Recorded& whole = recorded();
    issued_ = c_.n_layers;
    traffic_ = whole.traffic;
    device_->launch(*whole.program);
    stats_.kernels += whole.program->operations();
    device_->record(Queue::kCompute, *end_);
    return;
  }
  issue_state(state_bytes);
  if (streaming_) return stream_->begin(step.on);
  issue_up_to(0);
  device_->record(Queue::kCompute, *end_);
}

// The step's program, recorded where it is not.
const Recorded& GpuHalf::recorded() {
  const ProgramKey key{step_.n, !step_.draws.empty(), apart_};
  if (const Recorded* known = programs_.find(key)) return *known;
  programs_.make_room();
  device_->begin_recording();
  try {
    issue_state(StepState::bytes(options_.max_rows, max_position_, step_.n));
    issue_up_to(c_.n_layers - 1);
  } catch (...) {
    end_quietly(*device_);
    throw;
  }
  return *programs_.keep(key, {device_->end_recording(), traffic_});
}

// Without a stream a layer ahead, so that the GPU finds the next one's launches where the host is still at this one.
void GpuHalf::go_on(int layer) {
  const int last = std::min(streaming_ ? layer : layer + 1, c_.n_layers - 1);
  if (issued_ > last) return;
  issue_up_to(last);
  device_->record(Queue::kCompute, *end_);
}

void GpuHalf::issue_up_to(int layer) {
  while (issued_ <= layer) issue_layer(issued_++);
}

void GpuHalf::reserve_outputs(size_t n) {
  if (n <= tokens_.size()) return;
  programs_.clear();  // they write to the old ones
  logits_.grow(n * c_.vocab);
  highest_.grow(n), log_sums_.grow(n), tokens_.grow(n), draws_.grow(n);
}

// What of weights and KV the step's rows of decoding read, but for neurons, which are counted where they are chosen.
void GpuHalf::count_bytes() {
  if (step_.n_decode == 0) return;
  const auto bytes = [](std::initializer_list<const cuda::DeviceMatrix*> matrices) {
    size_t sum = 0;
    for (const cuda::DeviceMatrix* m : matrices) sum += m->rows * m->row_bytes;
    return sum;
  };
  size_t positions = 0;
  for (int t = 0; t < step_.n_decode; ++t) positions += step_.positions[t] + 1;
  const size_t position_bytes =
      2 * cuda::device_kv_side_bytes(kv_.type, c_.n_kv_heads, c_.head_dim) / kernels::kKvBlockTokens;
  for (const DeviceLayer& l : m_.layers) {
    stats_.bytes.attention += bytes({&l.q, &l.k, &l.v, &l.o});
    stats_.bytes.predictor += bytes({&l.fc1, &l.scorer});
    if (l.kv.data) stats_.bytes.kv += positions * position_bytes;
  }
  stats_.bytes.head += bytes({&m_.head});
}

void GpuHalf::give(Mail mail, int layer, const float* rows, size_t floats) {
  std::copy_n(rows, floats, mail_.box(mail));
  mail_.signal(mail, layer, number_);
}

const float* GpuHalf::take(Mail mail, int layer) {
  if (!mail_.arrived(mail, layer, number_)) {
    const double began = Trace::now();
    for (uint32_t spins = 1; !mail_.arrived(mail, layer, number_); ++spins) {
      if (spins % 256 != 0) continue;
      std::this_thread::yield();
      // What was sent before the end is seen after it.
      if (spins % 4096 == 0 && device_->done(*end_) && !mail_.arrived(mail, layer, number_)) {
        device_->synchronize(Queue::kCompute);  // says what went wrong
        throw std::runtime_error("GPU: ended a step without an answer for layer " + std::to_string(layer));
      }
    }
    const double ended = Trace::now();
    ++stats_.waits;
    stats_.wait_seconds += ended - began;
    if (trace_) trace_->add(false, layer, "wait", began, ended);
  }
  return mail_.box(mail);
}

bool GpuHalf::any_cold(int layer) {
  const int words = cuda::mask_words(c_.n_neurons), first = split(layer).neurons;
  for (int t = 0; t < step_.n_decode; ++t) {
    const uint32_t* mask = asked(layer, t);
    for (int word = first / 32; word < words; ++word) {
      const uint32_t here = word == first / 32 ? ~0u << first % 32 : ~0u;
      if (mask[word] & here) return true;
    }
  }
  return false;
}

void GpuHalf::finish() {
  device_->synchronize(Queue::kCompute);
  stats_.transfers += traffic_.transfers;
  stats_.transfer_bytes += traffic_.bytes;
  if (trace_) read_trace();
}

void GpuHalf::abandon() noexcept {
  const auto attempt = [](auto&& act) {
    try {
      act();
    } catch (const std::exception&) {
      // The step has failed already; its error is the one to tell.
    }
  };
  mail_.set_abort(true);
  attempt([&] { device_->synchronize(Queue::kCompute); });
  if (stream_) stream_->abandon();
  mail_.set_abort(false);
  attempt([&] {
    clear_between();  // one of the step's launches may be missing
    device_->synchronize(Queue::kCompute);
  });
}

void GpuHalf::collect(GpuStats& stats, std::vector<LayerStats>& layers) {
  device_->download(Queue::kCompute, counters_.data(), s_.counters, counters_.size() * sizeof(unsigned long long));
  device_->zero(Queue::kCompute, s_.counters, counters_.size() * sizeof(unsigned long long));
  device_->synchronize(Queue::kCompute);
  for (int layer = 0; layer < c_.n_layers; ++layer) {
    const uint64_t asked = counters_.data()[2 * layer], fired = counters_.data()[2 * layer + 1];
    stats_.gpu_neurons += asked, stats_.gpu_fired += fired;
    layers[layer].predicted += asked, layers[layer].active += fired, layers[layer].hit += fired;
    const DeviceLayer& l = m_.layers[layer];
    stats_.bytes.ffn += asked * (c_.gated ? l.gate.row_bytes : l.up.row_bytes) +
                        fired * (l.down.row_bytes + (c_.gated ? l.up.row_bytes : 0));
  }
  const auto move = [](auto& to, auto& from) { to += std::exchange(from, {}); };
  move(stats.gpu_neurons, stats_.gpu_neurons), move(stats.gpu_fired, stats_.gpu_fired);
  move(stats.transfers, stats_.transfers), move(stats.transfer_bytes, stats_.transfer_bytes);
  stats.streamed_bytes += stream_ ? stream_->take_sent_bytes() : 0;
  move(stats.waits, stats_.waits), move(stats.wait_seconds, stats_.wait_seconds), move(stats.launches, stats_.launches);
  move(stats.kernels, stats_.kernels);
  move(stats.bytes.ffn, stats_.bytes.ffn), move(stats.bytes.predictor, stats_.bytes.predictor);
  move(stats.bytes.attention, stats_.bytes.attention), move(stats.bytes.kv, stats_.bytes.kv),
      move(stats.bytes.head, stats_.bytes.head);
}

// ------------------------------------------------------------------------------------------------------------- tracing

void GpuHalf::set_trace(Trace* trace) {
  trace_ = trace;
  if (!trace) return;
  stamps_.grow(kMarks);
  calibrate();
}

// The clocks' difference, by the shortest of a few round trips.
void GpuHalf::calibrate() {
  double best = 1e9;
  for (int round = 0; round < 8; ++round) {
    const double before = Trace::now();
    k_.stamp(device_->stream(), {stamps_.data()});
    device_->synchronize(Queue::kCompute);
    const double after = Trace::now();
    if (after - before >= best) continue;
    best = after - before;
    clock_offset_ = (before + after) / 2 - static_cast<double>(stamps_.data()[0]) * 1e-9;
  }
}

// What comes now begins here; it ends at the next mark.
void GpuHalf::mark(int layer, const char* name) {
  if (!trace_ || marks_.size() >= kMarks) return;
  k_.stamp(device_->stream(), {stamps_.data() + marks_.size()});
  marks_.emplace_back(layer, name);
}

void GpuHalf::read_trace() {
  const auto at = [&](size_t i) { return static_cast<double>(stamps_.data()[i]) * 1e-9 + clock_offset_; };
  for (size_t i = 0; i + 1 < marks_.size(); ++i) trace_->add(true, marks_[i].first, marks_[i].second, at(i), at(i + 1));
  marks_.clear();
}

}  // namespace pi
