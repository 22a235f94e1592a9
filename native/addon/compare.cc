// compareLogits(reference, test, targets, vocab): Promise<LogitComparison>
#include <napi.h>

#include <memory>
#include <string>

#include "addon/arrays.h"
#include "addon/async.h"
#include "engine/compare.h"

namespace pi::addon {
namespace {

Napi::Value compare_logits(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const auto targets = array<int32_t>(info[2], "targets");
  const int vocab = info[3].IsNumber() ? info[3].As<Napi::Number>().Int32Value() : 0;
  if (vocab < 1) fail(env, "vocab: expected an integer of at least 1");
  const auto reference = array<float>(info[0], "reference", targets.size * vocab);
  const auto test = array<float>(info[1], "test", targets.size * vocab);
  for (size_t i = 0; i < targets.size; ++i) {
    if (targets.data[i] >= 0 && targets.data[i] < vocab) continue;
    fail(env, "targets[" + std::to_string(i) + "]: expected a token below " + std::to_string(vocab) + ", got " +
                  std::to_string(targets.data[i]));
  }
  auto result = std::make_shared<engine::LogitComparison>();
  const auto work = [=] {
    *result = engine::compare_logits(reference.data, test.data, targets.data, static_cast<int>(targets.size), vocab);
  };
  return AsyncCall::start(env, {info[0], info[1], info[2]}, work, [result](Napi::Env env) {
    const auto copy = [&](const auto& values) { return copy_array(env, values.data(), values.size()); };
    Napi::Object out = Napi::Object::New(env);
    out.Set("nllReference", copy(result->nll_reference));
    out.Set("nllTest", copy(result->nll_test));
    out.Set("kl", copy(result->kl));
    out.Set("sameTop", copy(result->same_top));
    return out;
  });
}

}  // namespace

void register_compare(Napi::Env env, Napi::Object exports) {
  exports.Set("compareLogits", Napi::Function::New(env, compare_logits));
}

}  // namespace pi::addon
