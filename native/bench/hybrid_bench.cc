// A model that a GPU of too little memory shares with the CPU: decoding on the CPU alone, split for budgets of device
// memory, and with everything in it.
//   PI_DEVICE=cuda build/Release/pi_hybrid_bench [--shape 7b|13b|tiny] [--type f16|q4_0] [--active 0.08] [--budgets
//   2,3,5]
//     [--tokens 64] [--prompt 128] [--stream 48] [--threads N] [--folder /tmp]
// From --stream rows on, a prompt's weights that are the CPU's are sent to the GPU.
// A budget of 3 is a third of the model's bytes; 0 is no GPU, 1 all of the model. Weights are planted
// (bench/planted_model.h), tokens random, neurons split as they would be placed: projections, keys and values first,
// for every token needs them, then the head, then predictors and the hottest neurons of all layers alike. Lines that
// begin with { are JSON: all runs so far.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/random.h"
#include "bench/main.h"
#include "bench/planted_model.h"
#include "cuda/device.h"
#include "engine/gpu_programs.h"

namespace pi::bench {
namespace {

struct Arguments {
  std::string shape = "7b", type = "q4_0", budgets = "0,5,3,2,1", folder = "/tmp";
  double active = 0.08;
  int tokens = 64, prompt = 128, stream = kStreamRows, threads = 0;
};

Arguments parse(int argc, char** argv) {
  Arguments a;
  a.threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const std::map<std::string, std::string*> texts{
      {"--shape", &a.shape}, {"--type", &a.type}, {"--budgets", &a.budgets}, {"--folder", &a.folder}};
  const std::map<std::string, int*> numbers{
      {"--tokens", &a.tokens}, {"--prompt", &a.prompt}, {"--stream", &a.stream}, {"--threads", &a.threads}};
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    const bool known = texts.count(name) || numbers.count(name) || name == "--active";
    if (!known || i + 1 == argc) throw std::runtime_error(name + (known ? ": expected a value" : ": unknown option"));
    if (texts.count(name)) *texts.at(name) = argv[i + 1];
    if (numbers.count(name)) *numbers.at(name) = std::max(1, std::atoi(argv[i + 1]));
    if (name == "--active") a.active = std::atof(argv[i + 1]);
  }
  if (!(a.active > 0 && a.active < 0.5)) throw std::runtime_error("--active: expected more than 0 and less than 0.5");
  return a;
}

PlantedShape shape_of(const Arguments& a) {
  static const std::map<std::string, PlantedShape> shapes{
      {"7b", {.dim = 4096, .n_layers = 32, .n_heads = 32, .n_neurons = 11008, .vocab = 32000, .rank = 256}},
      {"13b", {.dim = 5120, .n_layers = 40, .n_heads = 40, .n_neurons = 13824, .vocab = 32000, .rank = 256}},
      {"tiny", {.dim = 64, .n_layers = 3, .n_heads = 4, .n_neurons = 2048, .vocab = 96, .rank = 32}},
  };
  static const std::map<std::string, DType> types{{"f16", DType::kF16}, {"q8_0", DType::kQ8_0}, {"q4_0", DType::kQ4_0}};
  if (!shapes.count(a.shape)) throw std::runtime_error("--shape: expected 7b, 13b or tiny, got " + a.shape);
  if (!types.count(a.type)) throw std::runtime_error("--type: expected f16, q8_0 or q4_0, got " + a.type);
  PlantedShape shape = shapes.at(a.shape);
  shape.type = types.at(a.type);
  shape.active = a.active;
  shape.positions = a.prompt + 3 * a.tokens + 64;
  return shape;
}

// -------------------------------------------------------------------------------------------------------------- splits

// The first `amount` of what a GPU is given, in this order: each layer's attention, the head, neurons of all layers.
GpuOptions split_of(const PlantedShape& shape, int amount, const Arguments& a) {
  GpuOptions gpu;
  gpu.layers.resize(shape.n_layers);
  gpu.max_rows = std::min(a.prompt, 512);
  gpu.stream_rows = a.stream;
  gpu.vram_bytes = SIZE_MAX;
  for (int layer = 0; layer < shape.n_layers; ++layer) gpu.layers[layer].attention = layer < amount;
  gpu.head = amount > shape.n_layers;
  const int neurons = std::max(0, amount - shape.n_layers - 1);
  for (LayerSplit& layer : gpu.layers) layer.neurons = neurons, layer.predictor = neurons > 0;
  return gpu;
}

// As much as fits into the budget.
GpuOptions fitting_split(const PlantedShape& shape, EngineOptions options, size_t budget, const Arguments& a) {
  const cuda::Opened opened = cuda::open_device();
  if (!opened.device) throw std::runtime_error("no device: " + opened.reason);
  const size_t context = opened.device->info().context_bytes;
  int low = 0, high = shape.n_layers + 1 + shape.n_neurons + 1;  // low fits, high is one too many
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    options.gpu = split_of(shape, middle, a);
    (gpu_memory(options, context).total() <= budget ? low : high) = middle;
  }
  GpuOptions gpu = split_of(shape, low, a);
  gpu.vram_bytes = budget;
  return gpu;
}

