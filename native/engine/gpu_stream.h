// The host's weights on their way through the GPU. A prompt of many rows is bound by arithmetic, of which the GPU has
// so much more that sending it a layer's cold neurons, and the projections of attention that is the host's, takes less
// time than multiplying here. They go in pieces through two buffers of page-locked memory and two of the device: while
// the GPU multiplies with one piece, the next is on the bus, and the host packs the one after that, across the ends of
// layers.
//
// Who waits for whom: a copy to the device for the products that read what it overwrites, products for their copy, and
// the host, before it packs, for the copy that reads its buffer. So the host waits for work it has given already, never
// for what it has yet to give, as long as nothing in kCompute before a piece's products waits for the host's later
// answers.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "engine/parallel.h"
#include "engine/split.h"
#include "engine/weights.h"

namespace pi {

// How a model's weights in main memory are cut, and what that takes of the device's.
struct StreamPlan {
  // Some rows of a matrix of attention, or (matrix null) of the layer's cold neurons.
  struct Piece {
    int layer;
    const MatrixView* matrix;
    int first, count;
  };
  std::vector<Piece> pieces;  // of a step, as it needs them; none: nothing is streamed
  // Of a piece, at most: rows as in cuda/layout.h, of gate, up and down one after another and then biases.
  size_t bytes = 0;
  size_t product_bytes = 0;  // that its products work in
  int most_rows = 0;         // of a piece
  bool projects = false;     // some are of attention

  size_t device_bytes() const { return kBuffers * bytes; }
  static constexpr int kBuffers = 2;
};

// Nothing where no layer has cold neurons, or a step never has rows enough. Pieces point into `weights`.
StreamPlan plan_stream(const ModelConfig& config, const ModelWeights& weights, const GpuOptions& options);

// Neurons of one layer in device memory.
struct StreamedNeurons {
  cuda::DeviceMatrix gate, up, down;
  const float *gate_bias = nullptr, *up_bias = nullptr;
};

// Not thread-safe: one step at a time, from the thread that launches it.
class WeightStream {
 public:
  // `cold`: of every layer the host's neurons, which may be none. `space` holds plan.device_bytes() of the device's
  // memory.
  WeightStream(std::shared_ptr<cuda::Device> device, std::vector<LayerWeights> cold, const StreamPlan& plan,
               uint8_t* space);
  ~WeightStream();
  WeightStream(const WeightStream&) = delete;
  WeightStream& operator=(const WeightStream&) = delete;

  // A step begins, of all layers: the first pieces are sent. `on` packs, until the step's end.
  void begin(const Executor& on);

  // use(StreamedNeurons) for the pieces of a layer's cold neurons in order; it launches into kCompute what reads them.
  // Layers in ascending order, each once in a step.
  template <typename F>
  void neurons(int layer, F&& use) {
    for (int first = 0; first < cold_[layer].up.rows;) {
      const Piece& piece = expect(layer, nullptr, first);
      first += piece.count;
      use(arrive());
      leave();
    }
  }
  // use(cuda::DeviceMatrix) likewise for rows of a matrix of attention: q, k, v and o before the layer's neurons.
  template <typename F>
  void rows(int layer, const MatrixView& w, F&& use) {
    for (int first = 0; first < w.rows;) {
      const Piece& piece = expect(layer, &w, first);
      first += piece.count;
      use(arrive().up);
      leave();
    }
  }

  // Ends a step before its end, when nothing is at work in kCompute any more.
  void abandon() noexcept;

  // Those since it was asked last.
  uint64_t take_sent_bytes() { return std::exchange(sent_bytes_, 0); }

 private:
  using Piece = StreamPlan::Piece;
  // A piece's place on both sides.
  struct Buffer {
    uint8_t *host = nullptr, *device = nullptr;
    std::unique_ptr<cuda::Event> arrived;  // in kCopy
    std::unique_ptr<cuda::Event> used;     // in kCompute
  };
  struct FreeHost {
    std::shared_ptr<cuda::Device> device;
    void operator()(uint8_t* memory) const { device->free_host(memory); }
  };

  const Piece& expect(int layer, const MatrixView* matrix, int first) const;
  StreamedNeurons arrive();
  void leave();
  void send();
  LayerWeights weights(const Piece& piece) const;
  size_t pack(const Piece& piece, uint8_t* to) const;

  std::shared_ptr<cuda::Device> device_;
  std::vector<LayerWeights> cold_;
  std::vector<Piece> pieces_;
  std::unique_ptr<uint8_t, FreeHost> staging_;  // page-locked
  std::array<Buffer, StreamPlan::kBuffers> buffers_;

  Executor on_;
  size_t sent_ = 0, used_ = 0;  // pieces of this step
  uint64_t sent_bytes_ = 0;
};

}  // namespace pi
