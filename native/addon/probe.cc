// readBandwidth(bytes, threads, seconds): Promise<number>
#include <napi.h>

#include <memory>

#include "addon/async.h"
#include "engine/probe.h"

namespace pi::addon {

namespace {

Napi::Value read_bandwidth(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 3 || !info[0].IsNumber() || !info[1].IsNumber() || !info[2].IsNumber()) {
    throw Napi::TypeError::New(env, "readBandwidth: expected (bytes, threads, seconds)");
  }
  const double bytes = info[0].As<Napi::Number>();
  const int threads = info[1].As<Napi::Number>();
  const double seconds = info[2].As<Napi::Number>();
  auto bandwidth = std::make_shared<double>(0);
  return AsyncCall::start(
      env, {},
      [=] { *bandwidth = engine::read_bandwidth(bytes > 0 ? static_cast<size_t>(bytes) : 0, threads, seconds); },
      [=](Napi::Env env) { return Napi::Number::New(env, *bandwidth); });
}

}  // namespace

void register_probe(Napi::Env env, Napi::Object exports) {
  exports.Set("readBandwidth", Napi::Function::New(env, read_bandwidth));
}

}  // namespace pi::addon
