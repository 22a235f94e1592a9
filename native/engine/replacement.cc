#include "engine/replacement.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <stdexcept>

#include "cuda/layout.h"

namespace pi {
namespace {

using cuda::Move;
using cuda::Queue;

// Rows of decoding after which places are thought over, and what was counted before weighs half.
constexpr int kWindowRows = 256;
// Few enough that what the host copies between two steps is less than it reads of weights in one.
constexpr int kSwapsAtOnce = 32;
// At most, of one swap: gate, up and down and two biases of one neuron, the scorer's row, scale and bias of both.
constexpr int kMovesOfSwap = 11;

constexpr size_t kMovesBytes = cuda::align_up(kSwapsAtOnce * kMovesOfSwap * sizeof(Move), cuda::kRowAlign);

size_t swap_bytes(const DeviceLayer& l) {
  constexpr size_t kNumber = cuda::kRowAlign;  // a number takes as much as the smallest row
  return l.gate.row_bytes + l.up.row_bytes + l.down.row_bytes + 2 * kNumber + 2 * (l.scorer.row_bytes + 2 * kNumber);
}

}  // namespace

size_t swap_bytes(const DeviceModel& model, const GpuOptions& options, int n_neurons) {
  size_t most = 0;
  for (size_t layer = 0; layer < model.layers.size(); ++layer) {
    if (options.adapts(static_cast<int>(layer), n_neurons)) most = std::max(most, swap_bytes(model.layers[layer]));
  }
  return most > 0 ? kMovesBytes + kSwapsAtOnce * most : 0;
}

Replacement::Replacement(std::shared_ptr<cuda::Device> device, const ModelWeights& weights, const DeviceModel& model,
                         const GpuOptions& options, std::span<MappedFile> files, uint8_t* space)
    : device_(std::move(device)),
      files_(files),
      space_(space),
      staging_(nullptr, FreeHost{device_}),
      sent_(device_->event()),
      placed_(device_->event()) {
  const int n_neurons = weights.layers.empty() ? 0 : weights.layers[0].up.rows;
  layers_.resize(weights.layers.size());
  for (int layer = static_cast<int>(layers_.size()) - 1; layer >= 0; --layer) {
    if (!options.adapts(layer, n_neurons)) continue;
    layers_[layer] = cover(weights.layers[layer], model.layers[layer], options.layers[layer].neurons);
    first_ = layer;
  }
  if (first_ < 0) return;
  const size_t bytes = swap_bytes(model, options, n_neurons);
  staging_.reset(static_cast<uint8_t*>(device_->allocate_host(bytes)));
  if (!staging_) throw std::runtime_error("GPU: no page-locked memory for " + std::to_string(bytes) + " bytes");
  thread_ = std::jthread([this](const std::stop_token& stop) { work(stop); });
}

Replacement::~Replacement() {
  if (thread_.joinable()) {
    thread_.request_stop();
    thread_.join();
  }
  try {
    device_->synchronize(Queue::kCopy);  // a batch on its way is read from memory that goes now
  } catch (const std::exception&) {
    // A device that failed reads nothing any more.
  }
}

Replacement::Layer Replacement::cover(const LayerWeights& w, const DeviceLayer& d, int resident) {
  Layer out;
  const int n = w.up.rows;
  out.resident = resident;
  out.row.resize(n);
  for (int i = 0; i < n; ++i) out.row[i] = i;
  for (auto* counts : {&out.window, &out.closed, &out.counts}) counts->resize(32 * size_t(cuda::mask_words(n)));
  // The arena's memory is nobody's constant; the kernels' arguments only promise not to write to it.
  const auto add = [&](const uint8_t* host, const void* device, DType type, size_t cols, size_t device_bytes,
                       bool everywhere) {
    const auto file = std::find_if(files_.begin(), files_.end(), [&](const MappedFile& f) { return f.holds(host); });
    if (file == files_.end()) throw std::logic_error("re-placement: a tensor is in none of the files");
    out.parts.push_back({&*file, static_cast<uint8_t*>(const_cast<void*>(device)), host, type, cols,
                         row_bytes(type, cols), device_bytes, everywhere});
  };
  const auto matrix = [&](const MatrixView& host, const cuda::DeviceMatrix& device, bool everywhere) {
    if (host) add(host.data, device.data, host.type, host.cols, device.row_bytes, everywhere);
  };
  const auto numbers = [&](VectorView host, const float* device, bool everywhere) {
    if (host) add(reinterpret_cast<const uint8_t*>(host), device, DType::kF32, 1, sizeof(float), everywhere);
  };
  matrix(w.gate, d.gate, false), matrix(w.up, d.up, false), matrix(w.down_t, d.down, false);
  numbers(w.gate_bias, d.gate_bias, false), numbers(w.up_bias, d.up_bias, false);
  matrix(w.predictor.scorer(), d.scorer, true);
  numbers(w.predictor.signs_scale, d.scorer_scale, true), numbers(w.predictor.scorer_bias(), d.scorer_bias, true);
  return out;
}

// ------------------------------------------------------------------------------------------------- the steps' thread

void Replacement::count(int layer, const uint32_t* mask) {
  std::vector<uint32_t>& counts = layers_[layer].window;
  for (size_t word = 0; word < counts.size() / 32; ++word) {
    for (uint32_t bits = mask[word]; bits != 0; bits &= bits - 1) ++counts[32 * word + std::countr_zero(bits)];
  }
  rows_ += layer == first_;
}

int Replacement::between_steps() {
  switch (stage()) {
    case Stage::kCounting:
      if (rows_ >= kWindowRows) close_window();
      return 0;
    case Stage::kPacked:
      send();
      set_stage(Stage::kSent);
      return 0;
    case Stage::kSent: {
      if (!device_->done(*sent_)) return 0;
      const int swaps = static_cast<int>(batch_.size());
      put_in_place();
      set_stage(Stage::kPacking);
      return swaps;
    }
    default:
      return 0;
  }
}

// The thread gets the counts, and its vectors, which are 0, are counted in next.
void Replacement::close_window() {
  for (Layer& layer : layers_) std::swap(layer.window, layer.closed);
  rows_ = 0;
  window_closed_ = true;
  set_stage(Stage::kPacking);
}

void Replacement::send() {
  device_->wait(Queue::kCopy, *placed_);  // what came last time was read
  device_->upload(Queue::kCopy, space_, staging_.get(), used_);
  device_->record(Queue::kCopy, *sent_);
}

void Replacement::put_in_place() {
  device_->kernels().scatter(device_->stream(), {reinterpret_cast<const Move*>(space_), n_moves_});
  device_->record(Queue::kCompute, *placed_);
  for (const HostRow& row : host_moves_) std::memcpy(row.to, &host_rows_[row.at], row.bytes);
  for (const auto& [layer, swap] : batch_) {
    for (auto* by_position : {&layers_[layer].window, &layers_[layer].counts})
      std::swap((*by_position)[swap.gpu], (*by_position)[swap.host]);
    std::swap(layers_[layer].row[swap.gpu], layers_[layer].row[swap.host]);
  }
}

void Replacement::swap(std::span<const LayerSwap> swaps) {
  for (Stage at = stage(); at != Stage::kCounting; at = stage()) {
    if (at == Stage::kStopped) throw std::runtime_error(stopped());
    between_steps();
    std::this_thread::yield();
  }
  for (const auto& [layer, swap] : swaps) {
    const Layer& at = layers_.at(layer);
    if (swap.gpu < 0 || swap.gpu >= at.resident || swap.host < at.resident ||
        swap.host >= static_cast<int>(at.row.size())) {
      throw std::runtime_error("layer " + std::to_string(layer) + ": neurons " + std::to_string(swap.gpu) + " and " +
                               std::to_string(swap.host) + " cannot change places: expected one of the GPU's " +
                               std::to_string(at.resident) + " and one of the host's");
    }
  }
  for (size_t done = 0; done < swaps.size(); done += batch_.size()) {
    const auto next = swaps.subspan(done, std::min<size_t>(kSwapsAtOnce, swaps.size() - done));
    batch_.assign(next.begin(), next.end());
    pack();
    send();
    device_->synchronize(Queue::kCopy);
    put_in_place();
  }
}

void Replacement::give_up(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (stage_ == Stage::kStopped) return;
  stage_ = Stage::kStopped;
  stopped_ = why;
}

std::string Replacement::stopped() const {
  const std::lock_guard lock(mutex_);
  return stopped_;
}

Replacement::Stage Replacement::stage() const {
  const std::lock_guard lock(mutex_);
  return stage_;
}

void Replacement::set_stage(Stage stage) {
  {
    const std::lock_guard lock(mutex_);
    if (stage_ != Stage::kStopped) stage_ = stage;
  }
  changed_.notify_all();
}

// -------------------------------------------------------------------------------------------------- the other thread

void Replacement::work(const std::stop_token& stop) {
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      if (!changed_.wait(lock, stop, [this] { return stage_ == Stage::kPacking; }) || stop.stop_requested()) return;
    }
    try {
      if (std::exchange(window_closed_, false)) plan();
      set_stage(pack_next() ? Stage::kPacked : Stage::kCounting);
    } catch (const std::exception& error) {
      give_up(error.what());
    }
  }
}

