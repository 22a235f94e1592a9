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

// A piece is long enough that its copy takes many times what starting it does (0.3 ms at 25 GB/s), and an eighth of a
// layer at most, so that the two of a small model do not displace what they are to help.
constexpr size_t kPieceBytes = size_t{8} << 20;
constexpr int kPiecesOfLayer = 8;
// A product's blocks have 128 columns, its steps 32 elements of a sum (cuda/gemm_cut.h): pieces are whole ones. With
// more columns, products of 512 rows would no longer be cut along their sums, and yet not keep a GPU busy.
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

int whole_columns(int n) { return n >= kColumns ? n / kColumns * kColumns : n; }

int piece_neurons(const LayerWeights& w, int n_neurons) {
  const size_t fit = kPieceBytes / PieceLayout(w, 1).end;
  const int most = static_cast<int>(std::min<size_t>({fit, kMostColumns, size_t(n_neurons / kPiecesOfLayer)}));
  return std::max(most >= kColumns ? whole_columns(most) : most / kStep * kStep, kStep);
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

// A matrix of attention as if it were all that a layer has.
LayerWeights rows_alone(const MatrixView& m) {
  LayerWeights w{};
  w.up = m;
  return w;
}

}  // namespace

StreamPlan plan_stream(const ModelConfig& config, const ModelWeights& weights, const GpuOptions& options) {
  StreamPlan plan;
  if (options.stream_rows > options.max_rows) return plan;
  // Neurons of each layer's pieces.
  std::vector<int> neurons;
  for (size_t layer = 0; layer < weights.layers.size(); ++layer) {
    const LayerWeights& w = weights.layers[layer];
    const int fit = options.stream_neurons > 0 ? options.stream_neurons : piece_neurons(w, config.n_neurons);
    neurons.push_back(std::min(fit, config.n_neurons - options.layers[layer].neurons));
    plan.most_rows = std::max(plan.most_rows, neurons.back());
    plan.bytes = std::max(plan.bytes, PieceLayout(w, neurons.back()).end);
  }
  if (plan.bytes == 0) return plan;
  // Rows of attention are as many as fit where neurons do, and what comes of them where prompts' activations do.
  size_t room = plan.most_rows;
  for (const LayerSplit& layer : options.layers) room = std::max<size_t>(room, layer.neurons);
  const auto cut = [&](int layer, const MatrixView* matrix, const LayerWeights& w, int rows, int most) {
    for (int first = 0; first < rows; first += most) {
      const int count = std::min(most, rows - first);
      plan.pieces.push_back({layer, matrix, first, count});
      plan.product_bytes = std::max(plan.product_bytes, product_bytes(w, count, options.max_rows));
    }
  };
  for (int layer = 0; layer < config.n_layers; ++layer) {
    const LayerWeights& w = weights.layers[layer];
    for (const MatrixView* m : {&w.q, &w.k, &w.v, &w.o}) {
      if (options.layers[layer].attention) break;
      plan.projects = true;
      const LayerWeights alone = rows_alone(*m);
      const size_t row = PieceLayout(alone, 1).end;
      plan.bytes = std::max(plan.bytes, row);
      const int most = whole_columns(static_cast<int>(std::min<size_t>({plan.bytes / row, room, kMostColumns})));
      plan.most_rows = std::max(plan.most_rows, most);
      cut(layer, m, alone, m->rows, most);
    }
    cut(layer, nullptr, w, config.n_neurons - options.layers[layer].neurons, neurons[layer]);
  }
  plan.bytes = cuda::align_up(plan.bytes, 256);
  return plan;
}

WeightStream::WeightStream(std::shared_ptr<cuda::Device> device, std::vector<LayerWeights> cold, const StreamPlan& plan,
                           uint8_t* space)
    : device_(std::move(device)), cold_(std::move(cold)), pieces_(plan.pieces), staging_(nullptr, FreeHost{device_}) {
  staging_.reset(static_cast<uint8_t*>(device_->allocate_host(plan.device_bytes())));
  if (!staging_)
    throw std::runtime_error("GPU: no page-locked memory for " + std::to_string(plan.device_bytes()) + " bytes");
  for (size_t i = 0; i < buffers_.size(); ++i) {
    buffers_[i] = {staging_.get() + i * plan.bytes, space + i * plan.bytes, device_->event(), device_->event()};
  }
}

WeightStream::~WeightStream() { abandon(); }

void WeightStream::begin(const Executor& on) {
  on_ = on;
  sent_ = used_ = 0;
  for (size_t i = 0; i < buffers_.size(); ++i) send();
}

void WeightStream::abandon() noexcept {
  sent_ = used_ = 0;
  try {
    device_->synchronize(Queue::kCopy);  // it reads the buffers
  } catch (const std::exception&) {
    // A device that failed reads nothing any more.
  }
}

// The next piece, which is to be this one.
const StreamPlan::Piece& WeightStream::expect(int layer, const MatrixView* matrix, int first) const {
  const Piece* const next = used_ < sent_ ? &pieces_[used_] : nullptr;
  if (next && next->layer == layer && next->matrix == matrix && next->first == first) return *next;
  throw std::logic_error("GPU: weights of layer " + std::to_string(layer) + " are asked for out of turn");
}

// Those of which the piece is some.
LayerWeights WeightStream::weights(const Piece& piece) const {
  return piece.matrix ? rows_alone(*piece.matrix) : cold_[piece.layer];
}

// What comes now in kCompute has the next piece.
StreamedNeurons WeightStream::arrive() {
  const Buffer& buffer = buffers_[used_ % buffers_.size()];
  device_->wait(Queue::kCompute, *buffer.arrived);
  const LayerWeights w = weights(pieces_[used_]);
  const int count = pieces_[used_].count;
  const PieceLayout at(w, count);
  const auto matrix = [&](const MatrixView& m, size_t offset, size_t row) {
    return m ? cuda::DeviceMatrix{buffer.device + offset, m.type, count, m.cols, row} : cuda::DeviceMatrix{};
  };
  const auto bias = [&](VectorView b, size_t offset) {
    return b ? reinterpret_cast<const float*>(buffer.device + offset) : nullptr;
  };
  return {matrix(w.gate, 0, at.gate_row), matrix(w.up, at.up, at.up_row), matrix(w.down_t, at.down, at.down_row),
          bias(w.gate_bias, at.gate_bias), bias(w.up_bias, at.up_bias)};
}

// What was asked of kCompute reads it; later, another piece may take its place.
void WeightStream::leave() {
  device_->record(Queue::kCompute, *buffers_[used_ % buffers_.size()].used);
  ++used_;
  send();
}

// The next piece, into the buffer that is free or will be.
void WeightStream::send() {
  if (sent_ == pieces_.size()) return;
  Buffer& buffer = buffers_[sent_ % buffers_.size()];
  while (!device_->done(*buffer.arrived)) std::this_thread::yield();
  const size_t bytes = pack(pieces_[sent_], buffer.host);
  device_->wait(Queue::kCopy, *buffer.used);
  device_->upload(Queue::kCopy, buffer.device, buffer.host, bytes);
  device_->record(Queue::kCopy, *buffer.arrived);
  ++sent_;
  sent_bytes_ += bytes;
}

size_t WeightStream::pack(const Piece& piece, uint8_t* to) const {
  const LayerWeights w = weights(piece);
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
