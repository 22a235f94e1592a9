// Prompts whose FFN the GPU computes alone, the host's neurons sent to it piece by piece.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "checks/check.h"
#include "checks/hybrid/steps.h"
#include "checks/hybrid/tiny_model.h"
#include "cuda/layout.h"
#include "engine/engine.h"
#include "engine/gpu_stream.h"

namespace pi::checks {
namespace {

constexpr int kFrom = 6;  // rows of prompts from which the checks' engines stream

// A prompt that is cut into a step that streams and one of two rows that does not; decoding with a prompt that streams,
// and with one that is too short; decoding after all of them, by what they left in the cache.
std::vector<std::vector<float>> conversation(Engine& engine, FfnMode mode) {
  std::vector<std::vector<float>> out;
  Rows prompt;
  for (int i = 0; i < 36; ++i) prompt.add(0, i, mode, true, i % 7 == 0);
  out.push_back(logits(engine, prompt));
  Rows mixed;
  mixed.add(0, 36, mode);
  for (int i = 0; i < 11; ++i) mixed.add(1, i, mode, true, i % 5 == 0);
  mixed.add(0, 37, mode);
  out.push_back(logits(engine, mixed));
  Rows few;
  few.add(0, 38, mode);
  for (int i = 0; i < kFrom - 1; ++i) few.add(2, i, mode, true, i == 0);
  out.push_back(logits(engine, few));
  Rows decode;
  decode.add(0, 39, mode), decode.add(1, 11, mode), decode.add(2, kFrom - 1, mode);
  out.push_back(logits(engine, decode));
  return out;
}

// Of the conversation's steps, those that stream.
constexpr int kStreamed = 2;

GpuOptions streaming(GpuOptions gpu, int piece) {
  gpu.stream_rows = kFrom;
  gpu.stream_neurons = piece;
  return gpu;
}

// What cold neurons of all layers take on their way, and q, k, v and o where attention is the host's.
uint64_t cold_bytes(const Shape& shape, const GpuOptions& gpu) {
  const size_t row = cuda::device_row_bytes(shape.type, shape.dim);
  const size_t neuron = shape.llama ? 3 * row : 2 * row + sizeof(float);  // without a gate there is a bias
  const size_t q_dim = shape.n_heads * shape.head_dim, kv_dim = shape.n_kv_heads * shape.head_dim;
  const size_t projections = (q_dim + 2 * kv_dim) * row + shape.dim * cuda::device_row_bytes(shape.type, q_dim);
  uint64_t sum = 0;
  for (const LayerSplit& layer : gpu.layers)
    sum += (shape.n_neurons - layer.neurons) * neuron + (layer.attention ? 0 : projections);
  return sum;
}

const std::vector<Kind>& cases() {
  static const std::vector<Kind> all = [] {
    std::vector<Kind> out;
    out.push_back({"f32, MLP", {}});
    out.push_back({"f16, SVD", {.type = DType::kF16, .predictor = "svd"}});
    out.push_back({"bf16, exact, dReLU, rows of no whole 16 bytes",
                   {.type = DType::kBF16, .predictor = "", .activation = Activation::kDRelu, .dim = 68}});
    out.push_back({"q8_0, 4-bit gate", {.type = DType::kQ8_0, .predictor = "gate"}});
    out.push_back({"q4_0, signs", {.type = DType::kQ4_0, .predictor = "signs"}});
    out.push_back(opt());
    out.push_back(falcon());
    return out;
  }();
  return all;
}

// No neurons, three tenths, one of a layer or all but one, and mixtures of where attention is; pieces that divide the
// cold neurons and such that do not, of one neuron fewer than all, and of all.
std::vector<GpuOptions> splits(const Shape& shape) {
  std::vector<GpuOptions> out;
  out.push_back(streaming(share(shape, 0, 0b1111), 0));
  out.push_back(streaming(share(shape, 0.3, 0b1111), 28));
  out.push_back(streaming(share(shape, 0.3, 0b0010), 0));
  out.push_back(streaming(share(shape, 0, 0b0000), 96));
  out.push_back(streaming(share(shape, 0.3, 0b0101), shape.n_neurons));
  GpuOptions single = share(shape, 0, 0b1011);
  const bool predictor = !shape.predictor.empty();
  single.layers[0].neurons = 1, single.layers[0].predictor = predictor;
  single.layers[1].neurons = shape.n_neurons, single.layers[1].predictor = predictor;
  single.layers[2].neurons = shape.n_neurons - 1, single.layers[2].predictor = predictor;
  out.push_back(streaming(single, shape.n_neurons - 2));
  GpuOptions predicted = share(shape, 0, 0b0110);  // scores alone
  for (LayerSplit& layer : predicted.layers) layer.predictor = predictor;
  out.push_back(streaming(predicted, 33));
  return out;
}

std::string text(const GpuOptions& gpu) {
  std::string out;
  for (const LayerSplit& layer : gpu.layers)
    out += std::to_string(layer.neurons) + (layer.attention ? "a" : "") + (layer.predictor ? "p" : "") + " ";
  return out + (gpu.head ? "head, " : "") + "pieces of " + std::to_string(gpu.stream_neurons);
}

// As in hybrid_checks.cc: block types are multiplied with finer activations than the CPU's in prompts, and keys that
// are finer tip masks afterwards.
std::string same_logits(const Shape& shape) {
  const TinyModel model(shape, 21);
  const bool blocks = block_size(shape.type) > 1;
  const double tolerance = blocks ? 0.2 : 1e-3;
  for (const FfnMode mode : {FfnMode::kExact, FfnMode::kPredictor}) {
    if (mode == FfnMode::kPredictor && shape.predictor.empty()) continue;
    Engine alone(model.options());
    const auto expected = conversation(alone, mode);
    const std::vector<GpuOptions> all = splits(shape);
    for (size_t i = 0; i < all.size(); ++i) {
      // Prompts do not depend on the mode, and an emulator takes its time: each split in one, with predictors.
      if (!shape.predictor.empty() && (i % 2 == 0) != (mode == FfnMode::kExact)) continue;
      const GpuOptions& gpu = all[i];
      EngineOptions options = model.options();
      options.gpu = gpu;
      Engine engine(std::move(options));
      const auto found = conversation(engine, mode);
      const uint64_t sent = engine.stats().gpu.streamed_bytes, should = kStreamed * cold_bytes(shape, gpu);
      const std::string where = "mode " + std::to_string(int(mode)) + ", split " + text(gpu) + ": ";
      if (sent != should)
        return where + "expected " + std::to_string(should) + " bytes to be streamed, got " + std::to_string(sent);
      for (size_t step = 0; step < expected.size(); ++step) {
        if (blocks && mode == FfnMode::kPredictor && step > 0) continue;
        const double off = distance(expected[step], found[step], shape.vocab);
        if (!(off <= tolerance))
          return where + "step " + std::to_string(step) + ": logits differ by " + std::to_string(off);
      }
    }
  }
  return "";
}

const std::vector<Check> all_types = [] {
  std::vector<Check> out;
  for (const Kind& c : cases()) {
    out.emplace_back("stream: prompts have the CPU's logits at any split and in any pieces: " + std::string(c.name),
                     [&c] { return same_logits(c.shape); });
  }
  return out;
}();

Rows prompt_of(int rows, int sequence = 0) {
  Rows out;
  for (int i = 0; i < rows; ++i) out.add(sequence, i, FfnMode::kExact, true);
  return out;
}

const Check threshold("stream: from so many rows of prompts on, and from none", [] {
  const Shape shape;
  const TinyModel model(shape, 22);
  const auto sent = [&](int from, int rows, int decoding) {
    EngineOptions options = model.options();
    options.gpu = share(shape, 0.5, 0b1111);
    options.gpu.stream_rows = from;
    Engine engine(std::move(options));
    Rows step = prompt_of(rows);
    for (int i = 0; i < decoding; ++i) step.add(1, i, FfnMode::kExact);
    logits(engine, step);
    return engine.stats().gpu.streamed_bytes;
  };
  const uint64_t all = cold_bytes(shape, share(shape, 0.5, 0b1111));
  if (sent(9, 8, 5) != 0) return std::string("streamed too few rows of prompts beside others");
  if (sent(8, 8, 5) != all) return std::string("did not stream as many rows as are needed");
  if (sent(34, 34, 0) != all) return std::string("did not stream a whole step");
  if (sent(35, 70, 0) != 0) return std::string("streamed in steps that never have the rows");
  if (sent(30, 65, 0) != 2 * all)
    return std::string("a prompt in three steps, of which two are long enough, was streamed another number of times");
  return std::string();
});

const Check repeatable("stream: the same bits again, whatever the threads, and of a row in company", [] {
  const Shape shape{.type = DType::kF16};
  const TinyModel model(shape, 23);
  std::vector<float> first;
  for (int round = 0; round < 4; ++round) {
    EngineOptions options = model.options();
    options.gpu = streaming(share(shape, 0.4, 0b0111), 30);
    options.threads = round == 1 ? 1 : 3;
    Engine engine(std::move(options));
    Rows rows = prompt_of(8);
    if (round == 2) {
      for (int i = 0; i < 9; ++i) rows.add(1, i, FfnMode::kExact, true, false);
    }
    if (round == 3) rows.add(2, 0, FfnMode::kPredictor, false, false);
    const std::vector<float> found = logits(engine, rows);
    if (round == 0) first = found;
    if (found != first) return "round " + std::to_string(round) + " differs";
  }
  return std::string();
});

const Check counted("stream: the buffers are counted to the byte, and taken only where something may be streamed", [] {
  const Shape shape;
  const TinyModel model(shape, 24);
  EngineOptions options = model.options();
  const auto scratch = [&](GpuOptions gpu) {
    options.gpu = std::move(gpu);
    return gpu_memory(options).scratch;
  };
  GpuOptions without = share(shape, 0.5, 0b1111);
  without.stream_rows = without.max_rows + 1;
  const size_t piece = cuda::align_up(20 * 3 * cuda::device_row_bytes(shape.type, shape.dim), 256);
  if (scratch(streaming(share(shape, 0.5, 0b1111), 20)) != scratch(without) + 2 * piece)
    return std::string("two pieces of 20 neurons were counted differently");
  GpuOptions whole = share(shape, 1, 0b1111);
  const size_t none = scratch(whole);
  if (scratch(streaming(whole, 20)) != none) return std::string("memory for neurons that are all there");
  options.gpu = streaming(share(shape, 0, 0b1101), 0);
  const std::string problem = keeps_budget(options, [](Engine& engine) { logits(engine, prompt_of(34)); });
  if (!problem.empty()) return problem;
  options.gpu.stream_rows = 0;
  if (error_of(options).find("expected to stream from a row on") == std::string::npos)
    return "no rows: " + error_of(options);
  return std::string();
});

// A first row that differs from the host's, or -1.
int differs(cuda::Device& device, const MatrixView& from, int first, const cuda::DeviceMatrix& to) {
  if (!from) return -1;
  const size_t bytes = to.rows * to.row_bytes;
  uint8_t* const back = static_cast<uint8_t*>(device.allocate_host(bytes));
  device.download(cuda::Queue::kCompute, back, to.data, bytes);
  device.synchronize(cuda::Queue::kCompute);
  std::vector<uint8_t> row(to.row_bytes);
  int wrong = -1;
  for (int i = 0; i < to.rows && wrong < 0; ++i) {
    cuda::pack_row(from.type, from.cols, from.data + (first + i) * from.row_bytes, row.data());
    if (std::memcmp(row.data(), back + i * to.row_bytes, to.row_bytes) != 0) wrong = first + i;
  }
  device.free_host(back);
  return wrong;
}

// Reads pieces back: attention's rows and all cold neurons of all layers, in order, as cuda/layout.h has them.
std::string arrives(cuda::Device& device, const ModelWeights& weights, const std::vector<LayerWeights>& cold,
                    WeightStream& stream) {
  std::string wrong;
  const auto expect = [&](size_t layer, const MatrixView& from, int first, const cuda::DeviceMatrix& to) {
    const int row = differs(device, from, first, to);
    if (row >= 0) wrong = "layer " + std::to_string(layer) + ", row " + std::to_string(row);
  };
  for (size_t layer = 0; layer < cold.size(); ++layer) {
    const LayerWeights &w = weights.layers[layer], &ffn = cold[layer];
    for (const MatrixView* m : {&w.q, &w.k, &w.v, &w.o}) {
      int first = 0;
      stream.rows(static_cast<int>(layer), *m, [&](const cuda::DeviceMatrix& piece) {
        expect(layer, *m, first, piece);
        first += piece.rows;
      });
      if (first != m->rows)
        return "layer " + std::to_string(layer) + ": " + std::to_string(first) + " rows of " + std::to_string(m->rows);
    }
    int first = 0;
    stream.neurons(static_cast<int>(layer), [&](const StreamedNeurons& piece) {
      expect(layer, ffn.gate, first, piece.gate), expect(layer, ffn.up, first, piece.up),
          expect(layer, ffn.down_t, first, piece.down);
      first += piece.up.rows;
    });
    if (first != ffn.up.rows)
      return "layer " + std::to_string(layer) + ": " + std::to_string(first) + " neurons of " +
             std::to_string(ffn.up.rows);
  }
  return wrong;
}

const Check whole("stream: every row arrives as it is, also after a step that was broken off anywhere", [] {
  const Shape shape{.type = DType::kQ4_0, .predictor = ""};
  const TinyModel model(shape, 25);
  EngineOptions options = model.options();
  options.gpu = streaming(share(shape, 0, 0), 48);
  options.gpu.layers[0].neurons = 30, options.gpu.layers[1].neurons = shape.n_neurons;
  const std::vector<MappedFile> files = [&] {
    std::vector<MappedFile> out;
    for (const std::string& path : options.files) out.emplace_back(path);
    return out;
  }();
  const ModelWeights weights = bind_weights(options.config, files, options.tensors);
  std::vector<LayerWeights> cold;
  for (int layer = 0; layer < shape.n_layers; ++layer)
    cold.push_back(weights.layers[layer].from(options.gpu.layers[layer].neurons));
  const std::shared_ptr<cuda::Device> device = cuda::open_device().device;
  const StreamPlan plan = plan_stream(options.config, weights, options.gpu);
  uint8_t* const space = static_cast<uint8_t*>(device->allocate(plan.device_bytes()));
  std::string wrong;
  {
    WeightStream stream(device, cold, plan, space);
    for (int pieces = 0; pieces < 6 && wrong.empty(); ++pieces) {
      stream.begin({});
      int left = pieces;
      const auto use = [&](const auto&) {
        if (left-- == 1) throw std::runtime_error("broken off");
      };
      try {
        const LayerWeights& w = weights.layers[0];
        for (const MatrixView* m : {&w.q, &w.k, &w.v, &w.o}) {
          if (left > 0) stream.rows(0, *m, use);
        }
        if (left > 0) stream.neurons(0, use);
      } catch (const std::runtime_error&) {
      }
      device->synchronize(cuda::Queue::kCompute);
      stream.abandon();
      stream.begin({});
      wrong = arrives(*device, weights, cold, stream);
      if (!wrong.empty()) wrong += ", after " + std::to_string(pieces) + " pieces";
      try {
        stream.begin({});
        stream.neurons(0, use);
        wrong = "neurons were had before attention";
      } catch (const std::logic_error&) {
      }
    }
  }
  device->free(space);
  return wrong;
});

const Check swapped("stream: neurons that changed places go to the GPU as they are now", [] {
  const Shape shape{.type = DType::kF16};
  const TinyModel model(shape, 29);
  Engine alone(model.options());
  EngineOptions options = model.options();
  options.gpu = streaming(share(shape, 0.5, 0b1111), 40);
  options.gpu.adapt = true;
  Engine engine(std::move(options));
  const Rows rows = prompt_of(12);
  const std::vector<float> expected = logits(alone, rows);
  for (int round = 0; round < 2; ++round) {
    const double off = distance(expected, logits(engine, rows), shape.vocab);
    if (!(off <= 1e-3)) return "round " + std::to_string(round) + ": logits differ by " + std::to_string(off);
    std::vector<LayerSwap> swaps;
    for (int i = 0; i < 40; ++i) swaps.push_back({i % shape.n_layers, {2 * i, shape.n_neurons - 1 - i}});
    if (round == 0) engine.swap_neurons(swaps);
  }
  return engine.stats().gpu.swaps == 40 ? std::string() : "swaps: " + std::to_string(engine.stats().gpu.swaps);
});

// A step that the host gives up between layers, its copies and kernels under way.
const Check given_up("stream: after a step that was given up the next one is as if there had been none", [] {
  const Shape shape;
  const TinyModel model(shape, 26);
  for (unsigned where : {0b1111u, 0b0000u}) {
    for (int layers = 0; layers <= (where ? shape.n_layers : 0); ++layers) {
      EngineOptions options = model.options();
      options.gpu = streaming(share(shape, 0.3, where), 25);
      Engine fresh(options), engine(options);
      GpuHalf& gpu = const_cast<GpuHalf&>(*engine.gpu());
      const Rows rows = prompt_of(12);
      std::vector<const int32_t*> blocks(12, rows.tables.data());
      const std::vector<FfnMode> modes(12, FfnMode::kDense);
      const std::vector<float> x(size_t(12) * shape.dim, 0.5f);
      gpu.start({12, 0, rows.positions, blocks, modes, rows.outputs, Executor{&engine.pool()}, {}});
      for (int layer = 0; layer < layers; ++layer) {
        if (layer == 0) gpu.give(Mail::kStream, 0, x.data(), x.size());
        gpu.go_on(layer);
      }
      gpu.abandon();
      if (logits(engine, rows) != logits(fresh, rows))
        return "attention " + std::to_string(where) + ", given up after " + std::to_string(layers) + " layers";
    }
  }
  return std::string();
});

// Only the emulator's kernels fail when told to.
std::string fail_everywhere() {
  const Shape shape;
  const TinyModel model(shape, 27);
  int failed = 0;
  for (unsigned where : {0b1111u, 0b0101u, 0b0000u}) {
    for (int kernel = 1; kernel < 200; kernel += 11) {
      ::setenv("PI_EMULATOR_FAIL", std::to_string(kernel).c_str(), 1);
      EngineOptions options = model.options();
      options.gpu = streaming(share(shape, 0.3, where), 50);
      Engine engine(std::move(options));
      ::unsetenv("PI_EMULATOR_FAIL");
      Rows rows = prompt_of(10);
      rows.add(1, 0, FfnMode::kPredictor);
      try {
        logits(engine, rows);
      } catch (const std::runtime_error& error) {
        if (std::string(error.what()).find("PI_EMULATOR_FAIL") == std::string::npos) return std::string(error.what());
        ++failed;
      }
    }
  }
  return failed > 30 ? std::string() : "only " + std::to_string(failed) + " steps failed";
}

const std::vector<Check> failing = [] {
  std::vector<Check> out;
  const char* const device = std::getenv("PI_DEVICE");
  if (device && std::string(device) == "emulated") {
    out.emplace_back(
        "stream: a kernel that fails ends the step with its error, wherever it is, and nobody waits for ever",
        fail_everywhere);
  }
  return out;
}();

const Check traced("stream: a trace shows it on both devices, once a layer", [] {
  const Shape shape;
  const TinyModel model(shape, 28);
  EngineOptions options = model.options();
  options.gpu = streaming(share(shape, 0.5, 0b1111), 0);
  Engine engine(std::move(options));
  engine.set_tracing(true);
  logits(engine, prompt_of(8));
  int cpu = 0, gpu = 0;
  for (const TraceSpan& span : engine.take_trace()) {
    if (std::string(span.name) == "stream") ++(span.gpu ? gpu : cpu);
  }
  return cpu == shape.n_layers && gpu == shape.n_layers
             ? std::string()
             : "spans: " + std::to_string(cpu) + " of the CPU, " + std::to_string(gpu) + " of the GPU";
});

}  // namespace
}  // namespace pi::checks
