// The engine's JavaScript object: checks a batch, runs the step off the JavaScript thread, hands the results over.
#include "engine/engine.h"

#include <napi.h>

#include <cmath>
#include <memory>

#include "addon/arrays.h"
#include "addon/async.h"
#include "addon/model_config.h"
#include "engine/sampler.h"

namespace pi::addon {
namespace {

Choice read_choice(const Napi::Object& o, int vocab) {
  Choice c;
  c.target = integer(o, "target", -1, vocab - 1);
  c.temperature = static_cast<float>(number(o, "temperature"));
  c.top_k = integer(o, "topK", 0, 1 << 30);
  c.top_p = static_cast<float>(number(o, "topP"));
  c.min_p = static_cast<float>(number(o, "minP"));
  c.repetition_penalty = static_cast<float>(number(o, "repetitionPenalty"));
  c.presence_penalty = static_cast<float>(number(o, "presencePenalty"));
  c.frequency_penalty = static_cast<float>(number(o, "frequencyPenalty"));
  const Array<int32_t> history = array<int32_t>(o, "history");
  c.history = history.data;
  c.n_history = static_cast<int>(history.size);
  c.output_start = integer(o, "outputStart", 0, c.n_history);
  const Array<double> bias = array<double>(o, "logitBias");
  c.logit_bias = bias.data;
  c.n_logit_bias = static_cast<int>(bias.size / 2);
  c.seed = static_cast<uint64_t>(number(o, "seed"));
  c.top_logprobs = integer(o, "topLogprobs", 0, 1000);
  for (int i = 0; i < c.n_history; ++i) {
    if (c.history[i] < 0 || c.history[i] >= vocab)
      fail(o.Env(), "history: token " + std::to_string(c.history[i]) + " outside the vocabulary");
  }
  for (int i = 0; i < c.n_logit_bias; ++i) {
    if (!(c.logit_bias[2 * i] >= 0 && c.logit_bias[2 * i] < vocab))
      fail(o.Env(), "logitBias: token outside the vocabulary");
  }
  return c;
}

// Marks the engine as taken for as long as a step and its results need it.
struct Busy {
  explicit Busy(std::shared_ptr<bool> flag) : flag(std::move(flag)) { *this->flag = true; }
  ~Busy() { *flag = false; }
  std::shared_ptr<bool> flag;
};

// What a step works on between the threads.
struct Step {
  Batch batch;
  std::vector<Choice> choices;
  bool return_logits = false;
  StepOutput out;
  std::vector<Chosen> chosen;
  std::shared_ptr<Busy> busy;
};

Napi::Object bytes_object(Napi::Env env, const BytesTouched& bytes) {
  Napi::Object out = Napi::Object::New(env);
  const std::pair<const char*, uint64_t> parts[] = {{"embed", bytes.embed}, {"attention", bytes.attention},
                                                    {"kv", bytes.kv},       {"predictor", bytes.predictor},
                                                    {"ffn", bytes.ffn},     {"head", bytes.head}};
  for (const auto& [name, value] : parts) out.Set(name, static_cast<double>(value));
  return out;
}

Napi::Object memory_object(Napi::Env env, const GpuMemory& memory) {
  Napi::Object out = Napi::Object::New(env);
  const std::pair<const char*, size_t> parts[] = {{"weights", memory.weights}, {"predictors", memory.predictors},
                                                  {"kv", memory.kv},           {"scratch", memory.scratch},
                                                  {"context", memory.context}, {"total", memory.total()}};
  for (const auto& [name, value] : parts) out.Set(name, static_cast<double>(value));
  return out;
}

class EngineObject final : public Napi::ObjectWrap<EngineObject> {
 public:
  static Napi::Function define(Napi::Env env) {
    return DefineClass(
        env, "Engine",
        {InstanceMethod<&EngineObject::step>("step"), InstanceMethod<&EngineObject::step_sync>("stepSync"),
         InstanceMethod<&EngineObject::set_threads>("setThreads"),
         InstanceMethod<&EngineObject::set_thresholds>("setThresholds"),
         InstanceMethod<&EngineObject::set_profiling>("setProfiling"),
         InstanceMethod<&EngineObject::set_recall_tracking>("setRecallTracking"),
         InstanceMethod<&EngineObject::set_tracing>("setTracing"), InstanceMethod<&EngineObject::trace>("trace"),
         InstanceMethod<&EngineObject::activation_counts>("activationCounts"),
         InstanceMethod<&EngineObject::stats>("stats"), InstanceMethod<&EngineObject::reset_stats>("resetStats"),
         InstanceMethod<&EngineObject::allocated_bytes>("allocatedBytes"),
         InstanceMethod<&EngineObject::close>("close")});
  }

