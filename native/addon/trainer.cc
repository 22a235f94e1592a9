// createTrainer(options): PredictorTrainer
#include <napi.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>

#include "addon/arrays.h"
#include "addon/async.h"
#include "train/predictor_trainer.h"

namespace pi::addon {
namespace {

using train::TrainerOptions;
using train::Weights;

float share(const Napi::Object& options, const char* name) {
  const double value = number(options, name);
  if (!(value >= 0 && value <= 1)) {
    fail(options.Env(), std::string(name) + ": expected a number from 0 to 1, got " + std::to_string(value));
  }
  return static_cast<float>(value);
}

TrainerOptions parse_options(const Napi::Object& o) {
  constexpr double kMaxSize = 1 << 20, kMaxInteger = 9007199254740991.0;
  const double seed = number(o, "seed");
  if (!(seed >= 0 && seed <= kMaxInteger)) fail(o.Env(), "seed: expected an integer from 0 to 2^53 - 1");
  return {integer(o, "dim", 1, kMaxSize),  integer(o, "nNeurons", 1, kMaxSize),
          integer(o, "rank", 1, kMaxSize), static_cast<uint64_t>(seed),
          share(o, "weightDecay"),         share(o, "contributionWeight"),
          share(o, "labelShare"),          integer(o, "threads", 1, 1024)};
}

class Trainer final : public Napi::ObjectWrap<Trainer> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "PredictorTrainer",
        {InstanceMethod("epoch", &Trainer::epoch), InstanceMethod("scores", &Trainer::scores),
         InstanceMethod("weights", &Trainer::weights), InstanceMethod("setWeights", &Trainer::set_weights),
         InstanceMethod("state", &Trainer::state), InstanceMethod("setState", &Trainer::set_state)});
  }

  explicit Trainer(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Trainer>(info) {
    if (!info[0].IsObject()) fail(info.Env(), "createTrainer: expected an object of options");
    trainer_ = std::make_unique<train::PredictorTrainer>(parse_options(info[0].As<Napi::Object>()));
  }

 private:
  // A call in the background: keeps the object alive and others out until it has settled.
  class Busy {
   public:
    explicit Busy(Trainer* trainer) : trainer_(trainer) {
      trainer_->Ref();
      trainer_->busy_ = true;
    }
    ~Busy() {
      trainer_->busy_ = false;
      trainer_->Unref();
    }

   private:
    Trainer* trainer_;
  };

  void check_idle(Napi::Env env) const {
    if (busy_) fail(env, "trainer: expected one call at a time, but an earlier one is still running");
  }

  template <typename Work, typename Result>
  Napi::Value start(Napi::Env env, std::initializer_list<Napi::Value> arrays, Work work, Result result) {
    return AsyncCall::start(
        env, arrays, std::move(work),
        [busy = std::make_shared<Busy>(this), result = std::move(result)](Napi::Env env) { return result(env); });
  }

  // `hidden` as whole rows of the layer's width; sets how many there are.
  Array<uint16_t> hidden_rows(const Napi::Value& value, size_t& samples) const {
    const size_t dim = trainer_->options().dim;
    const Array<uint16_t> hidden = array<uint16_t>(value, "hidden");
    samples = hidden.size / dim;
    return array<uint16_t>(value, "hidden", samples * dim);
  }

  // Indices below `samples`.
  std::span<const int32_t> row_indices(const Napi::Value& value, const char* name, size_t samples) const {
    const Array<int32_t> rows = array<int32_t>(value, name);
    for (size_t i = 0; i < rows.size; ++i) {
      if (rows.data[i] >= 0 && static_cast<size_t>(rows.data[i]) < samples) continue;
      fail(value.Env(), std::string(name) + "[" + std::to_string(i) + "]: expected an index below " +
                            std::to_string(samples) + ", got " + std::to_string(rows.data[i]));
    }
    return {rows.data, rows.size};
  }

  Napi::Value epoch(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    check_idle(env);
    size_t samples = 0;
    const uint16_t* const hidden = hidden_rows(info[0], samples).data;
    const auto contributions = array<uint8_t>(info[1], "contributions", samples * trainer_->options().n_neurons);
    const auto order = row_indices(info[2], "order", samples);
    const double batch = info[3].IsNumber() ? info[3].As<Napi::Number>().DoubleValue() : 0;
    const double rate = info[4].IsNumber() ? info[4].As<Napi::Number>().DoubleValue() : -1;
    if (!(batch >= 1 && batch <= 65536 && rate >= 0)) {
      fail(env, "expected a batch of 1 to 65536 rows and a learning rate of at least 0");
    }
    const train::Samples data{hidden, contributions.data};
    auto loss = std::make_shared<double>(0);
    return start(
        env, {info[0], info[1], info[2]},
        [=, this] { *loss = trainer_->epoch(data, order, static_cast<int>(batch), static_cast<float>(rate)); },
        [loss](Napi::Env env) { return Napi::Number::New(env, *loss); });
  }

  Napi::Value scores(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    check_idle(env);
    size_t samples = 0;
    const uint16_t* const hidden = hidden_rows(info[0], samples).data;
    const auto rows = row_indices(info[1], "samples", samples);
    auto out = Napi::Float32Array::New(env, rows.size() * trainer_->options().n_neurons);
    auto kept = std::make_shared<Napi::Reference<Napi::Float32Array>>(Napi::Persistent(out));
    float* const to = out.Data();
    return start(
        env, {info[0], info[1]}, [=, this] { trainer_->scores(hidden, rows, to); },
        [kept](Napi::Env) -> Napi::Value { return kept->Value(); });
  }

  Napi::Value weights(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    check_idle(env);
    const auto copy = [&](std::span<const float> values) { return copy_array(env, values.data(), values.size()); };
    const Weights<float> w = trainer_->weights();
    Napi::Object out = Napi::Object::New(env);
    out.Set("fc1", copy(w.fc1));
    out.Set("fc1Bias", copy(w.fc1_bias));
    out.Set("fc2", copy(w.fc2));
    out.Set("fc2Bias", copy(w.fc2_bias));
    return out;
  }

  Napi::Value set_weights(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    check_idle(env);
    if (!info[0].IsObject()) fail(env, "expected an object of weights");
    const Napi::Object given = info[0].As<Napi::Object>();
    const auto take = [&](const char* name, std::span<float> like) -> std::span<const float> {
      return {array<float>(given, name, like.size()).data, like.size()};
    };
    const Weights<float> w = trainer_->weights();
    trainer_->set_weights(
        {take("fc1", w.fc1), take("fc1Bias", w.fc1_bias), take("fc2", w.fc2), take("fc2Bias", w.fc2_bias)});
    return env.Undefined();
  }

  static constexpr const char* kStateParts[] = {"weights", "mean", "square"};

  Napi::Value state(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    check_idle(env);
    const train::PredictorTrainer::State state = trainer_->state();
    Napi::Object out = Napi::Object::New(env);
    for (size_t i = 0; i < state.values.size(); ++i) {
      out.Set(kStateParts[i], copy_array(env, state.values[i].data(), state.values[i].size()));
    }
    out.Set("steps", static_cast<double>(state.steps));
    return out;
  }

  Napi::Value set_state(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    check_idle(env);
    if (!info[0].IsObject()) fail(env, "expected an object of state");
    const Napi::Object given = info[0].As<Napi::Object>();
    const train::PredictorTrainer::State state = trainer_->state();
    const float* from[3];
    for (size_t i = 0; i < state.values.size(); ++i) {
      from[i] = array<float>(given, kStateParts[i], state.values[i].size()).data;
    }
    const int steps = integer(given, "steps", 0, 1 << 30);
    for (size_t i = 0; i < state.values.size(); ++i)
      std::copy_n(from[i], state.values[i].size(), state.values[i].data());
    trainer_->set_steps(steps);
    return env.Undefined();
  }

  std::unique_ptr<train::PredictorTrainer> trainer_;
  bool busy_ = false;
};

}  // namespace

void register_trainer(Napi::Env env, Napi::Object exports) {
  auto constructor = std::make_shared<Napi::FunctionReference>(Napi::Persistent(Trainer::define(env)));
  exports.Set("createTrainer", Napi::Function::New(env, [constructor](const Napi::CallbackInfo& info) -> Napi::Value {
                return constructor->New({info[0]});
              }));
}

}  // namespace pi::addon
