// Page-locked memory in which host and GPU leave each other what the other half of a step needs. Whoever waits, waits
// for a word to reach the number of the step.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace pi {

// What a layer's halves tell each other.
enum class Mail : int {
  kStream,     // host to GPU: the stream before attention
  kFfnInput,   // host to GPU: what the FFN reads
  kHostPart,   // host to GPU: what the host adds to the stream
  kFfnAsked,   // GPU to host: what the FFN reads, and which neurons are asked for
  kGpuStream,  // GPU to host: what the GPU adds to the stream
};
constexpr int kMails = 5;

class Mailbox {
 public:
  // A vector of `dim` for each of `rows` rows in every box, and masks of `mask_words` for `mask_rows` rows a layer.
  Mailbox(std::shared_ptr<cuda::Device> device, int n_layers, int dim, int rows, int mask_words, int mask_rows);

  // [rows, dim]. What the GPU gives is overwritten by the next layer once it was answered, so a layer that has nothing
  // to do for the host must not be read.
  float* box(Mail mail) { return boxes_ + static_cast<int>(mail) * box_floats_; }
  uint32_t* mask(int layer) { return masks_ + layer * mask_size_; }
  uint32_t* abort() { return flags_; }
  // Where the GPU meets the host for this; `step` is the step's number in device memory.
  cuda::Meeting meeting(Mail mail, int layer, const uint32_t* step) { return {flag(mail, layer), step, flags_}; }

  void signal(Mail mail, int layer, uint32_t step) {
    std::atomic_ref(*flag(mail, layer)).store(step, std::memory_order_release);
  }
  bool arrived(Mail mail, int layer, uint32_t step) {
    return static_cast<int32_t>(std::atomic_ref(*flag(mail, layer)).load(std::memory_order_acquire) - step) >= 0;
  }
  void set_abort(bool on) { std::atomic_ref(*flags_).store(on ? 1u : 0u, std::memory_order_release); }

 private:
  static constexpr int kLineWords = 16;  // flags do not share cache lines
  uint32_t* flag(Mail mail, int layer) {
    return flags_ + (1 + size_t(layer) * kMails + static_cast<int>(mail)) * kLineWords;
  }

  struct FreeHost {
    std::shared_ptr<cuda::Device> device;
    void operator()(void* p) const { device->free_host(p); }
  };
  std::unique_ptr<void, FreeHost> memory_;
  uint32_t* flags_;
  float* boxes_;
  uint32_t* masks_;
  size_t box_floats_, mask_size_;
};

}  // namespace pi
