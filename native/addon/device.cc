// device(): DeviceReport, probeDevice(bytes): Promise<DeviceMeasurement>
#include "cuda/device.h"

#include <napi.h>

#include <memory>
#include <stdexcept>

#include "addon/arrays.h"
#include "addon/async.h"
#include "engine/device_probe.h"

namespace pi::addon {
namespace {

// As CUDA numbers them: 12040 is 12.4.
std::string version(int number) { return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10); }

// Opened anew each time and closed again: whoever asks wants to know what is there, and seldom.
Napi::Value device(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  Napi::Object out = Napi::Object::New(env);
  const cuda::Opened opened = cuda::open_device();
  out.Set("found", opened.device != nullptr);
  if (!opened.device) {
    out.Set("reason", opened.reason);
    return out;
  }
  const cuda::DeviceInfo& found = opened.device->info();
  out.Set("name", found.name);
  out.Set("backend", found.backend);
  out.Set("compute", std::to_string(found.compute_major) + "." + std::to_string(found.compute_minor));
  out.Set("multiprocessors", found.multiprocessors);
  out.Set("totalBytes", static_cast<double>(found.total_bytes));
  out.Set("freeBytes", static_cast<double>(found.free_bytes));
  out.Set("contextBytes", static_cast<double>(found.context_bytes));
  out.Set("driverVersion", version(found.driver_version));
  out.Set("runtimeVersion", version(found.runtime_version));
  return out;
}

Napi::Value probe(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const double bytes = info.Length() == 1 && info[0].IsNumber() ? info[0].As<Napi::Number>().DoubleValue() : 0;
  if (!(bytes >= 4096 && bytes <= 1e15)) fail(env, "probeDevice: expected a number of bytes, 4096 or more");
  auto found = std::make_shared<engine::DeviceProbe>();
  return AsyncCall::start(
      env, {},
      [=] {
        const cuda::Opened opened = cuda::open_device();
        if (!opened.device) throw std::runtime_error("no GPU: " + opened.reason);
        *found = engine::probe_device(*opened.device, static_cast<size_t>(bytes));
      },
      [=](Napi::Env env) {
        Napi::Object out = Napi::Object::New(env);
        out.Set("bandwidth", found->bandwidth);
        out.Set("linkBandwidth", found->link_bandwidth);
        out.Set("syncSeconds", found->sync_seconds);
        out.Set("launchSeconds", found->launch_seconds);
        return out;
      });
}

}  // namespace

void register_device(Napi::Env env, Napi::Object exports) {
  exports.Set("device", Napi::Function::New(env, device));
  exports.Set("probeDevice", Napi::Function::New(env, probe));
}

}  // namespace pi::addon
