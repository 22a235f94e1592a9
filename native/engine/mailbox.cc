#include "engine/mailbox.h"

#include <stdexcept>
#include <string>

namespace pi {

Mailbox::Mailbox(std::shared_ptr<cuda::Device> device, int n_layers, int dim, int rows, int mask_words, int mask_rows)
    : memory_(nullptr, FreeHost{device}),
      box_floats_((size_t(rows) * dim + kLineWords - 1) / kLineWords * kLineWords),
      mask_size_(size_t(mask_words) * mask_rows) {
  const size_t flags = (1 + size_t(n_layers) * kMails) * kLineWords, boxes = kMails * box_floats_;
  const size_t bytes = sizeof(uint32_t) * (flags + boxes + n_layers * mask_size_);
  memory_.reset(device->allocate_host(bytes));
  if (!memory_) throw std::runtime_error("GPU: no page-locked memory for " + std::to_string(bytes) + " bytes");
  flags_ = static_cast<uint32_t*>(memory_.get());
  boxes_ = reinterpret_cast<float*>(flags_ + flags);
  masks_ = flags_ + flags + boxes;
}

}  // namespace pi