// --------------------------------------------------------------------------------------------------------------- steps

// One sequence of random tokens.
class Sequence {
 public:
  explicit Sequence(Engine& engine) : engine_(engine) {
    for (int i = 0; i < engine.kv_blocks(); ++i) blocks_.push_back(i);
  }

  // Seconds of a step of the next `n` rows.
  double step(int n, bool prompt) {
    std::vector<int32_t> tokens(n), positions(n), sequences(n, 0);
    for (int i = 0; i < n; ++i)
      tokens[i] = static_cast<int32_t>(next_random(random_) % engine_.config().vocab), positions[i] = position_++;
    const std::vector<uint8_t> modes(n, static_cast<uint8_t>(prompt ? FfnMode::kDense : FfnMode::kPredictor)),
        prefill(n, prompt);
    const int32_t output = n - 1;
    Batch b;
    b.n_rows = n;
    b.tokens = tokens.data(), b.positions = positions.data(), b.sequences = sequences.data();
    b.block_tables = blocks_.data(), b.blocks_per_sequence = static_cast<int>(blocks_.size());
    b.modes = modes.data(), b.prefill = prefill.data();
    const Choice highest{};
    b.n_outputs = 1, b.outputs = &output, b.choices = &highest;
    const double began = Trace::now();
    engine_.step(b);
    return Trace::now() - began;
  }

 private:
  Engine& engine_;
  std::vector<int32_t> blocks_;
  int position_ = 0;
  uint64_t random_ = 1;
};

// Of the shorter of the two devices' times for neurons, the share in which the other was at its neurons of the layer,
// too.
double overlap_of(std::vector<TraceSpan> spans, int layers) {
  double both = 0, shorter = 0;
  for (int layer = 0; layer < layers; ++layer) {
    std::vector<TraceSpan> of[2];
    for (const TraceSpan& span : spans) {
      if (span.layer == layer && std::strcmp(span.name, "neurons") == 0) of[span.gpu].push_back(span);
    }
    double length[2] = {0, 0};
    for (int device = 0; device < 2; ++device) {
      for (const TraceSpan& span : of[device]) length[device] += span.end - span.begin;
    }
    shorter += std::min(length[0], length[1]);
    for (const TraceSpan& a : of[0]) {
      for (const TraceSpan& b : of[1]) both += std::max(0.0, std::min(a.end, b.end) - std::max(a.begin, b.begin));
    }
  }
  return shorter > 0 ? both / shorter : -1;
}

uint64_t total(const BytesTouched& b) { return b.embed + b.attention + b.kv + b.predictor + b.ffn + b.head; }

struct Measured {
  uint64_t streamed = 0;  // bytes of weights that went to the GPU for the prompt
  double prompt_seconds = 0, seconds = 0, median = 0, overlap = -1;
  EngineStats stats;
  GpuMemory memory;
};

