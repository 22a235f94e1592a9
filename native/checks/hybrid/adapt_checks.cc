// Neurons that change places while a model is served: the answers stay what they are, the GPU gets what is asked for.
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>

#include "checks/check.h"
#include "checks/hybrid/steps.h"

namespace pi::checks {
namespace {

// `n` pairs of every layer, no position twice.
std::vector<LayerSwap> random_swaps(const EngineOptions& options, int n, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<LayerSwap> out;
  for (size_t layer = 0; layer < options.gpu.layers.size(); ++layer) {
    const int resident = options.gpu.layers[layer].neurons, all = options.config.n_neurons;
    std::vector<int32_t> here(resident), there(all - resident);
    std::iota(here.begin(), here.end(), 0);
    std::iota(there.begin(), there.end(), resident);
    std::shuffle(here.begin(), here.end(), random);
    std::shuffle(there.begin(), there.end(), random);
    for (int i = 0; i < n; ++i) out.push_back({static_cast<int>(layer), {here[i], there[i]}});
  }
  return out;
}

// A sequence that goes on while neurons change places, step by step, and prompts before and after.
std::string same_logits(const Shape& shape, unsigned where) {
  const TinyModel model(shape, 1);
  const bool blocks = block_size(shape.type) > 1;
  const double tolerance = blocks ? 1e-2 : 1e-3, of_prompts = blocks ? 0.2 : tolerance;
  Engine alone(model.options());
  const EngineOptions options = adapting(model, 0.35, where);
  Engine engine(options);
  for (int step = 0; step < 6; ++step) {
    Rows rows = decoding(3 * step, 3, step % 2 ? FfnMode::kExact : FfnMode::kPredictor);
    if (step % 3 == 2) {
      for (int i = 0; i < 5; ++i) rows.add(1, 5 * (step / 3) + i, FfnMode::kDense, true);
    }
    const std::vector<float> expected = logits(alone, rows), found = logits(engine, rows);
    const double off = distance(expected, found, shape.vocab);
    if (!(off <= (step % 3 == 2 ? of_prompts : tolerance)))
      return "step " + std::to_string(step) + ": logits differ by " + std::to_string(off);
    engine.swap_neurons(random_swaps(options, step == 3 ? 60 : 7, 100 + step));
  }
  return engine.stats().gpu.swaps == uint64_t(shape.n_layers) * (5 * 7 + 60)
             ? ""
             : "swaps: " + std::to_string(engine.stats().gpu.swaps);
}

struct Case {
  const char* name;
  Shape shape;
  unsigned where;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all{
      {"f32, MLP", {}, 0b1111},
      {"q4_0, signs", {.type = DType::kQ4_0, .predictor = "signs"}, 0b0101},
      {"f16, SVD", {.type = DType::kF16, .predictor = "svd"}, 0b0000},
      {"q8_0, 4-bit gate", {.type = DType::kQ8_0, .predictor = "gate"}, 0b1111},
      {"OPT with biases, f32, MLP", {.llama = false, .n_kv_heads = 4}, 0b1010},
      {"bf16, columns that are no multiple of 16 bytes", {.type = DType::kBF16, .dim = 68}, 0b1111},
  };
  return all;
}

const std::vector<Check> equal = [] {
  std::vector<Check> out;
  for (const Case& c : cases())
    out.emplace_back("adapt: neurons change places, logits stay the CPU's: " + std::string(c.name),
                     [&c] { return same_logits(c.shape, c.where); });
  return out;
}();

const Check there_and_back("adapt: there and back gives the same bits, and the file is left alone", [] {
  for (const Case& c : cases()) {
    const TinyModel model(c.shape, 2);
    const EngineOptions options = adapting(model, 0.5, c.where);
    const Rows rows = decoding(0, 4, FfnMode::kPredictor);
    Engine engine(options);
    const std::vector<float> before = logits(engine, rows);
    const std::vector<LayerSwap> swaps = random_swaps(options, 40, 3);
    engine.swap_neurons(swaps);
    const std::vector<float> between = logits(engine, rows);
    if (between == before) return std::string(c.name) + ": nothing changed, not even in the last bits";
    Engine other(options);
    if (logits(other, rows) != before) return std::string(c.name) + ": another engine sees the changes";
    engine.swap_neurons(swaps);
    if (logits(engine, rows) != before) return std::string(c.name) + ": other bits";
  }
  return std::string();
});

// Of the neurons that a step's rows ask for, those on the GPU.
double gpu_share(Engine& engine, const Rows& rows) {
  engine.reset_stats();
  logits(engine, rows);
  const GpuStats stats = engine.stats().gpu;
  return double(stats.gpu_neurons) / double(stats.gpu_neurons + stats.cpu_neurons);
}

// Half of the neurons are placed without regard to how often they are asked for: a third always, a third now and then.
const Check drift("adapt: what is asked for moves to the GPU, while steps go on", [] {
  const Shape shape = small();
  const TinyModel model(shape, 3);
  Engine alone(model.options()), engine(adapting(model, 0.5, 0b1111));
  const Rows rows = decoding(0, 32, FfnMode::kPredictor);
  const double before = gpu_share(engine, rows);
  // Nothing here waits for the thread that reads the rows, so steps go on until it had its turns.
  double after = before;
  for (int step = 0; step < 3000 && after < 0.75; ++step) {
    after = gpu_share(engine, rows);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (!(before < 0.6 && after >= 0.75))
    return "the GPU's share went from " + std::to_string(before) + " to " + std::to_string(after);
  const double off = distance(logits(alone, rows), logits(engine, rows), shape.vocab);
  return off <= 1e-3 ? std::string() : "logits differ by " + std::to_string(off);
});

const Check steady(
    "adapt: nothing moves where nothing is asked for more than another, nor rows that ask for everything", [] {
      Shape shape = small();
      shape.threshold = -1e9f;
      const TinyModel model(shape, 4);
      Engine engine(adapting(model, 0.5, 0b1111));
      for (int step = 0; step < 18; ++step)
        logits(engine, decoding(0, 32, step < 9 ? FfnMode::kPredictor : FfnMode::kExact));
      return engine.stats().gpu.swaps == 0 ? std::string() : "swaps: " + std::to_string(engine.stats().gpu.swaps);
    });

const Check close_in_between("adapt: an engine may end whatever is under way", [] {
  const TinyModel model(small(), 5);
  for (int steps : {8, 9, 10, 12}) {
    Engine engine(adapting(model, 0.5, 0b1111));
    for (int step = 0; step < steps; ++step) logits(engine, decoding(0, 32, FfnMode::kPredictor));
  }
  return std::string();
});

const Check budget("adapt: the memory that swaps pass through is counted, and none is taken without them", [] {
  const TinyModel model(Shape{}, 6);
  EngineOptions with = adapting(model, 0.5, 0b1111), without = with;
  without.gpu.adapt = false;
  const GpuMemory memory = gpu_memory(with), less = gpu_memory(without);
  if (memory.scratch <= less.scratch || memory.weights != less.weights)
    return "scratch " + std::to_string(memory.scratch) + ", without " + std::to_string(less.scratch);
  with.gpu.vram_bytes = memory.total();
  const size_t before = cuda::open_device().device->free_bytes();
  Engine engine(with);
  engine.swap_neurons(random_swaps(with, 50, 1));
  const size_t taken = before - cuda::open_device().device->free_bytes();
  if (taken > memory.total()) return "took " + std::to_string(taken) + " bytes of " + std::to_string(memory.total());
  with.gpu.vram_bytes = memory.total() - 1;
  try {
    Engine refused(with);
  } catch (const std::runtime_error& error) {
    const bool numbers = std::string(error.what()).find(std::to_string(memory.total())) != std::string::npos;
    return numbers ? std::string() : std::string(error.what());
  }
  return std::string("one byte less was accepted");
});

const Check misuse("adapt: swaps of neurons that are not there are refused, and change nothing", [] {
  const TinyModel model(Shape{}, 7);
  const EngineOptions options = adapting(model, 0.5, 0b1111);
  Engine engine(options);
  const Rows rows = decoding(0, 2, FfnMode::kPredictor);
  const std::vector<float> before = logits(engine, rows);
  const auto refused = [](Engine& engine, const LayerSwap& swap, const char* words) {
    try {
      const LayerSwap swaps[] = {{0, {1, 150}}, swap};
      engine.swap_neurons(swaps);
    } catch (const std::runtime_error& error) {
      return std::string(error.what()).find(words) != std::string::npos;
    }
    return false;
  };
  if (!refused(engine, {2, {100, 150}}, "layer 2: neurons 100 and 150"))
    return std::string("a neuron of the host's as one of the GPU's");
  if (!refused(engine, {1, {0, 99}}, "expected one of the GPU's 100"))
    return std::string("a neuron of the GPU's as one of the host's");
  if (!refused(engine, {1, {0, 200}}, "layer 1: neurons 0 and 200")) return std::string("a neuron that is none");
  if (logits(engine, rows) != before) return std::string("something changed");
  EngineOptions off = options;
  off.gpu.adapt = false;
  Engine still(off);
  return refused(still, {1, {0, 150}}, "re-placement is off") ? std::string()
                                                              : std::string("neurons moved though it is off");
});

}  // namespace
}  // namespace pi::checks
