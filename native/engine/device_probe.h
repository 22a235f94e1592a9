// How fast a GPU reads its memory, how fast the host's reaches it, and what a kernel and a meeting of the two cost:
// what `pi place` prices a split with.
#pragma once

#include <cstddef>

#include "cuda/device.h"

namespace pi::engine {

struct DeviceProbe {
  double bandwidth = 0;       // bytes a second that a kernel reads of device memory
  double link_bandwidth = 0;  // that a copy brings from page-locked memory
  // T_sync: the GPU gives a row to the host, which answers at once with another; from the one kernel to the end of the
  // other.
  double sync_seconds = 0;
  // What a small kernel of a recorded program takes that reads what the one before it wrote: launch, fill and drain,
  // and one trip to memory.
  double launch_seconds = 0;
};

// `bytes` of device and of page-locked memory are taken for it, or what there is. Throws std::runtime_error as a device
// does, and where there is no memory at all.
DeviceProbe probe_device(cuda::Device& device, size_t bytes);

}  // namespace pi::engine