  explicit EngineObject(const Napi::CallbackInfo& info) : Napi::ObjectWrap<EngineObject>(info) {
    if (!info[0].IsObject()) fail(info.Env(), "options: expected an object");
    EngineOptions options = read_engine_options(info[0].As<Napi::Object>());
    try {
      engine_ = std::make_shared<Engine>(std::move(options));
    } catch (const std::exception& error) {
      throw Napi::Error::New(info.Env(), error.what());
    }
  }

 private:
  // The engine, unless it is closed or busy.
  Engine& idle(Napi::Env env) {
    if (!engine_) throw Napi::Error::New(env, "engine: closed");
    if (*busy_) throw Napi::Error::New(env, "engine: a step is running; one call at a time");
    return *engine_;
  }

  // The checked arguments of a step, which marks the engine as busy while it lives.
  std::shared_ptr<Step> prepare(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    Engine& engine = idle(env);
    if (!info[0].IsObject()) fail(env, "batch: expected an object");
    auto step = std::make_shared<Step>();
    read_batch(info[0].As<Napi::Object>(), engine, *step);
    step->busy = std::make_shared<Busy>(busy_);
    return step;
  }

  static void run(Engine& engine, Step& step) {
    if (!step.return_logits && !step.choices.empty()) step.batch.choices = step.choices.data();
    step.out = engine.step(step.batch);
    if (step.out.chosen.empty()) {
      choose_all(engine, step);
    } else {
      step.chosen = std::move(step.out.chosen);
    }
  }

  Napi::Value step(const Napi::CallbackInfo& info) {
    auto step = prepare(info);
    auto engine_held = engine_;
    return AsyncCall::start(
        info.Env(), {info[0], info.This()}, [engine_held, step] { run(*engine_held, *step); },
        [engine_held, step](Napi::Env env) -> Napi::Value { return make_result(env, *engine_held, *step); });
  }

  Napi::Value step_sync(const Napi::CallbackInfo& info) {
    const auto step = prepare(info);
    try {
      run(*engine_, *step);
    } catch (const std::exception& error) {
      throw Napi::Error::New(info.Env(), error.what());
    }
    return make_result(info.Env(), *engine_, *step);
  }

  static void choose_all(Engine& engine, Step& step) {
    const int vocab = engine.config().vocab;
    step.chosen.resize(step.choices.size());
    engine.pool().parallel_for(static_cast<int>(step.choices.size()), [&](int i) {
      const int position = step.batch.positions[step.batch.outputs[i]];
      step.chosen[i] = choose(step.out.logits + size_t(i) * vocab, vocab, step.choices[i], position);
    });
  }

