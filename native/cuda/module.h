// What pi_cuda and pi_emulated, which are loaded when a device is first asked for, give to who loads them: one function
// of C linkage. Everything they share was compiled from the same headers, or the call is refused.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/device.h"
#include "cuda/kernels.h"

namespace pi::cuda {

// Changes with the meaning of what is in device.h and kernels.h; their sizes are told apart without it.
constexpr uint32_t kInterfaceVersion = 1;

constexpr uint64_t interface_id() {
  uint64_t id = kInterfaceVersion;
  for (size_t size : {sizeof(DeviceInfo), sizeof(Kernels), sizeof(DeviceMatrix), sizeof(DeviceRows), sizeof(Meeting),
                      sizeof(Receive),    sizeof(Publish), sizeof(Stamp),        sizeof(Norm),       sizeof(Quantize),
                      sizeof(Merge),      sizeof(Project), sizeof(Gemm),         sizeof(Activate),   sizeof(StoreKv),
                      sizeof(Attend),     sizeof(Score),   sizeof(Select),       sizeof(Neurons),    sizeof(Down),
                      sizeof(Highest),    sizeof(Sweep)}) {
    id = id * 1099511628211ull + size;
  }
  return id;
}

// Opens a device; null where there is none, with the reason (zero-terminated, cut to what fits). Throws nothing.
using OpenFunction = Device*(uint64_t interface, int ordinal, char* reason, size_t reason_bytes);
constexpr const char* kOpenFunction = "pi_open_device";

}  // namespace pi::cuda
