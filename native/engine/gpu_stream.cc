#include "engine/gpu_stream.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>

#include "cuda/layout.h"
#include "cuda/workspace.h"

namespace pi {
namespace {

using cuda::Queue;

// A piece is long enough that its copy takes many times what starting it does (0.3 ms at 25 GB/s), and an eighth of a layer
// at most, so that the two of a small model do not displace what they are to help.
constexpr size_t kPieceBytes = size_t{8} << 20;
constexpr int kPiecesOfLayer = 8;
// A product's blocks have 128 columns, its steps 32 elements of a sum (cuda/gemm_cut.h): pieces are whole ones. With more
// columns, products of 512 rows would no longer be cut along their sums, and yet not keep a GPU busy.
constexpr int kColumns = 128, kStep = 32, kMostColumns = 1024;

// Where the parts of a piece lie in its buffer.
struct PieceLayout {
  size_t gate_row, up_row, down_row;  // bytes; no gate: 0
  size_t up, down, gate_bias, up_bias, end;

  PieceLayout(const LayerWeights& w, int count) {
    const auto row = [](const MatrixView& m) { return m ? cuda::device_row_bytes(m.type, m.cols) : 0; };
    gate_row = row(w.gate), up_row = row(w.up), down_row = row(w.down_t);
    up = count * gate_row;
    down = up + count * up_row;
    gate_bias = down + count * down_row;
    up_bias = gate_bias + (w.gate_bias ? count * sizeof(float) : 0);
    end = up_bias + (w.up_bias ? count * sizeof(float) : 0);
  }
};

int piece_neurons(const LayerWeights& w, int n_neurons) {
  const size_t fit = kPieceBytes / PieceLayout(w, 1).end;
  const int most = static_cast<int>(std::min<size_t>({fit, kMostColumns, size_t(n_neurons / kPiecesOfLayer)}));
  const int whole = most >= kColumns ? kColumns : kStep;
  return std::max(most / whole * whole, kStep);
}

// Of a prompt's products with one piece.
size_t product_bytes(const LayerWeights& w, int count, int rows) {
  size_t most = 0;
  const auto need = [&](const MatrixView& m, bool transposed) {
    if (!m) return;
    const cuda::DeviceMatrix on_gpu{nullptr, m.type, count, m.cols, cuda::device_row_bytes(m.type, m.cols)};
    most = std::max(most, cuda::gemm_workspace(on_gpu, transposed, rows));
  };
  need(w.gate, false), need(w.up, false), need(w.down_t, true);
  return most;
}

}  // namespace

StreamPlan plan_stream(const ModelConfig& config, const ModelWeights& weights, const GpuOptions& options) {
  StreamPlan plan;
  plan.neurons.resize(weights.layers.size());
  if (options.stream_rows > options.max_rows) return plan;
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    const LayerWeights& w = weights.layers[layer];
    const int cold = config.n_neurons - options.layers[layer].neurons;
    if (cold == 0) continue;
    const int fit = options.stream_neurons > 0 ? options.stream_neurons : piece_neurons(w, config.n_neurons);
    const int most = plan.neurons[layer] = std::min(fit, cold);
    plan.most_neurons = std::max(plan.most_neurons, most);
    plan.bytes = std::max(plan.bytes, cuda::align_up(PieceLayout(w, most).end, 256));
    for (int count : {most, cold % most}) {
      if (count > 0) plan.product_bytes = std::max(plan.product_bytes, product_bytes(w, count, options.max_rows));
    }
  }
  return plan;
}

NeuronStream::NeuronStream(std::shared_ptr<cuda::Device> device, std::vector<LayerWeights> cold, const StreamPlan& plan, uint8_t* space)
    : device_(std::move(device)), cold_(std::move(cold)), neurons_(plan.neurons), staging_(nullptr, FreeHost{device_}) {
  staging_.reset(static_cast<uint8_t*>(device_->allocate_host(plan.device_bytes())));
  if (!staging_) throw std::runtime_error("GPU: no page-locked memory for " + std::to_string(plan.device_bytes()) + " bytes");
  for (size_t i = 0; i < buffers_.size(); ++i) {
    buffers_[i] = {staging_.get() + i * plan.bytes, space + i * plan.bytes, device_->event(), device_->event(), {}};
  }
}