Measured measure(const Arguments& a, EngineOptions options) {
  Measured m;
  const bool gpu = !options.gpu.layers.empty();
  if (gpu) m.memory = gpu_memory(options);
  Engine engine(std::move(options));
  Sequence sequence(engine);
  m.prompt_seconds = sequence.step(a.prompt, true);
  m.streamed = engine.stats().gpu.streamed_bytes;
  for (int i = 0; i < 8; ++i) sequence.step(1, false);
  engine.reset_stats();
  std::vector<double> seconds;
  for (int i = 0; i < a.tokens; ++i) seconds.push_back(sequence.step(1, false));
  m.stats = engine.stats();
  for (double s : seconds) m.seconds += s;
  std::nth_element(seconds.begin(), seconds.begin() + a.tokens / 2, seconds.end());
  m.median = seconds[a.tokens / 2];
  if (!gpu) return m;
  engine.set_tracing(true);
  for (int i = 0; i < std::min(a.tokens, 16); ++i) sequence.step(1, false);
  m.overlap = overlap_of(engine.take_trace(), engine.config().n_layers);
  return m;
}

// ------------------------------------------------------------------------------------------------------------- results

std::string format(const char* text, auto... values) {
  char line[2048];
  std::snprintf(line, sizeof line, text, values...);
  return line;
}

// One run as JSON; where there is no GPU, without what only that has.
std::string json(const Arguments& a, const std::string& name, size_t budget, const GpuOptions& gpu, const Measured& m) {
  const GpuStats& g = m.stats.gpu;
  const double n = a.tokens, asked = static_cast<double>(g.gpu_neurons + g.cpu_neurons);
  const double device = static_cast<double>(total(g.bytes)), all = static_cast<double>(total(m.stats.bytes)) + device;
  LayerStats sums;
  for (const LayerStats& layer : m.stats.layers) sums.add(layer);
  const double neurons = std::max<double>(1, static_cast<double>(sums.rows) * shape_of(a).n_neurons);
  std::string out =
      format("{\"run\":\"%s\",\"tokensPerSecond\":%.3f,\"medianTokenSeconds\":%.6f,\"promptTokensPerSecond\":%.3f",
             name.c_str(), n / m.seconds, m.median, a.prompt / m.prompt_seconds);
  out += format(",\"bytesPerToken\":%.0f,\"bytesPerSecond\":%.0f", all / n, all / m.seconds);
  out += format(",\"predictedShare\":%.4f,\"firedShare\":%.4f", sums.predicted / neurons, sums.active / neurons);
  if (gpu.layers.empty()) return out + "}";
  const auto attention =
      std::count_if(gpu.layers.begin(), gpu.layers.end(), [](const LayerSplit& l) { return l.attention; });
  out += format(
      ",\"budgetBytes\":%zu,\"deviceBytes\":{\"weights\":%zu,\"predictors\":%zu,\"kv\":%zu,\"scratch\":%zu,\"context\":"
      "%zu}",
      budget, m.memory.weights, m.memory.predictors, m.memory.kv, m.memory.scratch, m.memory.context);
  out += format(",\"attentionLayers\":%d,\"head\":%s,\"neuronsPerLayer\":%d", static_cast<int>(attention),
                gpu.head ? "true" : "false", gpu.layers[0].neurons);
  out += format(",\"gpuShareOfNeurons\":%.4f,\"gpuShareOfFired\":%.4f,\"gpuBytesPerSecond\":%.0f",
                asked > 0 ? g.gpu_neurons / asked : 0.0,
                g.gpu_fired + g.cpu_fired > 0 ? static_cast<double>(g.gpu_fired) / (g.gpu_fired + g.cpu_fired) : 0.0,
                device / m.seconds);
  out += format(",\"waitsPerToken\":%.2f,\"waitShare\":%.4f,\"launchesPerToken\":%.2f", g.waits / n,
                g.wait_seconds / m.seconds, g.launches / n);
  out += format(",\"transfersPerToken\":%.2f,\"transferBytesPerToken\":%.0f", g.transfers / n, g.transfer_bytes / n);
  out += format(",\"promptStreamedBytes\":%llu", static_cast<unsigned long long>(m.streamed));
  return out + (m.overlap < 0 ? ",\"overlap\":null}" : format(",\"overlap\":%.4f}", m.overlap));
}