void Replacement::plan() {
  planned_.clear();
  for (size_t layer = 0; layer < layers_.size(); ++layer) {
    Layer& at = layers_[layer];
    if (at.resident == 0) continue;
    for (size_t i = 0; i < at.counts.size(); ++i) at.counts[i] = at.counts[i] / 2 + std::exchange(at.closed[i], 0);
    for (const Swap& swap : choose_swaps(std::span(at.counts).first(at.row.size()), at.resident)) {
      planned_.push_back({{static_cast<int>(layer), swap}, at.counts[swap.host] - at.counts[swap.gpu]});
    }
  }
  std::stable_sort(planned_.begin(), planned_.end(),
                   [](const Planned& a, const Planned& b) { return a.gain < b.gain; });
}

// False where there is nothing to do, or not yet.
bool Replacement::pack_next() {
  const bool settled = std::all_of(files_.begin(), files_.end(), [](const MappedFile& file) { return file.settled(); });
  if (!settled || planned_.empty()) return false;
  batch_.clear();
  for (; !planned_.empty() && batch_.size() < size_t{kSwapsAtOnce}; planned_.pop_back())
    batch_.push_back(planned_.back().swap);
  pack();
  return true;
}

// The rows of the batch, for both sides.
void Replacement::pack() {
  used_ = kMovesBytes;
  n_moves_ = 0;
  host_rows_.clear();
  host_moves_.clear();
  for (const auto& [layer, swap] : batch_) {
    const Layer& at = layers_[layer];
    for (const Part& part : at.parts) {
      pack_for_gpu(part, at.row[swap.host], swap.gpu);
      part.everywhere ? pack_for_gpu(part, at.row[swap.gpu], swap.host)
                      : read_for_host(part, at.row[swap.gpu], swap.host);
    }
  }
}

void Replacement::pack_for_gpu(const Part& part, int row, int position) {
  row_.resize(part.host_bytes);
  part.file->read(part.host - part.file->data() + row * part.host_bytes, row_.data(), part.host_bytes);
  cuda::pack_row(part.type, part.cols, row_.data(), staging_.get() + used_);
  reinterpret_cast<Move*>(staging_.get())[n_moves_++] = {part.device + position * part.device_bytes, space_ + used_,
                                                         part.device_bytes};
  used_ += cuda::device_row_bytes(part.type, part.cols);
}

void Replacement::read_for_host(const Part& part, int row, int position) {
  const size_t at = host_rows_.size();
  host_rows_.resize(at + part.host_bytes);
  part.file->read(part.host - part.file->data() + row * part.host_bytes, &host_rows_[at], part.host_bytes);
  host_moves_.push_back(
      {part.file->writable(part.host + position * part.host_bytes, part.host_bytes), at, part.host_bytes});
}

}  // namespace pi
