// readBandwidth(bytes, threads, seconds): Promise<number>, probeKernels(probes, bytes, threads, seconds):
// Promise<Float64Array>
#include <napi.h>

#include <algorithm>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "addon/async.h"
#include "addon/dtype.h"
#include "engine/kernel_probe.h"
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

// Index of `name` in `names`; throws a TypeError that names the member `what` where it is none.
template <size_t N>
int index_of(Napi::Env env, const char* what, const std::string& name, const char* const (&names)[N]) {
  const auto found = std::find(std::begin(names), std::end(names), name);
  if (found == std::end(names))
    throw Napi::TypeError::New(env, std::string("probeKernels: ") + what + ": unknown " + name);
  return static_cast<int>(found - std::begin(names));
}

engine::KernelProbe read_probe(const Napi::Object& from) {
  constexpr const char* kKinds[] = {"read",   "loop", "project",    "neurons", "attention",
                                    "stream", "scan", "vocabulary", "rank"};  // as engine::KernelProbe::Kind
  constexpr const char* kKvTypes[] = {"f32", "f16", "q8"};                    // as kernels::KvType
  const Napi::Env env = from.Env();
  const auto text = [&](const char* key, const char* absent) {
    return from.Has(key) ? std::string(from.Get(key).ToString()) : absent;
  };
  const auto number = [&](const char* key, double absent) {
    return from.Has(key) ? from.Get(key).ToNumber().DoubleValue() : absent;
  };
  engine::KernelProbe probe;
  probe.kind = static_cast<engine::KernelProbe::Kind>(index_of(env, "kind", text("kind", ""), kKinds));
  probe.type = read_dtype(env, "probeKernels: type", text("type", "f32"));
  probe.kv = static_cast<kernels::KvType>(index_of(env, "kvType", text("kvType", "f16"), kKvTypes));
  probe.cols = static_cast<int>(number("cols", 0));
  probe.every = static_cast<int>(number("every", 1));
  probe.positions = static_cast<int>(number("positions", 0));
  probe.queries = static_cast<int>(number("queries", 1));
  return probe;
}

Napi::Value probe_kernels(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (info.Length() != 4 || !info[0].IsArray() || !info[1].IsNumber() || !info[2].IsNumber() || !info[3].IsNumber()) {
    throw Napi::TypeError::New(env, "probeKernels: expected (probes, bytes, threads, seconds)");
  }
  const Napi::Array list = info[0].As<Napi::Array>();
  std::vector<engine::KernelProbe> probes;
  for (uint32_t i = 0; i < list.Length(); ++i) probes.push_back(read_probe(list.Get(i).ToObject()));
  const double bytes = info[1].As<Napi::Number>();
  const int threads = info[2].As<Napi::Number>();
  const double seconds = info[3].As<Napi::Number>();
  auto found = std::make_shared<std::vector<double>>();
  return AsyncCall::start(
      env, {},
      [=] { *found = engine::probe_kernels(probes, bytes > 0 ? static_cast<size_t>(bytes) : 0, threads, seconds); },
      [=](Napi::Env env) {
        Napi::Float64Array out = Napi::Float64Array::New(env, found->size());
        std::copy(found->begin(), found->end(), out.Data());
        return out;
      });
}

}  // namespace

void register_probe(Napi::Env env, Napi::Object exports) {
  exports.Set("readBandwidth", Napi::Function::New(env, read_bandwidth));
  exports.Set("probeKernels", Napi::Function::New(env, probe_kernels));
}

}  // namespace pi::addon
