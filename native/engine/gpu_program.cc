// The forward pass as the GPU computes it: what of engine.cc's step the split gives it, launch by launch. Rows of
// decoding come first, rows of prompts after them, and their products differ as on the CPU.
#include <cmath>

#include "engine/ffn.h"
#include "engine/gpu_half.h"

namespace pi {

using cuda::Queue;

void GpuHalf::issue_state(size_t state_bytes) {
  device_->upload(Queue::kCompute, s_.state, state_memory_.data(), state_bytes);
  count_transfer(state_bytes);
  normed_ = false;
}

// A layer, and after the last one the head.
void GpuHalf::issue_layer(int layer) {
  const bool here = layer > 0 && merges(layer - 1);  // the stream x [n, dim] is on the GPU
  if (split(layer).attention) {
    if (!here) {
      mark(layer, "receive");
      k_.receive(device_->stream(),
                 {meet(Mail::kStream, layer), mail_.box(Mail::kStream), {s_.x, nullptr, nullptr, c_.dim}, step_.n});
      count_transfer(sizeof(float) * step_.n * c_.dim);
    }
    mark(layer, "attention");
    attention(layer, normed_);
  }
  normed_ = ffn(layer);
  if (layer + 1 < c_.n_layers) return;
  if (options_.head) {
    mark(-1, "head");
    head();
  }
  mark(-1, "end");
}

cuda::Norm GpuHalf::norm_of(const DeviceNorm& w, const cuda::DeviceRows& out) const {
  return {s_.x, w.weight, w.bias, c_.norm_eps, out, step_.n, nullptr, {}, s_.arrivals};
}

// What attention reads.
cuda::Norm GpuHalf::attention_norm(int layer) {
  cuda::Norm a = norm_of(m_.layers[layer].attn_norm, s_.h);
  if (c_.shared_norm) publish(layer, a);
  return a;
}

// What the FFN reads.
cuda::Norm GpuHalf::ffn_norm(int layer) {
  cuda::Norm a = norm_of(m_.layers[layer].ffn_norm, s_.ffn_in);
  publish(layer, a);
  return a;
}

// The host gets the FFN's input for neurons of its own, and a signal with it or, where masks follow, with them.
void GpuHalf::publish(int layer, cuda::Norm& norm) {
  if (!cold(layer) || streams(layer)) return;
  norm.host = mail_.box(Mail::kFfnAsked);
  if (!masks(layer)) norm.signal = meet(Mail::kFfnAsked, layer);
  count_transfer(sizeof(float) * step_.n * c_.dim);
}

// y = x · Wᵀ + b of rows of decoding and of prompts, and then the norm.
void GpuHalf::project(const cuda::Project::Output (&outputs)[3], const cuda::DeviceRows& x, bool add,
                      const cuda::Norm& norm) {
  const int decode = step_.n_decode, prompt = step_.n - decode;
  if (decode > 0)
    k_.project(device_->stream(),
               {{outputs[0], outputs[1], outputs[2]}, x, decode, add, false, prompt > 0 ? cuda::Norm{} : norm});
  if (prompt == 0) return;
  for (const cuda::Project::Output& o : outputs) {
    if (!o.w) continue;
    k_.gemm(device_->stream(), {o.w, false, x.x + size_t(decode) * x.cols, o.bias, o.y + size_t(decode) * o.w.rows, add,
                                prompt, s_.gemm_work});
  }
  if (norm.x) k_.norm(device_->stream(), norm);
}

// x += attention(norm(x)), and what the FFN reads.
void GpuHalf::attention(int layer, bool normed) {
  const DeviceLayer& w = m_.layers[layer];
  if (!normed) k_.norm(device_->stream(), attention_norm(layer));
  // Beside attention: of the same x.
  if (c_.parallel_residual && !c_.shared_norm) k_.norm(device_->stream(), ffn_norm(layer));
  project({{w.q, w.q_bias, s_.q}, {w.k, w.k_bias, s_.key}, {w.v, w.v_bias, s_.value}}, s_.h, false, {});
  attend(w.kv);
  const bool then_norm = !c_.parallel_residual && !c_.shared_norm;
  project({{w.o, w.o_bias, s_.x}, {}, {}}, s_.attended, true, then_norm ? ffn_norm(layer) : cuda::Norm{});
}

// attended [n, n_heads * head_dim] from q, and key and value to the cache.
void GpuHalf::attend(const cuda::DeviceKv& kv) {
  const int n = step_.n, decode = step_.n_decode;
  const float scale = 1.0f / std::sqrt(static_cast<float>(c_.head_dim));
  const cuda::RowPlaces places{state_.positions, state_.sequences, state_.tables, state_.stride};
  cuda::NewKv now{s_.key, s_.value, m_.cosine, m_.sine};
  if (n > decode || !apart_) {
    k_.store_kv(device_->stream(), {s_.q, now, places, kv, c_.n_heads, n});
    now = {};
  }
  if (decode > 0) {
    k_.attend(device_->stream(), {s_.q, now, places, kv, scale, c_.n_heads, s_.attended, decode,
                                  attention_splits(c_.n_kv_heads), false, s_.attention_work, s_.arrivals});
  }
  if (n == decode) return;
  const size_t behind = size_t(decode) * c_.n_heads * c_.head_dim;
  const cuda::RowPlaces prompts{places.positions + decode, places.sequences + decode, places.tables, places.stride};
  cuda::DeviceRows out = s_.attended;
  out.x += behind, out.quants = nullptr, out.scales = nullptr;
  k_.attend(device_->stream(),
            {s_.q + behind, {}, prompts, kv, scale, c_.n_heads, out, n - decode, 1, true, nullptr, nullptr});
}

// The GPU's neurons, and what the host needs for its own; then the halves become one. Returns whether the next layer's
// norm is there.
bool GpuHalf::ffn(int layer) {
  const LayerSplit& at = split(layer);
  if ((at.ffn() || streams(layer)) && !at.attention) {
    mark(layer, "receive");
    k_.receive(device_->stream(), {meet(Mail::kFfnInput, layer), mail_.box(Mail::kFfnInput), ffn_rows(), step_.n});
    count_transfer(sizeof(float) * step_.n * c_.dim);
  }
  if (streams(layer) && at.attention) publish_decoding(layer);
  if (masks(layer)) score(layer);
  if (at.neurons == 0 && !at.attention && !merges(layer) && !streams(layer)) return false;
  if (at.neurons > 0) mark(layer, "neurons");
  if (at.neurons > 0 && step_.n > step_.n_decode) prompt_ffn(layer);
  if (streams(layer)) stream_neurons(layer);
  return merge(layer);
}

// Which neurons the rows of decoding ask for, of all of the layer's, and which of them are the GPU's.
void GpuHalf::score(int layer) {
  const DeviceLayer& w = m_.layers[layer];
  mark(layer, "predictor");
  cuda::DeviceRows x = ffn_rows();
  if (w.fc1) {
    cuda::DeviceRows hidden = s_.hidden;
    hidden.cols = w.fc1.rows, hidden.quants = nullptr, hidden.scales = nullptr;
    k_.project(device_->stream(), {{{w.fc1, w.fc1_bias, hidden.x}, {}, {}}, x, step_.n_decode, false, !w.linear, {}});
    x = hidden;
  }
  cuda::Select select{split(layer).neurons, s_.list, s_.count, s_.cold, nullptr, {}};
  if (cold(layer)) {
    select.host_mask = mail_.mask(layer), select.signal = meet(Mail::kFfnAsked, layer);
    count_transfer(sizeof(uint32_t) * step_.n_decode * cuda::mask_words(c_.n_neurons));
  }
  const float threshold = thresholds_.empty() ? 0.0f : thresholds_[layer];
  k_.score(device_->stream(), {w.scorer, w.scorer_scale, w.scorer_bias, x, threshold, state_.modes, s_.mask,
                               step_.n_decode, select, s_.arrivals});
}

// The neurons that the rows of decoding ask for, merged at the end.
void GpuHalf::neurons(int layer, const cuda::Merge& merge) {
  const DeviceLayer& w = m_.layers[layer];
  const bool masked = masks(layer);
  cuda::Neurons a;
  a.gate = w.gate, a.up = w.up, a.gate_bias = w.gate_bias, a.up_bias = w.up_bias;
  a.f = unary(c_.activation), a.both = c_.activation == Activation::kDRelu, a.threshold = c_.fatrelu_threshold;
  if (masked) a.list = s_.list, a.count = s_.count, a.mask = s_.mask;
  a.n_neurons = c_.n_neurons;
  a.x = ffn_rows(), a.rows = step_.n_decode, a.act = s_.act, a.active = s_.active, a.counters = s_.counters + 2 * layer;
  k_.neurons(device_->stream(), a);
  k_.down(device_->stream(),
          {w.down, s_.active, s_.act, c_.n_neurons, step_.n_decode, kDownParts, s_.parts, merge, s_.arrivals + 1});
}

// Adds the halves up where the stream goes on: here, or on the host. Returns whether the next layer's norm is there,
// too.
bool GpuHalf::merge(int layer) {
  const LayerSplit& at = split(layer);
  const bool to_gpu = merges(layer), from_host = to_gpu && (cold(layer) || !at.attention);
  const int decode = step_.n_decode, prompt = step_.n - decode;
  const int moved = to_gpu && at.attention && streams(layer) ? decode : step_.n;
  if ((from_host || !to_gpu) && moved > 0) count_transfer(sizeof(float) * moved * c_.dim);
  bool normed = false;
  for (const bool prompts : {false, true}) {
    const int rows = prompts ? prompt : decode;
    if (rows == 0) continue;
    const size_t first = prompts ? size_t(decode) * c_.dim : 0;
    cuda::Merge a;
    a.rows = rows, a.dim = c_.dim, a.arrivals = s_.arrivals;
    if (at.attention) a.base = s_.x + first;
    if (prompts && (at.neurons > 0 || streams(layer))) a.parts = s_.prompt_part, a.n_parts = 1;
    if (!prompts && at.neurons > 0) a.parts = s_.parts, a.n_parts = kDownParts;
    // Of streamed neurons the host has nothing to add to the stream, but it may have that.
    if (from_host && !(prompts && streams(layer) && at.attention)) {
      a.wait = meet(Mail::kHostPart, layer);
      a.host = mail_.box(Mail::kHostPart) + first;
      // A step of decoding waits only where it asked for something.
      if (at.predictor && at.attention && prompt == 0) a.skip_wait = s_.cold;
    }
    if (to_gpu) {
      a.bias = m_.layers[layer].down_bias;
      a.y = s_.x + first;
      normed = prompt == 0 && layer + 1 < c_.n_layers && split(layer + 1).attention;
      if (normed) a.norm = attention_norm(layer + 1);
    } else {
      a.y = mail_.box(Mail::kGpuStream) + first;
      if (prompts || prompt == 0) a.signal = meet(Mail::kGpuStream, layer);
    }
    const bool together = at.neurons > 0 && !prompts && !trace_;  // a trace shows the wait apart
    if (at.neurons > 0 && !prompts) neurons(layer, together ? a : cuda::Merge{});
    if (together) continue;
    mark(layer, "merge");
    k_.merge(device_->stream(), a);
  }
  return normed;
}

// Logits of the output rows, or their tokens, to page-locked memory.
void GpuHalf::head() {
  const int n = static_cast<int>(step_.outputs.size());
  for (int begin = 0; begin < n; begin += kOutputRows) {
    const int count = std::min(kOutputRows, n - begin);
    for (int i = 0, run; i < count; i += run) {
      const int row = step_.outputs[begin + i];
      for (run = 1; i + run < count && step_.outputs[begin + i + run] == row + run;) ++run;
      cuda::DeviceRows out = s_.out;
      out.x += size_t(i) * c_.dim, out.quants += size_t(i) * c_.dim,
          out.scales += size_t(i) * ((c_.dim + kQuantBlock - 1) / kQuantBlock);
      cuda::Norm norm = norm_of(m_.norm, out);
      norm.x += size_t(row) * c_.dim, norm.rows = run;
      k_.norm(device_->stream(), norm);
    }
    k_.project(device_->stream(), {{{m_.head, m_.head_bias, s_.logits}, {}, {}}, s_.out, count, false, false, {}});
    if (!step_.draws.empty()) {
      k_.highest(device_->stream(), {s_.logits, count, c_.vocab, draws_.data() + begin, tokens_.data() + begin,
                                     highest_.data() + begin, log_sums_.data() + begin, s_.highest_work});
      count_transfer(3 * sizeof(float) * count);
    } else {
      const size_t bytes = sizeof(float) * count * c_.vocab;
      device_->download(Queue::kCompute, logits_.data() + size_t(begin) * c_.vocab, s_.logits, bytes);
      count_transfer(bytes);
    }
  }
}

void GpuHalf::count_transfer(size_t bytes) {
  ++traffic_.transfers;
  traffic_.bytes += bytes;
}

}  // namespace pi