NeuronStream::~NeuronStream() { abandon(); }

void NeuronStream::begin(const Executor& on) {
  on_ = on;
  next_ = {};
  sent_ = used_ = 0;
  for (size_t i = 0; i < buffers_.size(); ++i) send();
}

void NeuronStream::abandon() noexcept {
  sent_ = used_ = 0;
  try {
    device_->synchronize(Queue::kCopy);  // it reads the buffers
  } catch (const std::exception&) {
    // A device that failed reads nothing any more.
  }
}

// What comes now in kCompute has the next piece.
StreamedNeurons NeuronStream::arrive() {
  const Buffer& buffer = buffers_[used_ % buffers_.size()];
  device_->wait(Queue::kCompute, *buffer.arrived);
  const LayerWeights& w = cold_[buffer.piece.layer];
  const int count = buffer.piece.count;
  const PieceLayout at(w, count);
  const auto matrix = [&](const MatrixView& m, size_t offset, size_t row) {
    return m ? cuda::DeviceMatrix{buffer.device + offset, m.type, count, m.cols, row} : cuda::DeviceMatrix{};
  };
  const auto bias = [&](VectorView b, size_t offset) { return b ? reinterpret_cast<const float*>(buffer.device + offset) : nullptr; };
  return {matrix(w.gate, 0, at.gate_row), matrix(w.up, at.up, at.up_row), matrix(w.down_t, at.down, at.down_row),
          bias(w.gate_bias, at.gate_bias), bias(w.up_bias, at.up_bias)};
}

// What was asked of kCompute reads it; later, another piece may take its place.
void NeuronStream::leave() {
  device_->record(Queue::kCompute, *buffers_[used_ % buffers_.size()].used);
  ++used_;
  send();
}

// False where nothing is left of the step.
bool NeuronStream::find_next() {
  const int layers = static_cast<int>(cold_.size());
  while (next_.layer < layers && next_.first >= cold_[next_.layer].up.rows) next_ = {next_.layer + 1, 0, 0};
  if (next_.layer == layers) return false;
  next_.count = std::min(neurons_[next_.layer], cold_[next_.layer].up.rows - next_.first);
  return true;
}

// The next piece, into the buffer that is free or will be.
void NeuronStream::send() {
  if (!find_next()) return;
  Buffer& buffer = buffers_[sent_ % buffers_.size()];
  while (!device_->done(*buffer.arrived)) std::this_thread::yield();
  const size_t bytes = pack(next_, buffer.host);
  device_->wait(Queue::kCopy, *buffer.used);
  device_->upload(Queue::kCopy, buffer.device, buffer.host, bytes);
  device_->record(Queue::kCopy, *buffer.arrived);
  buffer.piece = next_;
  next_.first += next_.count;
  ++sent_;
  sent_bytes_ += bytes;
}

size_t NeuronStream::pack(const Piece& piece, uint8_t* to) const {
  const LayerWeights& w = cold_[piece.layer];
  const PieceLayout at(w, piece.count);
  const auto copy = [&](const MatrixView& m, size_t offset, size_t row, int i) {
    if (m) cuda::pack_row(m.type, m.cols, m.data + size_t(piece.first + i) * m.row_bytes, to + offset + i * row);
  };
  on_.ranges(piece.count, 1, [&](int begin, int end) {
    for (int i = begin; i < end; ++i) copy(w.gate, 0, at.gate_row, i);
    for (int i = begin; i < end; ++i) copy(w.up, at.up, at.up_row, i);
    for (int i = begin; i < end; ++i) copy(w.down_t, at.down, at.down_row, i);
  });
  const auto add = [&](VectorView bias, size_t offset) {
    if (bias) std::memcpy(to + offset, bias + piece.first, piece.count * sizeof(float));
  };
  add(w.gate_bias, at.gate_bias), add(w.up_bias, at.up_bias);
  return at.end;
}

}  // namespace pi
