// What of the forward pass is of prompts alone: products of many rows, with weights that are in the GPU's memory, and
// with the host's, streamed.
#include <algorithm>
#include <utility>
#include <vector>

#include "engine/ffn.h"
#include "engine/gpu_half.h"

namespace pi {

using cuda::Queue;

// The neurons that are here.
void GpuHalf::prompt_ffn(int layer) {
  const DeviceLayer& w = m_.layers[layer];
  prompt_neurons({w.gate, w.up, w.down, w.gate_bias, w.up_bias}, false);
}

// Some of a layer's neurons for all rows of prompts.
void GpuHalf::prompt_neurons(const StreamedNeurons& w, bool add) {
  const int decode = step_.n_decode, prompt = step_.n - decode;
  const float* x = ffn_rows().x + size_t(decode) * c_.dim;
  if (c_.gated) k_.gemm(device_->stream(), {w.gate, false, x, w.gate_bias, s_.gate, false, prompt, s_.gemm_work});
  k_.gemm(device_->stream(), {w.up, false, x, w.up_bias, s_.up, false, prompt, s_.gemm_work});
  k_.activate(device_->stream(), {unary(c_.activation), c_.activation == Activation::kDRelu, c_.fatrelu_threshold,
                                  c_.gated ? s_.gate : nullptr, s_.up, size_t(prompt) * w.up.rows});
  k_.gemm(device_->stream(), {w.down, true, s_.up, nullptr, s_.prompt_part, add, prompt, s_.gemm_work});
}

// Where prompts' neurons come here, the host has those of decoding alone.
void GpuHalf::publish_decoding(int layer) {
  const int decode = step_.n_decode;
  if (decode == 0) return;
  mark(layer, "publish");
  k_.publish(device_->stream(), {ffn_rows().x, mail_.box(Mail::kFfnAsked), decode * c_.dim,
                                 masks(layer) ? cuda::Meeting{} : meet(Mail::kFfnAsked, layer)});
  count_transfer(sizeof(float) * decode * c_.dim);
}

// The host's neurons, after those that are here.
void GpuHalf::stream_neurons(int layer) {
  const double began = Trace::now();
  mark(layer, "stream");
  bool add = split(layer).neurons > 0;
  stream_->neurons(layer, [&](const StreamedNeurons& piece) { prompt_neurons(piece, std::exchange(add, true)); });
  if (trace_) trace_->add(false, layer, "stream", began, Trace::now());
}

// Waits for kCompute as a whole: where a layer begins on the host, nothing in it waits for an answer any more.
void GpuHalf::project_streamed(int layer, std::span<const Projection> projections, const float* x, int rows) {
  const double began = Trace::now();
  mark(layer, "stream");
  const size_t in = size_t(rows) * projections[0].w->cols;
  std::copy_n(x, in, project_in_.data());
  device_->upload(Queue::kCompute, s_.stream_in, project_in_.data(), in * sizeof(float));
  count_transfer(in * sizeof(float));
  float* to = projected_.data();  // pieces [rows, count], one after another
  std::vector<int> counts;
  for (const Projection& p : projections) {
    stream_->rows(layer, *p.w, [&](const cuda::DeviceMatrix& w) {
      k_.gemm(device_->stream(), {w, false, s_.stream_in, nullptr, s_.up, false, rows, s_.gemm_work});
      const size_t floats = size_t(rows) * w.rows;
      device_->download(Queue::kCompute, to, s_.up, floats * sizeof(float));
      count_transfer(floats * sizeof(float));
      to += floats;
      counts.push_back(w.rows);
    });
  }
  mark(layer, "receive");
  device_->synchronize(Queue::kCompute);
  const float* from = projected_.data();
  const int* count = counts.data();
  for (const Projection& p : projections) {
    for (int first = 0; first < p.w->rows; from += size_t(rows) * *count, first += *count++) {
      step_.on.each(rows, [&](int t) {
        float* y = p.y + size_t(t) * p.w->rows + first;
        for (int i = 0; i < *count; ++i) y[i] = from[size_t(t) * *count + i] + (p.bias ? p.bias[first + i] : 0.0f);
      });
    }
  }
  if (trace_) trace_->add(false, layer, "stream", began, Trace::now());
}

}  // namespace pi
