// The host's half of the forward pass, where a GPU has the other: the same layers as Engine::forward, with what crosses
// between the two. Both walk through the layers at their own pace and meet only where one needs the other.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "engine/engine.h"

namespace pi {
namespace {

using Piece = Engine::Piece;

// What is wanted of a step beside a GPU, a piece at a time: at most kDecodeRows of decoding, max_rows in all. Prompts
// come first: what a sequence has after its prompt may be in the same step, when it lost its keys and values, and reads
// them.
std::vector<Piece> pieces(int rows, int decode, int max_rows) {
  const int most = std::min(kDecodeRows, max_rows);
  std::vector<Piece> out;
  for (int at = decode; at < rows; at += max_rows) out.push_back({0, 0, at, std::min(max_rows, rows - at)});
  int at = 0;
  if (!out.empty()) {  // decoding fills the last one up
    out.back().n_decode = std::min({most, max_rows - out.back().n_prompt, decode});
    at = out.back().n_decode;
  }
  for (; at < decode; at += most) out.push_back({at, std::min(most, decode - at), rows, 0});
  return out;
}

}  // namespace

GpuMemory gpu_memory(const EngineOptions& options) {
  const cuda::Opened opened = cuda::open_device();
  return gpu_memory(options, opened.device ? opened.device->info().context_bytes : 0);
}

GpuMemory gpu_memory(const EngineOptions& options, size_t context_bytes) {
  std::vector<MappedFile> files;
  for (const std::string& path : options.files) files.emplace_back(path);
  const ModelWeights weights = bind_weights(options.config, files, options.tensors);
  const int positions = std::min(options.kv_blocks * KvCache::kBlockTokens, options.config.max_positions);
  return gpu_memory({options.config, weights, {options.kv_blocks, options.kv_type}, positions}, options.gpu,
                    context_bytes);
}

void Engine::open_gpu(GpuOptions options, KvShape kv) {
  cuda::Opened opened = cuda::open_device();
  if (!opened.device) throw std::runtime_error("GPU: " + opened.reason);
  gpu_ = std::make_unique<GpuHalf>(std::move(opened.device), GpuModelView{c_, w_, kv, max_position_},
                                   std::move(options), cosine_.data(), sine_.data());
  gpu_->set_thresholds(thresholds_);
  // What the GPU alone reads needs no memory here.
  gpu_->each_exclusive([&](const uint8_t* at, size_t bytes) {
    for (MappedFile& file : files_) {
      if (file.holds(at)) file.release(at, bytes);
    }
  });
  for (int layer = 0; layer < c_.n_layers; ++layer) {
    const LayerSplit& split = gpu_->split(layer);
    cold_.push_back(w_.layers[layer].from(split.neurons));
    if (!split.predictor) cold_.back().predictor = w_.layers[layer].predictor;
  }
  if (gpu_->options().adapt)
    replacement_ =
        std::make_unique<Replacement>(gpu_->device(), w_, gpu_->model(), gpu_->options(), files_, gpu_->swap_space());
}

void Engine::swap_neurons(std::span<const LayerSwap> swaps) {
  if (!replacement_) throw std::runtime_error("neurons cannot change places: re-placement is off");
  replacement_->swap(swaps);
  stats_.gpu.swaps += swaps.size();
}

Engine::Rows Engine::Rows::piece(const Piece& of, std::vector<int>& which) const {
  Rows out;
  out.n = of.n_decode + of.n_prompt;
  out.n_decode = of.n_decode;
  const auto cut = [&](const auto& from, auto& to) {
    to.assign(from.begin() + of.decode, from.begin() + of.decode + of.n_decode);
    to.insert(to.end(), from.begin() + of.prompt, from.begin() + of.prompt + of.n_prompt);
  };
  cut(tokens, out.tokens), cut(positions, out.positions), cut(blocks, out.blocks), cut(modes, out.modes);
  out.find_runs();
  which.clear();
  for (size_t i = 0; i < outputs.size(); ++i) {
    const int decoded = outputs[i] - of.decode, prompted = outputs[i] - of.prompt;
    const bool decodes = decoded >= 0 && decoded < of.n_decode;
    if (!decodes && (prompted < 0 || prompted >= of.n_prompt)) continue;
    out.outputs.push_back(decodes ? decoded : of.n_decode + prompted);
    which.push_back(static_cast<int>(i));
  }
  return out;
}

// Cuts the step to what the GPU has scratch for; a row's results do not depend on it.
void Engine::step_beside_gpu(const Batch& batch, StepOutput& out) {
  if (batch.n_samples > 0) refuse_gpu("samples");
  Rows all;
  all.set(batch);
  const bool choosing =
      batch.choices && gpu_->has_head() && std::all_of(batch.choices, batch.choices + batch.n_outputs, is_plain);
  const std::vector<Piece> cut = pieces(all.n, all.n_decode, gpu_->max_rows());
  if (choosing) out.chosen.resize(batch.n_outputs);
  if (cut.size() > 1 && !choosing) grow(step_logits_, size_t(batch.n_outputs) * c_.vocab);
  for (const Piece& piece : cut) {
    std::vector<int> which;
    rows_ = all.piece(piece, which);
    std::vector<cuda::Draw> draws;
    for (size_t i = 0; choosing && i < which.size(); ++i) {
      const Choice& choice = batch.choices[which[i]];
      draws.push_back({choice.temperature, rows_.positions[rows_.outputs[i]], choice.seed});
    }
    forward_beside_gpu(draws);
    const float* logits = gpu_->has_head() ? gpu_->logits() : logits_.data();
    for (size_t i = 0; i < which.size(); ++i) {
      if (choosing) {
        out.chosen[which[i]] = {gpu_->token(static_cast<int>(i)), gpu_->logprob(static_cast<int>(i)), {}, {}};
      } else if (cut.size() > 1) {
        std::copy_n(logits + i * c_.vocab, c_.vocab, &step_logits_[size_t(which[i]) * c_.vocab]);
      }
    }
    if (!choosing) out.logits = cut.size() > 1 ? step_logits_.data() : logits;
  }
}

void Engine::forward_beside_gpu(std::span<const cuda::Draw> draws) {
  if (!lost_.empty())
    throw std::runtime_error("GPU: a step failed in which neurons changed places, open the model again: " + lost_);
  reserve();
  int swaps = 0;
  try {
    if (replacement_) swaps = replacement_->between_steps();
    stats_.gpu.swaps += swaps;
    gpu_->start({rows_.n, rows_.n_decode, rows_.positions, rows_.blocks, rows_.modes, rows_.outputs,
                 Executor{pool_.get()}, draws});
    walk_beside_gpu();
    gpu_->finish();
  } catch (const std::exception& error) {
    gpu_->abandon();
    if (replacement_) replacement_->give_up(error.what());
    if (swaps > 0) lost_ = error.what();
    throw;
  }
}

void Engine::walk_beside_gpu() {
  embed();           // x [T, dim]
  bool here = true;  // x is in main memory
  for (int layer = 0; layer < c_.n_layers; ++layer) here = layer_beside_gpu(layer, here);
  if (!gpu_->has_head()) head();
}

// One layer; `here`: the stream comes in main memory. Returns whether it goes on there.
bool Engine::layer_beside_gpu(int layer, bool here) {
  const LayerSplit& split = gpu_->split(layer);
  const size_t floats = size_t(rows_.n) * c_.dim;
  const int n = static_cast<int>(floats);
  if (split.attention) {
    if (here) gpu_->give(Mail::kStream, layer, x_.data(), floats);
  } else {
    const double began = Trace::now();
    attention(layer);  // x, ffn_in [T, dim]
    if (tracing_) trace_.add(false, layer, "attention", began, Trace::now());
  }
  here = !split.attention;
  if (here && (split.ffn() || gpu_->streams(layer))) gpu_->give(Mail::kFfnInput, layer, ffn_in_.data(), floats);
  gpu_->go_on(layer);
  const int worked = cold_ffn(layer) * c_.dim;  // ffn_out [rows, dim]
  if (gpu_->merges(layer)) {
    if (here && worked) k_.add(ffn_out_.data(), x_.data(), worked);
    if (here || worked) gpu_->give(Mail::kHostPart, layer, here ? x_.data() : ffn_out_.data(), here ? floats : worked);
    count_asked(layer);
    return false;
  }
  count_asked(layer);
  if (!here || split.neurons > 0 || gpu_->streams(layer)) {
    const float* part = gpu_->take(Mail::kGpuStream, layer);
    here ? k_.add(part, x_.data(), n) : void(std::copy_n(part, floats, x_.data()));
  }
  if (worked) k_.add(ffn_out_.data(), x_.data(), worked);
  for (int t = 0; w_.layers[layer].down_bias && t < rows_.n; ++t)
    k_.add(w_.layers[layer].down_bias, &x_[size_t(t) * c_.dim], c_.dim);
  return true;
}

// Where the GPU has its part to do, and the host nothing else.
void Engine::count_asked(int layer) {
  for (int t = 0; replacement_ && replacement_->covers(layer) && t < rows_.n_decode; ++t) {
    if (rows_.modes[t] == FfnMode::kPredictor) replacement_->count(layer, gpu_->asked(layer, t));
  }
}

// What the host's neurons give, of how many rows: those of prompts may be the GPU's; 0 where nobody asks for any.
int Engine::cold_ffn(int layer) {
  const LayerSplit& split = gpu_->split(layer);
  const int rows = gpu_->streams(layer) ? rows_.n_decode : rows_.n;
  LayerStats& stats = stats_.layers[layer];
  const bool asked = split.predictor && rows_.n_decode > 0;
  const auto idle = [&] {
    stats.rows += rows_.n_decode, stats.weighted_recall += rows_.n_decode;
    return 0;
  };
  if (split.neurons == c_.n_neurons || rows == 0) return idle();
  if (split.attention || asked) {
    const float* in = gpu_->take(Mail::kFfnAsked, layer);
    if (asked && rows_.n == rows_.n_decode && !gpu_->any_cold(layer)) return idle();
    if (split.attention) std::copy_n(in, size_t(rows) * c_.dim, ffn_in_.data());
  }
  const double began = Trace::now();
  const uint64_t predicted = stats.predicted, active = stats.active;
  StepOutput none;
  ffn(layer, cold_[layer], none, asked, rows == rows_.n);
  stats_.gpu.cpu_neurons += stats.predicted - predicted, stats_.gpu.cpu_fired += stats.active - active;
  const double ended = Trace::now();
  stats_.parts.ffn += ended - began;
  if (tracing_) trace_.add(false, layer, "neurons", began, ended);
  return rows;
}

}  // namespace pi
