// createTrainer(options): PredictorTrainer
#include <napi.h>

#include <algorithm>
#include <memory>
#include <string>

#include "addon/async.h"
#include "train/predictor_trainer.h"

namespace pi::addon {
namespace {

using train::TrainerOptions;
using train::Weights;

Napi::Error wrong(Napi::Env env, const std::string& what, size_t expected, size_t actual) {
  return Napi::RangeError::New(
      env, "trainer: " + what + ": expected " + std::to_string(expected) + " elements, got " + std::to_string(actual));
}

// `value` as a typed array of T; its length is for the caller to check.
template <typename T>
Napi::TypedArrayOf<T> array(const Napi::Value& value, napi_typedarray_type type, const char* what) {
  if (!value.IsTypedArray() || value.As<Napi::TypedArray>().TypedArrayType() != type) {
    throw Napi::TypeError::New(value.Env(), std::string("trainer: ") + what + ": expected another kind of typed array");
  }
  return value.As<Napi::TypedArrayOf<T>>();
}

double number(const Napi::Object& options, const char* key, double min, double max) {
  const Napi::Value value = options.Get(key);
  const double x = value.IsNumber() ? value.As<Napi::Number>().DoubleValue() : min - 1;
  if (x >= min && x <= max) return x;
  throw Napi::RangeError::New(options.Env(), std::string("trainer: ") + key + ": expected a number from " +
                                                 std::to_string(min) + " to " + std::to_string(max) + ", got " +
                                                 value.ToString().Utf8Value());
}

TrainerOptions parse_options(const Napi::Object& o) {
  constexpr double kMaxSize = 1 << 20;
  TrainerOptions options;
  options.dim = static_cast<int>(number(o, "dim", 1, kMaxSize));
  options.n_neurons = static_cast<int>(number(o, "nNeurons", 1, kMaxSize));
  options.rank = static_cast<int>(number(o, "rank", 1, kMaxSize));
  options.seed = static_cast<uint64_t>(number(o, "seed", 0, 9007199254740991.0));
  options.weight_decay = static_cast<float>(number(o, "weightDecay", 0, 1));
  options.contribution_weight = static_cast<float>(number(o, "contributionWeight", 0, 1));
  options.threads = static_cast<int>(number(o, "threads", 1, 1024));
  return options;
}

class Trainer final : public Napi::ObjectWrap<Trainer> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(env, "PredictorTrainer",
                       {InstanceMethod("epoch", &Trainer::epoch), InstanceMethod("scores", &Trainer::scores),
                        InstanceMethod("weights", &Trainer::weights), InstanceMethod("setWeights", &Trainer::set_weights)});
  }

  explicit Trainer(const Napi::CallbackInfo& info) : Napi::ObjectWrap<Trainer>(info) {
    if (!info[0].IsObject()) throw Napi::TypeError::New(info.Env(), "trainer: expected an object of options");
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
    if (busy_) throw Napi::Error::New(env, "trainer: expected one call at a time, but an earlier one is still running");
  }

  template <typename Work, typename Result>
  Napi::Value start(Napi::Env env, std::initializer_list<Napi::Value> arrays, Work work, Result result) {
    return AsyncCall::start(
        env, arrays, std::move(work),
        [busy = std::make_shared<Busy>(this), result = std::move(result)](Napi::Env env) { return result(env); });
  }

  // Throws unless every row is an index into the samples of `hidden`.
  void check_rows(Napi::Env env, const Napi::Int32Array& rows, size_t samples) const {
    for (size_t i = 0; i < rows.ElementLength(); ++i) {
      if (rows[i] < 0 || static_cast<size_t>(rows[i]) >= samples) {
        throw Napi::RangeError::New(env, "trainer: row " + std::to_string(i) + ": expected an index below " +
                                             std::to_string(samples) + ", got " + std::to_string(rows[i]));
      }
    }
  }

