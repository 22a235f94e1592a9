// The entry of pi_emulated.
#include <cstdio>
#include <exception>

#include "cuda/emulator_device.h"
#include "cuda/launchers.h"
#include "cuda/module.h"

extern "C" __attribute__((visibility("default"))) pi::cuda::Device* pi_open_device(uint64_t interface, int ordinal,
                                                                                   char* reason, size_t reason_bytes) {
  using namespace pi::cuda;
  if (interface != interface_id()) {
    std::snprintf(reason, reason_bytes,
                  "pi_emulated was built from other sources than the engine; build it again: npm run build:native");
    return nullptr;
  }
  try {
    return emulator::make_device(launchers()).release();
  } catch (const std::exception& error) {
    std::snprintf(reason, reason_bytes, "%s", error.what());
    return nullptr;
  }
}
