// addMoments(hidden, dim, moments, threads): Promise<void>
// lowRank(gate, moments, options): Promise<{ u, v }>
// predictorScores(tensors, hidden, rows, options): Promise<Float32Array>
#include <napi.h>

#include <algorithm>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "addon/arrays.h"
#include "addon/async.h"
#include "addon/dtype.h"
#include "engine/predictor.h"
#include "train/low_rank.h"

namespace pi::addon {
namespace {

constexpr double kMaxSize = 1 << 20;

Napi::Object options_of(const Napi::CallbackInfo& info, int i) {
  if (!info[i].IsObject()) fail(info.Env(), "expected an object of options");
  return info[i].As<Napi::Object>();
}

Napi::Value add_moments(const Napi::CallbackInfo& info) {
  const Napi::Object o = options_of(info, 2);
  const int dim = integer(o, "dim", 1, kMaxSize), threads = integer(o, "threads", 1, 1024);
  const Array<uint16_t> given = array<uint16_t>(info[0], "hidden");
  const Array<uint16_t> hidden = array<uint16_t>(info[0], "hidden", given.size / dim * dim);
  const size_t size = size_t(dim + 1) * (dim + 1);
  const std::span<double> moments(const_cast<double*>(array<double>(info[1], "moments", size).data), size);
  return AsyncCall::start(
      info.Env(), {info[0], info[1]},
      [=] {
        train::add_moments({hidden.data, hidden.size}, dim, moments, threads);
      },
      [](Napi::Env env) { return env.Undefined(); });
}

Napi::Value low_rank(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Napi::Object o = options_of(info, 2);
  const int n_neurons = integer(o, "nNeurons", 1, kMaxSize), dim = integer(o, "dim", 1, kMaxSize);
  const double seed = number(o, "seed");
  if (!(seed >= 0 && seed <= 9007199254740991.0)) fail(env, "seed: expected an integer from 0 to 2^53 - 1");
  const train::LowRankOptions options{n_neurons, dim, integer(o, "rank", 1, std::min(n_neurons, dim)),
                                      static_cast<uint64_t>(seed), integer(o, "threads", 1, 1024)};
  const Array<float> gate = array<float>(info[0], "gate", size_t(n_neurons) * dim);
  const Array<double> moments = array<double>(info[1], "moments", size_t(dim + 1) * (dim + 1));
  auto u = std::make_shared<std::vector<float>>(size_t(n_neurons) * options.rank);
  auto v = std::make_shared<std::vector<float>>(size_t(options.rank) * dim);
  return AsyncCall::start(
      env, {info[0], info[1]},
      [=] {
        train::low_rank(options, {gate.data, gate.size}, {moments.data, moments.size}, *u, *v);
      },
      [=](Napi::Env env) -> Napi::Value {
        Napi::Object out = Napi::Object::New(env);
        out.Set("u", copy_array(env, u->data(), u->size()));
        out.Set("v", copy_array(env, v->data(), v->size()));
        return out;
      });
}

// A predictor's tensors in JavaScript's memory.
struct Tensors {
  std::vector<TensorRef> refs;
  std::vector<std::span<const uint8_t>> contents;
};

Tensors read_tensors(const Napi::Value& value) {
  Napi::Env env = value.Env();
  if (!value.IsArray()) fail(env, "tensors: expected a list");
  const Napi::Array list = value.As<Napi::Array>();
  Tensors out;
  for (uint32_t i = 0; i < list.Length(); ++i) {
    const Napi::Object tensor = list.Get(i).As<Napi::Object>();
    TensorRef ref;
    ref.name = text(tensor, "name");
    ref.file = static_cast<int>(i);
    ref.type = read_dtype(env, ref.name, text(tensor, "dtype"));
    const Napi::Array shape = tensor.Get("shape").As<Napi::Array>();
    for (uint32_t j = 0; j < shape.Length(); ++j) ref.shape.push_back(shape.Get(j).ToNumber().Int64Value());
    ref.offset = 0;
    const Array<uint8_t> bytes = array<uint8_t>(tensor, "bytes");
    out.refs.push_back(ref);
    out.contents.emplace_back(bytes.data, bytes.size);
  }
  return out;
}

Napi::Value predictor_scores(const Napi::CallbackInfo& info) {
  Napi::Env env = info.Env();
  const Napi::Object o = options_of(info, 3);
  const int n_neurons = integer(o, "nNeurons", 1, kMaxSize), dim = integer(o, "dim", 1, kMaxSize);
  const int threads = integer(o, "threads", 1, 1024);
  const Tensors tensors = read_tensors(info[0]);
  PredictorWeights weights;
  try {
    weights = bind_predictor(dim, n_neurons, tensors.contents, tensors.refs);
  } catch (const std::exception& error) {
    fail(env, error.what());
  }
  if (!weights) fail(env, "tensors: expected those of a predictor");
  const Array<uint16_t> hidden = array<uint16_t>(info[1], "hidden");
  const Array<int32_t> rows = array<int32_t>(info[2], "rows");
  for (size_t i = 0; i < rows.size; ++i) {
    if (rows.data[i] < 0 || size_t(rows.data[i]) >= hidden.size / dim)
      fail(env, "rows[" + std::to_string(i) + "]: outside hidden");
  }
  auto out = Napi::Float32Array::New(env, rows.size * n_neurons);
  auto kept = std::make_shared<Napi::Reference<Napi::Float32Array>>(Napi::Persistent(out));
  float* const to = out.Data();
  // The list keeps the tensors' memory.
  return AsyncCall::start(
      env, {info[0], info[1], info[2]},
      [=] {
        pi::predictor_scores(weights, dim, n_neurons, hidden.data, {rows.data, rows.size}, to, threads);
      },
      [kept](Napi::Env) -> Napi::Value { return kept->Value(); });
}

}  // namespace

void register_predictors(Napi::Env env, Napi::Object exports) {
  exports.Set("addMoments", Napi::Function::New(env, add_moments));
  exports.Set("lowRank", Napi::Function::New(env, low_rank));
  exports.Set("predictorScores", Napi::Function::New(env, predictor_scores));
}

}  // namespace pi::addon
