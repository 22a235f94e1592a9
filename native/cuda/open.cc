// Finds and loads what was built for a device. Nothing is loaded before a device is asked for, so one addon runs on
// every machine.
#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

#include "cuda/module.h"

namespace pi::cuda {

namespace {

// The folder of the file that this code was loaded from: the addon, or an executable.
std::string own_folder() {
  Dl_info info{};
  if (::dladdr(reinterpret_cast<const void*>(&own_folder), &info) == 0 || info.dli_fname == nullptr) return ".";
  const std::string path = info.dli_fname;
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash);
}

// PI_DEVICE_PATH, or beside ourselves.
std::string module_path(const std::string& name) {
  const char* const folder = std::getenv("PI_DEVICE_PATH");
  return (folder != nullptr && *folder != '\0' ? std::string(folder) : own_folder()) + "/" + name + ".so";
}

Opened none(std::string reason) { return {nullptr, std::move(reason)}; }

// What a module that is not there would have been for.
std::string not_built(const std::string& name) {
  if (name == "pi_emulated")
    return "the emulator was not built; build it with: cmake --build build --target pi_emulated";
  if (name == "pi_hip") {
    if (::access("/dev/kfd", F_OK) != 0) return "no AMD driver is loaded";
    return "an AMD driver is loaded, but the engine was built without HIP; install hipcc, then: PI_HIP=1 npm run "
           "build:native";
  }
  const bool driver =
      ::access("/proc/driver/nvidia/version", F_OK) == 0 || ::access("/usr/lib/wsl/lib/libcuda.so.1", F_OK) == 0;
  if (!driver) return "no NVIDIA driver is loaded";
  return "an NVIDIA driver is loaded, but the engine was built without CUDA; install the CUDA toolkit (nvcc), then: "
         "npm run build:native";
}

Opened open_module(const std::string& name, int ordinal) {
  const std::string path = module_path(name);
  if (::access(path.c_str(), F_OK) != 0) return none(not_built(name));
  void* const module = ::dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // never closed: its threads and memory live on
  if (module == nullptr) {
    const char* const why = ::dlerror();
    return none(path + " does not load: " + (why != nullptr ? why : "unknown"));
  }
  const auto open = reinterpret_cast<OpenFunction*>(::dlsym(module, kOpenFunction));
  if (open == nullptr) return none(path + " has no " + kOpenFunction);
  char reason[512] = "";
  Device* const device = open(interface_id(), ordinal, reason, sizeof reason);
  if (device == nullptr) return none(reason);
  return {std::shared_ptr<Device>(device), ""};
}

}  // namespace

Opened open_device(int ordinal) {
  const char* const setting = std::getenv("PI_DEVICE");
  const std::string which = setting != nullptr && *setting != '\0' ? setting : "cuda";
  if (which == "none") return none("PI_DEVICE is none");
  if (which == "emulated") return open_module("pi_emulated", ordinal);
  if (which == "cuda") return open_module("pi_cuda", ordinal);
  if (which == "hip") return open_module("pi_hip", ordinal);
  return none("PI_DEVICE is " + which + ", not none, cuda, hip or emulated");
}

}  // namespace pi::cuda