  size_t sample_count(Napi::Env env, const Napi::Uint16Array& hidden) const {
    const size_t dim = trainer_->options().dim, samples = hidden.ElementLength() / dim;
    if (samples * dim != hidden.ElementLength()) throw wrong(env, "hidden", samples * dim, hidden.ElementLength());
    return samples;
  }

  Napi::Value epoch(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    check_idle(env);
    const auto hidden = array<uint16_t>(info[0], napi_uint16_array, "hidden");
    const auto contributions = array<uint8_t>(info[1], napi_uint8_array, "contributions");
    const auto order = array<int32_t>(info[2], napi_int32_array, "order");
    const size_t samples = sample_count(env, hidden), cells = samples * trainer_->options().n_neurons;
    if (contributions.ElementLength() != cells) throw wrong(env, "contributions", cells, contributions.ElementLength());
    check_rows(env, order, samples);
    const double batch = info[3].IsNumber() ? info[3].As<Napi::Number>().DoubleValue() : 0;
    const double rate = info[4].IsNumber() ? info[4].As<Napi::Number>().DoubleValue() : -1;
    if (!(batch >= 1 && batch <= 65536 && rate >= 0)) {
      throw Napi::RangeError::New(env, "trainer: expected a batch of 1 to 65536 rows and a learning rate of at least 0");
    }
    const train::Samples data{hidden.Data(), contributions.Data()};
    const std::span<const int32_t> rows(order.Data(), order.ElementLength());
    auto loss = std::make_shared<double>(0);
    return start(
        env, {info[0], info[1], info[2]},
        [=, this] { *loss = trainer_->epoch(data, rows, static_cast<int>(batch), static_cast<float>(rate)); },
        [loss](Napi::Env env) { return Napi::Number::New(env, *loss); });
  }

  Napi::Value scores(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    check_idle(env);
    const auto hidden = array<uint16_t>(info[0], napi_uint16_array, "hidden");
    const auto samples = array<int32_t>(info[1], napi_int32_array, "samples");
    check_rows(env, samples, sample_count(env, hidden));
    auto out = Napi::Float32Array::New(env, samples.ElementLength() * trainer_->options().n_neurons);
    auto kept = std::make_shared<Napi::Reference<Napi::Float32Array>>(Napi::Persistent(out));
    const uint16_t* const from = hidden.Data();
    const std::span<const int32_t> rows(samples.Data(), samples.ElementLength());
    float* const to = out.Data();
    return start(
        env, {info[0], info[1]}, [=, this] { trainer_->scores(from, rows, to); },
        [kept](Napi::Env) -> Napi::Value { return kept->Value(); });
  }

  Napi::Value weights(const Napi::CallbackInfo& info) {
    check_idle(info.Env());
    const auto copy = [&](std::span<const float> values) {
      auto out = Napi::Float32Array::New(info.Env(), values.size());
      std::ranges::copy(values, out.Data());
      return out;
    };
    const Weights<float> w = trainer_->weights();
    Napi::Object out = Napi::Object::New(info.Env());
    out.Set("fc1", copy(w.fc1));
    out.Set("fc1Bias", copy(w.fc1_bias));
    out.Set("fc2", copy(w.fc2));
    out.Set("fc2Bias", copy(w.fc2_bias));
    return out;
  }

  Napi::Value set_weights(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    check_idle(env);
    if (!info[0].IsObject()) throw Napi::TypeError::New(env, "trainer: expected an object of weights");
    const Napi::Object given = info[0].As<Napi::Object>();
    const auto take = [&](const char* key, size_t expected) -> std::span<const float> {
      const auto values = array<float>(given.Get(key), napi_float32_array, key);
      if (values.ElementLength() != expected) throw wrong(env, key, expected, values.ElementLength());
      return {values.Data(), values.ElementLength()};
    };
    const Weights<float> w = trainer_->weights();
    trainer_->set_weights({take("fc1", w.fc1.size()), take("fc1Bias", w.fc1_bias.size()), take("fc2", w.fc2.size()),
                           take("fc2Bias", w.fc2_bias.size())});
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
