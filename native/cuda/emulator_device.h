// A device of the emulator: its queues are two OS threads, its memory is the host's.
#pragma once

#include <memory>

#include "cuda/device.h"

namespace pi::cuda::emulator {

// `kernels` outlives it. PI_EMULATOR_MEMORY: bytes of device memory it says it has; PI_EMULATOR_SEED: order of lanes
// and blocks; PI_EMULATOR_FAIL: the kernel that fails, by its number, counted from 1, or by its name: each of that;
// PI_EMULATOR_REFUSE: the number of the launch that is not accepted; PI_EMULATOR_QUEUE: launches that wait at most
// (1,000).
std::unique_ptr<Device> make_device(const Kernels& kernels);

}  // namespace pi::cuda::emulator
