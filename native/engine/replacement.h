// Online re-placement: neurons that are asked for more often than others on the GPU change places with them while the
// model is served. A layer's GPU neurons stay its first ones; what changes is which of the file's neurons a position
// holds: its rows of gate, up and down, their biases, and what the predictor scores it by. Nothing else in the engine
// knows.
//
// A batch of swaps goes through four hands, and no token waits for any of them: a thread of its own reads the rows from
// the file and packs them; between two steps the copy to the GPU is started, on the queue that works beside them;
// between two later ones, when it has arrived, one kernel puts the GPU's rows in place and the host copies its own.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "base/mapped_file.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "engine/gpu_model.h"
#include "engine/split.h"
#include "engine/swaps.h"
#include "engine/weights.h"

namespace pi {

// Device memory that batches arrive in; 0 where no layer is re-placed.
size_t swap_bytes(const DeviceModel& model, const GpuOptions& options, int n_neurons);

struct LayerSwap {
  int layer;
  Swap swap;
};

// One call at a time, from the thread that runs the steps.
class Replacement {
 public:
  // `space` holds swap_bytes() of the device's memory. All the arguments outlive it.
  Replacement(std::shared_ptr<cuda::Device> device, const ModelWeights& weights, const DeviceModel& model,
              const GpuOptions& options, std::span<MappedFile> files, uint8_t* space);
  ~Replacement();
  Replacement(const Replacement&) = delete;
  Replacement& operator=(const Replacement&) = delete;

  bool covers(int layer) const { return layers_[layer].resident > 0; }
  // Counts what a row of decoding asked for: bit i of `mask` for position i. Layers in ascending order, one row after
  // another.
  void count(int layer, const uint32_t* mask);
  // Before a step, when nothing of the last one is still at work. Returns how many pairs of neurons changed places;
  // waits for nothing. Throws when the device failed.
  int between_steps();
  // The same with these swaps, at once. They name no position twice. Throws where that cannot be.
  void swap(std::span<const LayerSwap> swaps);
  // Leaves what is under way where it is, for ever: a step failed, and who knows what the device still does.
  void give_up(const std::string& why);
  // Why no more neurons will change places; empty: they will.
  std::string stopped() const;

 private:
  // Something that has a row for every neuron; in the file those of a layer follow one another.
  struct Part {
    MappedFile* file;
    uint8_t* device;
    const uint8_t* host;  // of neuron 0
    DType type;
    size_t cols, host_bytes, device_bytes;  // of a row
    bool everywhere;                        // the GPU has the rows of all neurons, and the host reads none
  };
  struct Layer {
    int resident = 0;  // 0: not re-placed
    std::vector<Part> parts;
    std::vector<int32_t> row;      // of the file, by position
    std::vector<uint32_t> window;  // counts by position of the rows since the last window was closed
    std::vector<uint32_t> closed;  // of that window, until the thread has added it to
    std::vector<uint32_t> counts;  // the past, halved with every window
  };
  struct Planned {
    LayerSwap swap;
    uint32_t gain;  // how much more often the host's was asked for
  };
  struct HostRow {
    uint8_t* to;
    size_t at, bytes;  // in host_rows_
  };
  // Whose turn it is.
  enum class Stage {
    kCounting,  // nobody's, until a window is full
    kPacking,   // the thread's
    kPacked,    // a batch is to be sent
    kSent,      // it is on its way
    kStopped,   // nobody's any more
  };
  struct FreeHost {
    std::shared_ptr<cuda::Device> device;
    void operator()(uint8_t* memory) const { device->free_host(memory); }
  };

  Layer cover(const LayerWeights& weights, const DeviceLayer& on_gpu, int resident);
  void close_window();
  void work(const std::stop_token& stop);
  void plan();
  bool pack_next();
  void pack();
  void pack_for_gpu(const Part& part, int row, int position);
  void read_for_host(const Part& part, int row, int position);
  void send();
  void put_in_place();
  Stage stage() const;
  void set_stage(Stage stage);

  std::shared_ptr<cuda::Device> device_;
  std::span<MappedFile> files_;
  std::vector<Layer> layers_;
  int first_ = -1;  // of the layers that are covered
  int rows_ = 0;    // in the window
  uint8_t* space_;  // device memory: moves, then rows

  // The batch that is under way.
  std::vector<LayerSwap> batch_;
  std::unique_ptr<uint8_t, FreeHost> staging_;  // page-locked, the same as in `space_`
  size_t used_ = 0;
  int n_moves_ = 0;
  std::vector<uint8_t> row_, host_rows_;
  std::vector<HostRow> host_moves_;
  std::unique_ptr<cuda::Event> sent_, placed_;

  bool window_closed_ = false;
  std::vector<Planned> planned_;  // best last
  mutable std::mutex mutex_;
  std::condition_variable_any changed_;
  Stage stage_ = Stage::kCounting;
  std::string stopped_;
  std::jthread thread_;  // last: ended first
};

}  // namespace pi
