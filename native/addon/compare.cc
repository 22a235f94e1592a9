// compareLogits(reference, test, targets, vocab): Promise<LogitComparison>
#include <napi.h>

#include <algorithm>
#include <memory>
#include <string>

#include "addon/async.h"
#include "engine/compare.h"

namespace pi::addon {
namespace {

bool is(const Napi::Value& value, napi_typedarray_type type) {
  return value.IsTypedArray() && value.As<Napi::TypedArray>().TypedArrayType() == type;
}

Napi::Value compare_logits(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  if (!is(info[0], napi_float32_array) || !is(info[1], napi_float32_array) || !is(info[2], napi_int32_array) ||
      !info[3].IsNumber()) {
    throw Napi::TypeError::New(env, "compareLogits: expected (Float32Array, Float32Array, Int32Array, number)");
  }
  const auto reference = info[0].As<Napi::Float32Array>(), test = info[1].As<Napi::Float32Array>();
  const auto targets = info[2].As<Napi::Int32Array>();
  const int vocab = info[3].As<Napi::Number>();
  const size_t expected = targets.ElementLength() * static_cast<size_t>(std::max(vocab, 0));
  for (const Napi::Float32Array& logits : {reference, test}) {
    if (logits.ElementLength() == expected) continue;
    throw Napi::RangeError::New(env, "compareLogits: expected " + std::to_string(expected) + " logits, got " +
                                         std::to_string(logits.ElementLength()));
  }
  for (size_t i = 0; i < targets.ElementLength(); ++i) {
    if (targets[i] >= 0 && targets[i] < vocab) continue;
    throw Napi::RangeError::New(env, "compareLogits: target " + std::to_string(i) + ": expected a token below " +
                                         std::to_string(vocab) + ", got " + std::to_string(targets[i]));
  }
  auto result = std::make_shared<engine::LogitComparison>();
  const auto work = [=, r = reference.Data(), t = test.Data(), target = targets.Data(),
                     n = static_cast<int>(targets.ElementLength())] {
    *result = engine::compare_logits(r, t, target, n, vocab);
  };
  return AsyncCall::start(env, {reference, test, targets}, work, [result](Napi::Env env) {
    const auto doubles = [&](const std::vector<double>& values) {
      auto out = Napi::Float64Array::New(env, values.size());
      std::ranges::copy(values, out.Data());
      return out;
    };
    Napi::Object out = Napi::Object::New(env);
    out.Set("nllReference", doubles(result->nll_reference));
    out.Set("nllTest", doubles(result->nll_test));
    out.Set("kl", doubles(result->kl));
    auto same_top = Napi::Uint8Array::New(env, result->same_top.size());
    std::ranges::copy(result->same_top, same_top.Data());
    out.Set("sameTop", same_top);
    return out;
  });
}

}  // namespace

void register_compare(Napi::Env env, Napi::Object exports) {
  exports.Set("compareLogits", Napi::Function::New(env, compare_logits));
}

}  // namespace pi::addon
