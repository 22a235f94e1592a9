// Entry point of the addon; each file of this folder registers its own functions.
#include <napi.h>

#include "kernels/kernels.h"

namespace pi::addon {

void register_engine(Napi::Env env, Napi::Object exports);
void register_quant(Napi::Env env, Napi::Object exports);
void register_trainer(Napi::Env env, Napi::Object exports);
void register_predictors(Napi::Env env, Napi::Object exports);
void register_compare(Napi::Env env, Napi::Object exports);
void register_probe(Napi::Env env, Napi::Object exports);
void register_device(Napi::Env env, Napi::Object exports);

namespace {

Napi::Value isa(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  Napi::Object out = Napi::Object::New(env);
  out.Set("active", kernels::active().name);
  Napi::Array available = Napi::Array::New(env);
  for (const kernels::Table* table : kernels::available()) available.Set(available.Length(), table->name);
  out.Set("available", available);
  return out;
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
  exports.Set("isa", Napi::Function::New(env, isa));
  for (auto* add : {register_engine, register_quant, register_trainer, register_predictors, register_compare,
                    register_probe, register_device}) {
    add(env, exports);
  }
  return exports;
}

}  // namespace

NODE_API_MODULE(pi_native, init)

}  // namespace pi::addon
