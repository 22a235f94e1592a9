// A model split between CPU and GPU against the same model on the CPU: any split gives the same logits.
#include <algorithm>
#include <cmath>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>

#include "checks/check.h"
#include "checks/hybrid/steps.h"
#include "checks/hybrid/tiny_model.h"
#include "engine/engine.h"

namespace pi::checks {
namespace {

struct Step {
  std::vector<float> logits;
  bool prompts;  // there are some in it, or before it in a sequence
};

// The life of some sequences: scored rows, more than fit at once; decoding alone; prompts; decoding and a prompt in one
// step; several sequences and guessed tokens together.
std::vector<Step> conversation(Engine& engine, FfnMode mode) {
  std::vector<Step> out;
  Rows scored;
  for (int i = 0; i < 35; ++i) scored.add(0, i, mode, false, i % 3 == 0);
  out.push_back({logits(engine, scored), false});
  Rows row;
  row.add(0, 35, mode);
  out.push_back({logits(engine, row), false});
  Rows prompt;
  for (int i = 0; i < 36; ++i) prompt.add(1, i, mode, true, i % 9 == 0);
  out.push_back({logits(engine, prompt), true});
  Rows mixed;
  mixed.add(1, 36, mode);
  for (int i = 0; i < 5; ++i) mixed.add(2, i, mode, true, i == 4);
  out.push_back({logits(engine, mixed), true});
  Rows together;
  for (int i = 0; i < 3; ++i) together.add(0, 36 + i, mode);  // guessed tokens
  together.add(2, 5, mode, false, false);
  out.push_back({logits(engine, together), false});
  return out;
}

GpuOptions everything(const Shape& shape) {
  GpuOptions gpu = nothing(shape);
  for (LayerSplit& layer : gpu.layers) layer = {shape.n_neurons, true, !shape.predictor.empty()};
  gpu.head = true;
  return gpu;
}

GpuOptions random_split(const Shape& shape, uint32_t seed) {
  std::mt19937 random(seed);
  GpuOptions gpu = nothing(shape);
  for (LayerSplit& layer : gpu.layers) {
    const int choices[] = {0, 0, 1, shape.n_neurons, static_cast<int>(random() % (shape.n_neurons + 1))};
    layer.neurons = choices[random() % 5];
    layer.attention = random() % 2;
    layer.predictor = !shape.predictor.empty() && (layer.neurons > 0 || random() % 2);
  }
  gpu.head = random() % 2;
  return gpu;
}

std::string text(const GpuOptions& gpu) {
  std::string out;
  for (const LayerSplit& layer : gpu.layers) {
    out += std::to_string(layer.neurons) + (layer.attention ? "a" : "") + (layer.predictor ? "p" : "") + " ";
  }
  return out + (gpu.head ? "head" : "");
}

// Block types quantise activations, and KV types keys and values, where a difference in the last bit may move one by a
// step. Prompts of block types are computed with finer activations than the CPU's, which differ by as much as those are
// coarse.
std::string same_logits(const Shape& shape, const std::vector<GpuOptions>& splits) {
  const TinyModel model(shape, 1);
  const bool blocks = block_size(shape.type) > 1;
  const double tolerance = blocks || shape.kv == kernels::KvType::kQ8 ? 1e-2 : 1e-3,
               of_prompts = blocks ? 0.2 : tolerance;
  for (const FfnMode mode : {FfnMode::kExact, FfnMode::kPredictor}) {
    if (mode == FfnMode::kPredictor && shape.predictor.empty()) continue;
    Engine alone(model.options());
    const auto expected = conversation(alone, mode);
    for (const GpuOptions& gpu : splits) {
      EngineOptions options = model.options();
      options.gpu = gpu;
      Engine engine(std::move(options));
      const auto found = conversation(engine, mode);
      for (size_t step = 0; step < expected.size(); ++step) {
        // Keys that are finer tip the masks of the rows that look at them.
        if (blocks && mode == FfnMode::kPredictor && expected[step].prompts) continue;
        const double off = distance(expected[step].logits, found[step].logits, shape.vocab);
        if (off <= (expected[step].prompts ? of_prompts : tolerance)) continue;
        return "mode " + std::to_string(int(mode)) + ", split " + text(gpu) + ", step " + std::to_string(step) +
               ": logits differ by " + std::to_string(off);
      }
    }
  }
  return "";
}

std::vector<GpuOptions> some_splits(const Shape& shape, uint32_t seed) {
  std::vector<GpuOptions> out;
  out.push_back(share(shape, 0.25 * (seed / 10 % 4), 0b1111));
  out.push_back(everything(shape));
  for (uint32_t i = 0; i < 2; ++i) out.push_back(random_split(shape, seed + i));
  return out;
}

const std::vector<Kind>& cases() {
  static const std::vector<Kind> all = [] {
    std::vector<Kind> out;
    out.push_back({"f32, MLP", {}});
    out.push_back({"f16, SVD, KV f16", {.type = DType::kF16, .predictor = "svd", .kv = kernels::KvType::kF16}});
    out.push_back({"bf16, exact, dReLU", {.type = DType::kBF16, .predictor = "", .activation = Activation::kDRelu}});
    out.push_back({"q8_0, 4-bit gate, KV q8", {.type = DType::kQ8_0, .predictor = "gate", .kv = kernels::KvType::kQ8}});
    out.push_back({"q4_0, signs", {.type = DType::kQ4_0, .predictor = "signs"}});
    out.push_back({"q4_0, MLP, FATReLU", {.type = DType::kQ4_0, .activation = Activation::kFatRelu}});
    out.push_back(opt());
    out.push_back(falcon());
    return out;
  }();
  return all;
}

const std::vector<Check> split_checks = [] {
  std::vector<Check> out;
  uint32_t seed = 10;
  for (const Kind& c : cases()) {
    out.emplace_back("hybrid: any split gives the CPU's logits: " + std::string(c.name),
                     [&c, at = seed += 10] { return same_logits(c.shape, some_splits(c.shape, at)); });
  }
  return out;
}();

// A sequence that lost its keys and values: its prompt and what came after are rows of one step, more than fit at once.
std::string computed_again(int prompt, int after) {
  const Shape shape;
  const TinyModel model(shape, 9);
  Rows rows;
  rows.add(1, 0, FfnMode::kExact, true);  // of somebody else
  for (int i = 0; i < prompt + after; ++i)
    rows.add(0, i, FfnMode::kExact, i < prompt, i % 5 == 0 || i == prompt + after - 1);
  rows.add(2, 0, FfnMode::kExact);
  Engine alone(model.options());
  const std::vector<float> expected = logits(alone, rows);
  for (unsigned where : {0b1111u, 0b0010u}) {
    EngineOptions options = model.options();
    options.gpu = share(shape, 0.5, where);
    Engine engine(std::move(options));
    const double off = distance(expected, logits(engine, rows), shape.vocab);
    if (off > 1e-3)
      return std::to_string(prompt) + " and " + std::to_string(after) + " rows: logits differ by " +
             std::to_string(off);
  }
  return "";
}

const Check again("hybrid: rows that come after a prompt in the same step see all of it, however the step is cut", [] {
  for (const auto& [prompt, after] : {std::pair{4, 60}, {60, 4}, {40, 35}, {3, 20}}) {
    std::string wrong = computed_again(prompt, after);
    if (!wrong.empty()) return wrong;
  }
  return std::string();
});

const Check repeatable("hybrid: the same bits again, and of a row in company", [] {
  const Shape shape;
  const TinyModel model(shape, 2);
  std::vector<float> first;
  for (int round = 0; round < 3; ++round) {
    EngineOptions options = model.options();
    options.gpu = share(shape, 0.4, 0b0111);
    Engine engine(std::move(options));
    Rows rows;
    if (round == 2) rows.add(1, 0, FfnMode::kExact, false, false);
    rows.add(0, 0, FfnMode::kPredictor);
    const std::vector<float> found = logits(engine, rows);
    if (round == 0) first = found;
    if (found != first) return "round " + std::to_string(round) + " differs";
  }
  return std::string();
});

const Check counted(
    "hybrid: what is asked of both sides adds up, one launch a step, nobody waits where nothing is cold", [] {
      Shape shape;
      shape.threshold = 1e9f;  // nothing is predicted
      const TinyModel model(shape, 3);
      EngineOptions options = model.options();
      options.gpu = share(shape, 0.5, 0b1111);
      Engine engine(std::move(options));
      for (int i = 0; i < 4; ++i) {
        Rows row;
        row.add(0, i, FfnMode::kPredictor);
        logits(engine, row);
      }
      const GpuStats idle = engine.stats().gpu;
      if (idle.gpu_neurons != 0 || idle.cpu_neurons != 0)
        return std::string("neurons were computed that nobody asked for");
      if (idle.launches != 4) return "launches: expected 4, got " + std::to_string(idle.launches);
      engine.set_thresholds(std::vector<float>(shape.n_layers, -1e9f));  // all are
      engine.reset_stats();
      Rows row;
      row.add(0, 4, FfnMode::kPredictor);
      logits(engine, row);
      const GpuStats all = engine.stats().gpu;
      const uint64_t half = uint64_t(shape.n_neurons / 2) * shape.n_layers;
      if (all.gpu_neurons != half || all.cpu_neurons != half) {
        return "expected " + std::to_string(half) + " neurons on each side, got " + std::to_string(all.gpu_neurons) +
               " and " + std::to_string(all.cpu_neurons);
      }
      return std::string();
    });

const Check budget("hybrid: a budget is kept to the byte, and one byte less is refused with the numbers", [] {
  const Shape shape;
  const TinyModel model(shape, 4);
  EngineOptions options = model.options();
  options.gpu = share(shape, 0.5, 0b1111);
  return keeps_budget(options, [](Engine& engine) {
    // Of more numbers of rows than programs are kept of.
    for (int n = 1; n <= 12; ++n) {
      Rows rows;
      for (int t = 0; t < n; ++t) rows.add(t / 4, t % 4, FfnMode::kPredictor);
      logits(engine, rows);
    }
  });
});

const Check misuse("hybrid: splits that make no sense are refused", [] {
  const Shape shape;
  const TinyModel model(shape, 5);
  const auto refused = [&](const GpuOptions& gpu, const char* words) {
    EngineOptions options = model.options();
    options.gpu = gpu;
    return error_of(options).find(words) != std::string::npos;
  };
  GpuOptions gpu = nothing(shape);
  gpu.layers[1].neurons = 8;
  if (!refused(gpu, "layer 1: GPU neurons need the layer's predictor")) return std::string("neurons without predictor");
  gpu = nothing(shape);
  gpu.layers[2].neurons = shape.n_neurons + 1;
  if (!refused(gpu, "layer 2: 201 neurons of 200")) return std::string("too many neurons");
  gpu = nothing(shape);
  gpu.layers.pop_back();
  if (!refused(gpu, "expected 3 layers, got 2")) return std::string("too few layers");
  Shape odd;
  odd.head_dim = 20;
  const TinyModel heads(odd, 5);
  EngineOptions options = heads.options();
  options.gpu = everything(odd);
  if (error_of(options).find("heads of a multiple of 8 elements") == std::string::npos)
    return "heads of 20: " + error_of(options);
  return std::string();
});

const Check chosen("hybrid: a token chosen where the logits are is the one that the CPU would choose", [] {
  const Shape shape;
  const TinyModel model(shape, 6);
  EngineOptions options = model.options();
  options.gpu = everything(shape);
  Engine engine(std::move(options));
  for (int i = 0; i < 5; ++i) {
    Rows rows;
    rows.add(0, i, FfnMode::kExact);
    rows.add(1, i, FfnMode::kExact);
    const std::vector<float> all = logits(engine, rows);
    Batch batch = rows.batch();
    Choice choices[2];
    choices[1].temperature = 0.7f, choices[1].seed = 5 + i;
    batch.choices = choices;
    const StepOutput out = engine.step(batch);
    for (int row = 0; row < 2; ++row) {
      const Chosen expected = choose(&all[row * shape.vocab], shape.vocab, choices[row], i);
      if (out.chosen[row].token != expected.token) return std::string("another token");
      if (std::fabs(out.chosen[row].logprob - expected.logprob) > 1e-4f) return std::string("another probability");
    }
    choices[0].top_k = 3, choices[0].temperature = 1;
    if (!engine.step(batch).chosen.empty()) return std::string("a choice among few was made on the GPU");
  }
  return std::string();
});

const Check traced("hybrid: a trace has both devices at work, spans in order", [] {
  const Shape shape;
  const TinyModel model(shape, 7);
  EngineOptions options = model.options();
  options.gpu = share(shape, 0.5, 0b1111);
  Engine engine(std::move(options));
  engine.set_tracing(true);
  Rows row;
  row.add(0, 0, FfnMode::kDense);
  logits(engine, row);
  const std::vector<TraceSpan> spans = engine.take_trace();
  int cpu = 0, gpu = 0;
  for (const TraceSpan& span : spans) {
    if (span.end < span.begin) return std::string("a span ends before it begins");
    (span.gpu ? gpu : cpu) += std::string(span.name) == "neurons";
  }
  if (cpu != shape.n_layers || gpu != shape.n_layers)
    return "neurons: " + std::to_string(cpu) + " spans of the CPU, " + std::to_string(gpu) + " of the GPU";
  return engine.take_trace().empty() ? std::string() : std::string("spans are not forgotten");
});

}  // namespace
}  // namespace pi::checks