  // Fills the views of `step` from StepBatch; throws where an index would lead outside its array.
  static void read_batch(const Napi::Object& in, const Engine& engine, Step& step) {
    Napi::Env env = in.Env();
    const ModelConfig& c = engine.config();
    Batch& b = step.batch;
    const Array<int32_t> tokens = array<int32_t>(in, "tokens");
    if (tokens.size == 0) fail(env, "tokens: expected at least one row");
    b.n_rows = static_cast<int>(tokens.size);
    b.tokens = tokens.data;
    b.positions = array<int32_t>(in, "positions", tokens.size).data;
    b.sequences = array<int32_t>(in, "sequences", tokens.size).data;
    b.modes = array<uint8_t>(in, "modes", tokens.size).data;
    if (in.Has("prefill") && in.Get("prefill").IsTypedArray())
      b.prefill = array<uint8_t>(in, "prefill", tokens.size).data;
    b.blocks_per_sequence = integer(in, "blocksPerSequence", 1, 1 << 24);
    const Array<int32_t> tables = array<int32_t>(in, "blockTables");
    b.block_tables = tables.data;
    const int64_t n_sequences = static_cast<int64_t>(tables.size) / b.blocks_per_sequence;
    for (int t = 0; t < b.n_rows; ++t) {
      const std::string row = "row " + std::to_string(t) + ": ";
      if (b.tokens[t] < 0 || b.tokens[t] >= c.vocab) {
        fail(env,
             row + "token " + std::to_string(b.tokens[t]) + " outside the vocabulary of " + std::to_string(c.vocab));
      }
      const int limit = std::min(engine.max_position(), b.blocks_per_sequence * KvCache::kBlockTokens);
      if (b.positions[t] < 0 || b.positions[t] >= limit) {
        fail(env, row + "position " + std::to_string(b.positions[t]) + " outside the " + std::to_string(limit) +
                      " that fit");
      }
      if (b.sequences[t] < 0 || b.sequences[t] >= n_sequences) fail(env, row + "sequence outside blockTables");
      const int32_t* blocks = b.block_tables + int64_t{b.sequences[t]} * b.blocks_per_sequence;
      for (int i = b.positions[t] / KvCache::kBlockTokens; i >= 0; --i) {
        if (blocks[i] < 0 || blocks[i] >= engine.kv_blocks())
          fail(env, row + "block " + std::to_string(blocks[i]) + " outside the KV cache");
      }
      if (b.modes[t] > 2) fail(env, row + "unknown FFN mode " + std::to_string(b.modes[t]));
      if (b.prefill && b.prefill[t] && FfnMode(b.modes[t]) != FfnMode::kDense)
        fail(env, row + "a prefill row runs dense");
      if (FfnMode(b.modes[t]) == FfnMode::kPredictor && !engine.has_predictors())
        fail(env, row + "predictor mode, but the model has no predictors");
    }
    read_outputs(in, c, step);
  }

  static void read_outputs(const Napi::Object& in, const ModelConfig& c, Step& step) {
    Napi::Env env = in.Env();
    Batch& b = step.batch;
    const auto rows = [&](const char* name) {
      const Array<int32_t> found = array<int32_t>(in, name);
      for (size_t i = 0; i < found.size; ++i) {
        if (found.data[i] < 0 || found.data[i] >= b.n_rows)
          fail(env, std::string(name) + ": row " + std::to_string(found.data[i]) + " outside the batch");
      }
      return found;
    };
    const Array<int32_t> outputs = rows("outputs");
    b.outputs = outputs.data;
    b.n_outputs = static_cast<int>(outputs.size);
    if (in.Has("sampleRows") && in.Get("sampleRows").IsTypedArray()) {
      const Array<int32_t> samples = rows("sampleRows");
      b.samples = samples.data;
      b.n_samples = static_cast<int>(samples.size);
      for (int i = 0; i < b.n_samples; ++i) {
        if (FfnMode(b.modes[b.samples[i]]) == FfnMode::kPredictor)
          fail(env, "sampleRows: a row in predictor mode has no true activations");
        if (b.prefill && b.prefill[b.samples[i]]) fail(env, "sampleRows: a prefill row keeps no activations");
      }
    }
    step.return_logits = flag(in, "returnLogits");
    if (!in.Has("choose") || !in.Get("choose").IsArray()) return;
    const Napi::Array choices = in.Get("choose").As<Napi::Array>();
    if (choices.Length() != outputs.size) fail(env, "choose: expected one per output row");
    for (uint32_t i = 0; i < choices.Length(); ++i)
      step.choices.push_back(read_choice(choices.Get(i).As<Napi::Object>(), c.vocab));
  }

