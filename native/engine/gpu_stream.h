// The host's neurons on their way through the GPU. A prompt of many rows is bound by arithmetic, of which the GPU has so much
// more that sending it a layer's cold neurons and multiplying there takes less time than multiplying here. They go in pieces
// through two buffers of page-locked memory and two of the device: while the GPU multiplies with one piece, the next is on
// the bus, and the host packs the one after that, across the ends of layers.
//
// Who waits for whom: a copy to the device for the products that read what it overwrites, products for their copy, and the
// host, before it packs, for the copy that reads its buffer. So the host waits for work it has given already, never for
// what it has yet to give, as long as nothing in kCompute before a piece's products waits for the host's later answers.
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

// How a model's cold neurons are cut, and what that takes of the device's memory.
struct StreamPlan {
  std::vector<int> neurons;  // of a layer's pieces; 0: it has no cold ones
  // Of a piece, at most: rows of gate, up and down as in cuda/layout.h, then biases. 0: nothing is streamed.
  size_t bytes = 0;
  size_t product_bytes = 0;  // that its products work in
  int most_neurons = 0;

  size_t device_bytes() const { return kBuffers * bytes; }
  static constexpr int kBuffers = 2;
};

// Nothing where no layer has cold neurons, or a step never has rows enough.
StreamPlan plan_stream(const ModelConfig& config, const ModelWeights& weights, const GpuOptions& options);

// Neurons of one layer in device memory.
struct StreamedNeurons {
  cuda::DeviceMatrix gate, up, down;
  const float *gate_bias = nullptr, *up_bias = nullptr;
};

// Not thread-safe: one step at a time, from the thread that launches it.
class NeuronStream {
 public:
  // `cold`: of every layer the host's neurons, which may be none. `space` holds plan.device_bytes() of the device's memory.
  NeuronStream(std::shared_ptr<cuda::Device> device, std::vector<LayerWeights> cold, const StreamPlan& plan, uint8_t* space);
  ~NeuronStream();
  NeuronStream(const NeuronStream&) = delete;
  NeuronStream& operator=(const NeuronStream&) = delete;

  // A step begins, of all layers' neurons: the first pieces are sent. `on` packs, until the step's end.
  void begin(const Executor& on);

  // use(StreamedNeurons) for the layer's pieces in order; it launches into kCompute what reads them. Layers in ascending
  // order, each once in a step.
  template <typename F>
  void each(int layer, F&& use) {
    while (used_ < sent_ && current().layer == layer) {
      use(arrive());
      leave();
    }
  }

  // Ends a step before its end, when nothing is at work in kCompute any more.
  void abandon() noexcept;

  // Those since it was asked last.
  uint64_t take_sent_bytes() { return std::exchange(sent_bytes_, 0); }

 private:
  struct Piece {
    int layer = 0, first = 0, count = 0;
  };
  // A piece's place on both sides.
  struct Buffer {
    uint8_t *host = nullptr, *device = nullptr;
    std::unique_ptr<cuda::Event> arrived;  // in kCopy
    std::unique_ptr<cuda::Event> used;     // in kCompute
    Piece piece;
  };
  struct FreeHost {
    std::shared_ptr<cuda::Device> device;
    void operator()(uint8_t* memory) const { device->free_host(memory); }
  };

  const Piece& current() const { return buffers_[used_ % buffers_.size()].piece; }
  StreamedNeurons arrive();
  void leave();
  bool find_next();
  void send();
  size_t pack(const Piece& piece, uint8_t* to) const;

  std::shared_ptr<cuda::Device> device_;
  std::vector<LayerWeights> cold_;
  std::vector<int> neurons_;  // of a piece, by layer
  std::unique_ptr<uint8_t, FreeHost> staging_;  // page-locked
  std::array<Buffer, StreamPlan::kBuffers> buffers_;

  Executor on_;
  Piece next_;                    // to be sent
  size_t sent_ = 0, used_ = 0;    // pieces of this step
  uint64_t sent_bytes_ = 0;
};

}  // namespace pi