std::vector<int> numbers(const std::string& list) {
  std::vector<int> out;
  for (size_t at = 0; at < list.size();) {
    const size_t comma = std::min(list.find(',', at), list.size());
    const std::string item = list.substr(at, comma - at);
    if (item.empty() || item.find_first_not_of("0123456789") != std::string::npos)
      throw std::runtime_error("--budgets: expected numbers, got " + list);
    out.push_back(std::stoi(item));
    at = comma + 1;
  }
  return out;
}

std::string name_of(int budget) { return budget == 0 ? "cpu" : budget == 1 ? "gpu" : "1/" + std::to_string(budget); }

int run(int argc, char** argv) {
  const Arguments a = parse(argc, argv);
  const PlantedShape shape = shape_of(a);
  const std::vector<int> budgets = numbers(a.budgets);
  const cuda::Opened opened = cuda::open_device();
  const std::string device = opened.device ? opened.device->info().name : "none: " + opened.reason;
  const std::string backend = opened.device ? opened.device->info().backend : "none";
  const double began = Trace::now();
  const PlantedModel model(shape, a.folder, a.threads);
  std::printf("%s %s, %.0f %% of neurons: %.2f GB, made in %.1f s; ", a.shape.c_str(), a.type.c_str(), 100 * a.active,
              model.bytes() / 1e9, Trace::now() - began);
  std::printf("GPU %s; %d threads\n", device.c_str(), a.threads);
  const std::string about =
      format(
          "{\"bench\":\"hybrid\",\"device\":\"%s\",\"backend\":\"%s\",\"shape\":\"%s\",\"type\":\"%s\",\"active\":%.4f",
          device.c_str(), backend.c_str(), a.shape.c_str(), a.type.c_str(), a.active) +
      format(",\"modelBytes\":%zu,\"threads\":%d,\"tokens\":%d,\"prompt\":%d,\"runs\":[", model.bytes(), a.threads,
             a.tokens, a.prompt);
  std::string runs;
  bool failed = false;
  for (int budget : budgets) {
    EngineOptions options = model.options();
    options.threads = a.threads;
    std::string result;
    try {
      // All of the model is what fits into all of the device.
      size_t bytes = budget > 1                     ? model.bytes() / budget
                     : budget == 1 && opened.device ? opened.device->info().total_bytes
                                                    : 0;
      if (budget > 1 && backend == "emulated")
        bytes += opened.device->info().context_bytes + GpuPrograms::bytes(shape.n_layers);  // more than a tiny model
      if (budget > 0) options.gpu = fitting_split(shape, options, bytes, a);
      const GpuOptions gpu = options.gpu;
      const Measured m = measure(a, std::move(options));
      std::printf("%-4s %8.2f tokens/s, prompt %8.1f tokens/s", name_of(budget).c_str(), a.tokens / m.seconds,
                  a.prompt / m.prompt_seconds);
      const GpuStats& g = m.stats.gpu;
      const double asked = std::max<double>(1, static_cast<double>(g.gpu_neurons + g.cpu_neurons));
      if (budget > 0) std::printf(", GPU %.1f %% of neurons", 100 * g.gpu_neurons / asked);
      std::printf(m.overlap < 0 ? "\n" : ", overlap %.0f %%\n", 100 * m.overlap);
      result = json(a, name_of(budget), bytes, gpu, m);
    } catch (const std::exception& error) {
      failed = true;
      std::printf("%-4s %s\n", name_of(budget).c_str(), error.what());
      std::string what = error.what();
      std::replace_if(
          what.begin(), what.end(), [](char c) { return c == '"' || c == '\\' || c < ' '; }, '\'');
      result = format("{\"run\":\"%s\",\"error\":\"%s\"}", name_of(budget).c_str(), what.c_str());
    }
    runs += (runs.empty() ? "" : ",") + result;
    std::printf("%s%s]}\n", about.c_str(), runs.c_str());
    std::fflush(stdout);
  }
  return failed ? 1 : 0;
}

}  // namespace
}  // namespace pi::bench

PI_BENCH_MAIN(pi::bench::run)