  static Napi::Value make_result(Napi::Env env, const Engine& engine, const Step& step) {
    const size_t vocab = engine.config().vocab;
    Napi::Object result = Napi::Object::New(env);
    if (step.return_logits) result.Set("logits", copy_array<float>(env, step.out.logits, step.batch.n_outputs * vocab));
    if (step.batch.n_samples > 0) {
      result.Set("hidden", copy_array<uint16_t>(env, step.out.hidden.data(), step.out.hidden.size()));
      result.Set("contributions",
                 copy_array<uint8_t>(env, step.out.contributions.data(), step.out.contributions.size()));
    }
    if (step.choices.empty()) return result;
    auto tokens = Napi::Int32Array::New(env, step.chosen.size());
    auto logprobs = Napi::Float32Array::New(env, step.chosen.size());
    Napi::Array top = Napi::Array::New(env, step.chosen.size());
    for (size_t i = 0; i < step.chosen.size(); ++i) {
      const Chosen& chosen = step.chosen[i];
      tokens[i] = chosen.token;
      logprobs[i] = chosen.logprob;
      Napi::Object entry = Napi::Object::New(env);
      entry.Set("tokens", copy_array<int32_t>(env, chosen.top_tokens.data(), chosen.top_tokens.size()));
      entry.Set("logprobs", copy_array<float>(env, chosen.top_logprobs.data(), chosen.top_logprobs.size()));
      top.Set(static_cast<uint32_t>(i), entry);
    }
    result.Set("tokens", tokens);
    result.Set("logprobs", logprobs);
    result.Set("top", top);
    return result;
  }

  void set_threads(const Napi::CallbackInfo& info) {
    Engine& engine = idle(info.Env());
    const double threads = info[0].ToNumber().DoubleValue();
    if (!(threads >= 1 && threads <= 1024)) fail(info.Env(), "threads: expected 1 to 1024");
    engine.set_threads(static_cast<int>(threads));
  }

  void set_thresholds(const Napi::CallbackInfo& info) {
    Engine& engine = idle(info.Env());
    if (!info[0].IsTypedArray() || info[0].As<Napi::TypedArray>().TypedArrayType() != napi_float32_array) {
      fail(info.Env(), "thresholds: expected a Float32Array");
    }
    auto values = info[0].As<Napi::Float32Array>();
    if (values.ElementLength() != static_cast<size_t>(engine.config().n_layers))
      fail(info.Env(), "thresholds: expected one per layer");
    engine.set_thresholds({values.Data(), values.Data() + values.ElementLength()});
  }

  // Calls `set(engine, on)`; what the engine refuses is the caller's error.
  template <typename F>
  void set_flag(const Napi::CallbackInfo& info, F&& set) {
    try {
      set(idle(info.Env()), info[0].ToBoolean().Value());
    } catch (const std::runtime_error& error) {
      throw Napi::Error::New(info.Env(), error.what());
    }
  }
  void set_profiling(const Napi::CallbackInfo& info) {
    set_flag(info, [](Engine& engine, bool on) { engine.set_profiling(on); });
  }
  void set_recall_tracking(const Napi::CallbackInfo& info) {
    set_flag(info, [](Engine& engine, bool on) { engine.set_recall_tracking(on); });
  }
  void set_tracing(const Napi::CallbackInfo& info) {
    set_flag(info, [](Engine& engine, bool on) { engine.set_tracing(on); });
  }

  Napi::Value trace(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    const std::vector<TraceSpan> spans = idle(env).take_trace();
    Napi::Array out = Napi::Array::New(env, spans.size());
    for (size_t i = 0; i < spans.size(); ++i) {
      Napi::HandleScope scope(env);
      Napi::Object span = Napi::Object::New(env);
      span.Set("device", spans[i].gpu ? "gpu" : "cpu");
      span.Set("layer", spans[i].layer);
      span.Set("name", spans[i].name);
      span.Set("begin", spans[i].begin);
      span.Set("end", spans[i].end);
      out.Set(static_cast<uint32_t>(i), span);
    }
    return out;
  }
  void reset_stats(const Napi::CallbackInfo& info) { idle(info.Env()).reset_stats(); }
  void close(const Napi::CallbackInfo& info) {
    if (engine_) idle(info.Env());
    engine_.reset();
  }

  Napi::Value activation_counts(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    Engine& engine = idle(env);
    const int layer = info[0].ToNumber().Int32Value();
    if (layer < 0 || layer >= engine.config().n_layers) fail(env, "layer: outside the model");
    const ActivationCounts& counts = engine.activation_counts(layer);
    Napi::Object out = Napi::Object::New(env);
    const auto set = [&](const char* name, const std::vector<uint64_t>& values) {
      auto copy = Napi::BigUint64Array::New(env, values.size());
      std::copy(values.begin(), values.end(), copy.Data());
      out.Set(name, copy);
    };
    set("count", counts.count);
    set("magnitude", counts.magnitude);
    set("contribution", counts.contribution);
    return out;
  }

