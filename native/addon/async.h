// Runs C++ work on a background thread and settles a JavaScript promise with the result.
#pragma once

#include <napi.h>

#include <functional>
#include <utility>
#include <vector>

namespace pi::addon {

// `work` runs off the JavaScript thread and may throw std::exception (the promise is then rejected with its message);
// `result` runs on it afterwards and makes the value. `keep` are the JavaScript objects whose memory `work` reads.
class AsyncCall final : public Napi::AsyncWorker {
 public:
  using Work = std::function<void()>;
  using Result = std::function<Napi::Value(Napi::Env)>;

  static Napi::Promise start(Napi::Env env, std::initializer_list<Napi::Value> keep, Work work, Result result) {
    auto* call = new AsyncCall(env, std::move(work), std::move(result));
    for (const Napi::Value& value : keep) {
      if (value.IsObject()) call->keep_.push_back(Napi::Persistent(value.As<Napi::Object>()));
    }
    Napi::Promise promise = call->deferred_.Promise();
    call->Queue();
    return promise;
  }

 private:
  AsyncCall(Napi::Env env, Work work, Result result)
      : Napi::AsyncWorker(env), deferred_(env), work_(std::move(work)), result_(std::move(result)) {}

  void Execute() override { work_(); }
  void OnOK() override {
    try {
      deferred_.Resolve(result_(Env()));
    } catch (const Napi::Error& error) {
      deferred_.Reject(error.Value());
    }
  }
  void OnError(const Napi::Error& error) override { deferred_.Reject(error.Value()); }

  Napi::Promise::Deferred deferred_;
  Work work_;
  Result result_;
  std::vector<Napi::ObjectReference> keep_;
};

}  // namespace pi::addon
