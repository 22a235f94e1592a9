#include "engine/prefill.h"

#include "engine/ffn.h"

namespace pi {
namespace {

constexpr int kPanel = kernels::kGemmPanel;

}  // namespace

// The input in the forms that its products need.
void Prefill::pack(const float* x, int rows, int cols, bool ints, bool floats, const Executor& on) {
  const size_t bytes = kernels::packed_bytes(cols, k_.tile_tokens);
  if (ints) grow(ints_, tiles(rows) * bytes);
  if (floats) grow(floats_, tiles(rows) * bytes);
  on.each(tiles(rows), [&](int tile) {
    const int first = tile * k_.tile_tokens, n = std::min(rows - first, k_.tile_tokens);
    const float* from = x + size_t(first) * cols;
    if (ints) k_.pack_tokens({from, size_t(cols), n, cols, true, ints_.data() + tile * bytes});
    if (floats) k_.pack_tokens({from, size_t(cols), n, cols, false, floats_.data() + tile * bytes});
  });
}

// Rows [begin, end) of w, a panel at most, times the packed input.
void Prefill::multiply(const MatrixView& w, int begin, int end, int rows, float* y, size_t y_stride) const {
  const uint8_t* x = w.blocks() ? ints_.data() : floats_.data();
  k_.gemm({w, false, w.rows, begin, end, x, kernels::packed_bytes(w.cols, k_.tile_tokens), rows, y, y_stride});
}

void Prefill::project(std::span<const Projection> projections, const float* x, int rows, const Executor& on) {
  bool ints = false, floats = false;
  int panels = 0, total = 0;
  for (const Projection& p : projections) {
    (p.w->blocks() ? ints : floats) = true;
    panels += (p.w->rows + kPanel - 1) / kPanel;
    total += p.w->rows;
  }
  pack(x, rows, projections[0].w->cols, ints, floats, on);
  const size_t stride = size_t(total) * k_.tile_tokens;
  grow(out_, tiles(rows) * stride);
  on.each(panels, [&](int panel) {
    size_t first = 0;  // row of the output at which the projection begins
    for (const Projection& p : projections) {
      const int n = (p.w->rows + kPanel - 1) / kPanel;
      if (panel >= 0 && panel < n) {
        const int begin = panel * kPanel, end = std::min(begin + kPanel, p.w->rows);
        multiply(*p.w, begin, end, rows, out_.data() + (first + begin) * k_.tile_tokens, stride);
      }
      panel -= n;
      first += p.w->rows;
    }
  });
  int first = 0;
  for (const Projection& p : projections) {
    unpack(out_, rows, first, total, p, on);
    first += p.w->rows;
  }
}

// Rows [first, first + to.w->rows) of `stride` packed ones become to.y, row-major, with the bias added.
void Prefill::unpack(const Buffer<float>& packed, int rows, int first, int stride, const Projection& to, const Executor& on) const {
  constexpr int kStrip = 64;  // rows of a tile that stay in L1 while they are turned
  const int tokens = k_.tile_tokens, n = to.w->rows;
  on.each(tiles(rows), [&](int tile) {
    const float* from = packed.data() + (size_t(tile) * stride + first) * tokens;
    const int count = std::min(tokens, rows - tile * tokens);
    for (int strip = 0; strip < n; strip += kStrip) {
      const int end = std::min(strip + kStrip, n);
      for (int t = 0; t < count; ++t) {
        float* y = to.y + size_t(tile * tokens + t) * n;
        for (int i = strip; i < end; ++i) y[i] = from[size_t(i) * tokens + t] + (to.bias ? to.bias[i] : 0.0f);
      }
    }
  });
}

// up = f(gate) * up of neurons [begin, end) and one tile, or f(up) without a gate; gate and up begin at neuron `begin`.
void Prefill::activate(const LayerWeights& w, int begin, int end, int tile, float* gate, float* up) const {
  const int tokens = k_.tile_tokens;
  const auto add_bias = [&](VectorView bias, float* y) {
    for (int i = begin; bias && i < end; ++i) {
      for (int t = 0; t < tokens; ++t) y[(i - begin) * tokens + t] += bias[i];
    }
  };
  if (c_.gated) add_bias(w.gate_bias, gate);
  add_bias(w.up_bias, up);
  activate_neurons(k_, c_, gate, up, (end - begin) * tokens);
}

void Prefill::ffn(const LayerWeights& w, const float* x, int rows, float* out, const Executor& on) {
  const bool ints = w.up.blocks() || w.gate.blocks(), floats = !w.up.blocks() || (c_.gated && !w.gate.blocks());
  pack(x, rows, c_.dim, ints, floats, on);
  const int n = c_.n_neurons, count = tiles(rows);
  const size_t tokens = k_.tile_tokens, scratch = size_t(count) * kPanel * tokens;
  grow(gate_, c_.gated ? on.threads() * scratch : 0);
  grow(up_, count * n * tokens);
  on.each_on_thread((n + kPanel - 1) / kPanel, [&](int panel, int thread) {
    const int begin = panel * kPanel, end = std::min(begin + kPanel, n);
    float* gate = gate_.data() + thread * scratch;
    float* up = up_.data() + begin * tokens;
    if (c_.gated) multiply(w.gate, begin, end, rows, gate, kPanel * tokens);
    multiply(w.up, begin, end, rows, up, n * tokens);
    for (int tile = 0; tile < count; ++tile) {
      activate(w, begin, end, tile, gate + tile * kPanel * tokens, up + tile * n * tokens);
    }
  });

  // down: the activations are packed already.
  grow(out_, count * c_.dim * tokens);
  on.each((c_.dim + kPanel - 1) / kPanel, [&](int panel) {
    const int begin = panel * kPanel, end = std::min(begin + kPanel, c_.dim);
    k_.gemm({w.down_t, true, n, begin, end, reinterpret_cast<const uint8_t*>(up_.data()), n * tokens * sizeof(float), rows,
             out_.data() + begin * tokens, c_.dim * tokens});
  });
  MatrixView shape = w.down_t;
  shape.rows = c_.dim;
  unpack(out_, rows, 0, c_.dim, {&shape, w.down_bias, out}, on);
}

size_t Prefill::allocated_bytes() const {
  return ints_.size() + floats_.size() + (gate_.size() + up_.size() + out_.size()) * sizeof(float);
}

}  // namespace pi