  Napi::Value stats(const Napi::CallbackInfo& info) {
    Napi::Env env = info.Env();
    const EngineStats& stats = idle(env).stats();
    const auto count = [&](uint64_t n) { return Napi::Number::New(env, static_cast<double>(n)); };
    Napi::Object bytes = bytes_object(env, stats.bytes);
    Napi::Array layers = Napi::Array::New(env, stats.layers.size());
    for (size_t i = 0; i < stats.layers.size(); ++i) {
      const LayerStats& l = stats.layers[i];
      Napi::Object layer = Napi::Object::New(env);
      layer.Set("rows", count(l.rows));
      layer.Set("active", count(l.active));
      layer.Set("predicted", count(l.predicted));
      layer.Set("hit", count(l.hit));
      layer.Set("weightedRecall", l.weighted_recall);
      layers.Set(static_cast<uint32_t>(i), layer);
    }
    Napi::Object out = Napi::Object::New(env);
    out.Set("rows", count(stats.rows));
    out.Set("bytes", bytes);
    out.Set("layers", layers);
    out.Set("seconds", stats.seconds);
    Napi::Object parts = Napi::Object::New(env);
    parts.Set("attention", stats.parts.attention);
    parts.Set("kv", stats.parts.kv);
    parts.Set("ffn", stats.parts.ffn);
    parts.Set("head", stats.parts.head);
    out.Set("partSeconds", parts);
    if (const GpuHalf* gpu = engine_->gpu()) out.Set("gpu", gpu_stats(env, stats.gpu, *gpu));
    return out;
  }

  static Napi::Object gpu_stats(Napi::Env env, const GpuStats& stats, const GpuHalf& gpu) {
    const auto count = [&](uint64_t n) { return Napi::Number::New(env, static_cast<double>(n)); };
    const auto both = [&](uint64_t on_gpu, uint64_t on_cpu) {
      Napi::Object out = Napi::Object::New(env);
      out.Set("gpu", count(on_gpu));
      out.Set("cpu", count(on_cpu));
      return out;
    };
    Napi::Object out = Napi::Object::New(env);
    out.Set("device", gpu.device_info().name);
    out.Set("memory", memory_object(env, gpu.memory()));
    out.Set("bytes", bytes_object(env, stats.bytes));
    out.Set("neuronRows", both(stats.gpu_neurons, stats.cpu_neurons));
    out.Set("firedRows", both(stats.gpu_fired, stats.cpu_fired));
    out.Set("transfers", count(stats.transfers));
    out.Set("transferBytes", count(stats.transfer_bytes));
    out.Set("streamedBytes", count(stats.streamed_bytes));
    out.Set("waits", count(stats.waits));
    out.Set("hostWaitSeconds", stats.wait_seconds);
    out.Set("gpuLaunches", count(stats.launches));
    out.Set("kernels", count(stats.kernels));
    out.Set("swaps", count(stats.swaps));
    if (!stats.swaps_stopped.empty()) out.Set("swapsStopped", stats.swaps_stopped);
    return out;
  }

  Napi::Value allocated_bytes(const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(idle(info.Env()).allocated_bytes()));
  }

  std::shared_ptr<Engine> engine_;
  std::shared_ptr<bool> busy_ = std::make_shared<bool>(false);  // touched on the JavaScript thread alone
};

}  // namespace

void register_engine(Napi::Env env, Napi::Object exports) {
  const Napi::Function engine = EngineObject::define(env);
  auto held = std::make_shared<Napi::FunctionReference>(Napi::Persistent(engine));
  exports.Set("openEngine", Napi::Function::New(env, [held](const Napi::CallbackInfo& info) -> Napi::Value {
                return held->New({info[0]});
              }));
  exports.Set("gpuMemory", Napi::Function::New(env, [](const Napi::CallbackInfo& info) -> Napi::Value {
                if (!info[0].IsObject()) fail(info.Env(), "options: expected an object");
                const EngineOptions options = read_engine_options(info[0].As<Napi::Object>());
                try {
                  return memory_object(info.Env(), gpu_memory(options, 0));
                } catch (const std::exception& error) {
                  throw Napi::Error::New(info.Env(), error.what());
                }
              }));
}

}  // namespace pi::addon
