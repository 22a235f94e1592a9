#include "addon/model_config.h"

#include <cmath>
#include <numbers>

#include "addon/arrays.h"
#include "addon/dtype.h"

namespace pi::addon {
namespace {

constexpr double kMaxSize = 1 << 24;  // far above any model's dimension; keeps products within 64 bits

Activation read_activation(const Napi::Object& activation) {
  const std::string kind = text(activation, "kind");
  constexpr std::pair<const char*, Activation> kKinds[] = {
      {"relu", Activation::kRelu},         {"relu2", Activation::kRelu2}, {"fatrelu", Activation::kFatRelu},
      {"drelu", Activation::kDRelu},       {"silu", Activation::kSilu},   {"gelu", Activation::kGelu},
      {"gelu_tanh", Activation::kGeluTanh}};
  for (const auto& [name, value] : kKinds) {
    if (kind == name) return value;
  }
  fail(activation.Env(), "activation: unknown kind " + kind);
}

// Rotations per position, with the frequency scaling of Llama 3 or linear interpolation.
std::vector<double> rope_frequencies(const Napi::Object& config, int head_dim) {
  const double theta = number(config, "ropeTheta");
  std::vector<double> frequencies(head_dim / 2);
  for (int i = 0; i < head_dim / 2; ++i) frequencies[i] = std::pow(theta, -2.0 * i / head_dim);
  if (!config.Get("ropeScaling").IsObject()) return frequencies;
  const Napi::Object scaling = object(config, "ropeScaling");
  const double factor = number(scaling, "factor");
  const bool linear = text(scaling, "type") == "linear";
  for (double& f : frequencies) {
    double share = 0;  // of the unscaled frequency
    if (!linear) {
      const double low = number(scaling, "lowFreqFactor"), high = number(scaling, "highFreqFactor");
      const double turns = number(scaling, "originalMaxPositions") * f / (2 * std::numbers::pi);
      share = std::min(1.0, std::max(0.0, (turns - low) / (high - low)));
    }
    f = share * f + (1 - share) * f / factor;
  }
  return frequencies;
}

ModelConfig read_config(const Napi::Object& o) {
  ModelConfig c;
  const auto size = [&](const char* name) { return integer(o, name, 1, kMaxSize); };
  c.dim = size("dim");
  c.n_layers = size("nLayers");
  c.n_heads = size("nHeads");
  c.n_kv_heads = size("nKvHeads");
  c.head_dim = size("headDim");
  c.n_neurons = size("nNeurons");
  c.vocab = size("vocabSize");
  c.max_positions = size("maxPositions");
  if (c.n_heads % c.n_kv_heads != 0) fail(o.Env(), "nHeads: expected a multiple of nKvHeads");
  c.rms_norm = text(o, "norm") == "rms";
  c.norm_eps = static_cast<float>(number(o, "normEps"));
  c.rope = text(o, "position") == "rope";
  if (c.rope) {
    if (c.head_dim % 2 != 0) fail(o.Env(), "headDim: expected an even number for rotary positions");
    c.rope_frequencies = rope_frequencies(o, c.head_dim);
  }
  c.gated = flag(o, "gated");
  const Napi::Object activation = object(o, "activation");
  c.activation = read_activation(activation);
  if (c.activation == Activation::kFatRelu) c.fatrelu_threshold = static_cast<float>(number(activation, "threshold"));
  c.parallel_residual = flag(o, "parallelResidual");
  c.shared_norm = flag(o, "sharedNorm");
  return c;
}

TensorRef read_tensor(const Napi::Object& o, size_t n_files) {
  TensorRef tensor;
  tensor.name = text(o, "name");
  tensor.file = integer(o, "file", 0, static_cast<double>(n_files) - 1);
  tensor.offset = static_cast<uint64_t>(number(o, "offset"));
  tensor.type = read_dtype(o.Env(), "tensor " + tensor.name, text(o, "dtype"));
  const Napi::Array shape = object(o, "shape").As<Napi::Array>();
  for (uint32_t i = 0; i < shape.Length(); ++i) tensor.shape.push_back(shape.Get(i).As<Napi::Number>().Int64Value());
  return tensor;
}

kernels::KvType read_kv_type(Napi::Env env, const std::string& name) {
  if (name == "f32") return kernels::KvType::kF32;
  if (name == "f16") return kernels::KvType::kF16;
  if (name == "q8") return kernels::KvType::kQ8;
  fail(env, "kvType: expected f32, f16 or q8, got " + name);
}

GpuOptions read_gpu(const Napi::Object& o) {
  GpuOptions out;
  out.head = flag(o, "head");
  out.vram_bytes = static_cast<size_t>(std::max(0.0, number(o, "vramBytes")));
  out.max_rows = integer(o, "maxRows", 1, 1 << 20);
  if (o.Has("streamRows")) out.stream_rows = integer(o, "streamRows", 1, 1 << 30);
  out.adapt = flag(o, "adapt");
  const Napi::Array layers = object(o, "layers").As<Napi::Array>();
  for (uint32_t i = 0; i < layers.Length(); ++i) {
    Napi::HandleScope scope(o.Env());
    const Napi::Object layer = layers.Get(i).As<Napi::Object>();
    out.layers.push_back({integer(layer, "neurons", 0, 1 << 30), flag(layer, "attention"), flag(layer, "predictor")});
  }
  return out;
}

}  // namespace

EngineOptions read_engine_options(const Napi::Object& options) {
  Napi::Env env = options.Env();
  EngineOptions out;
  const Napi::Object json = env.Global().Get("JSON").As<Napi::Object>();
  const Napi::Value config =
      json.Get("parse").As<Napi::Function>().Call(json, {Napi::String::New(env, text(options, "config"))});
  if (!config.IsObject()) fail(env, "config: expected a JSON object");
  out.config = read_config(config.As<Napi::Object>());
  const Napi::Array files = object(options, "files").As<Napi::Array>();
  for (uint32_t i = 0; i < files.Length(); ++i) out.files.push_back(files.Get(i).As<Napi::String>().Utf8Value());
  const Napi::Array tensors = object(options, "tensors").As<Napi::Array>();
  for (uint32_t i = 0; i < tensors.Length(); ++i) {
    Napi::HandleScope scope(env);
    out.tensors.push_back(read_tensor(tensors.Get(i).As<Napi::Object>(), out.files.size()));
  }
  const Array<float> thresholds = array<float>(options, "thresholds");
  if (thresholds.size != 0 && thresholds.size != static_cast<size_t>(out.config.n_layers)) {
    fail(env, "thresholds: expected one per layer or none, got " + std::to_string(thresholds.size));
  }
  out.thresholds.assign(thresholds.data, thresholds.data + thresholds.size);
  out.threads = integer(options, "threads", 1, 1024);
  out.kv_blocks = integer(options, "kvBlocks", 1, 1 << 24);
  out.kv_type = read_kv_type(env, text(options, "kvType"));
  if (options.Has("gpu") && options.Get("gpu").IsObject()) out.gpu = read_gpu(object(options, "gpu"));
  return out;
}

}  // namespace pi::addon
