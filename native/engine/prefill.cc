#include "engine/prefill.h"

#include "engine/ffn.h"

namespace pi {
namespace {

constexpr int kPanel = kernels::kGemmPanel;

constexpr int whole_blocks(int n) { return (n + kQuantBlock - 1) / kQuantBlock * kQuantBlock; }

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
  k_.gemm({w, false, w.rows, begin, end, x, kernels::packed_bytes(w.cols, k_.tile_tokens), rows, nullptr, y, y_stride});
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
void Prefill::unpack(const Buffer<float>& packed, int rows, int first, int stride, const Projection& to,
                     const Executor& on) const {
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

// Activations of neurons [begin, end), a panel at most, packed behind those of the neurons before them.
void Prefill::neurons(const LayerWeights& w, int rows, int begin, int end, float* gate, float* up,
                      uint8_t* active) const {
  const size_t tokens = k_.tile_tokens, panel = kPanel * tokens;
  if (c_.gated) multiply(w.gate, begin, end, rows, gate, panel);
  multiply(w.up, begin, end, rows, up, panel);
  for (int tile = 0; tile < tiles(rows); ++tile) {
    float* values = up + tile * panel;
    activate(w, begin, end, tile, gate + tile * panel, values);
    uint8_t* out = active + tile * kernels::packed_bytes(whole_blocks(w.up.rows), k_.tile_tokens);
    if (!w.down_t.blocks()) {
      std::copy_n(values, (end - begin) * tokens, reinterpret_cast<float*>(out) + begin * tokens);
      continue;
    }
    for (int i = begin; i < end; i += kQuantBlock) {
      k_.pack_rows(
          {values + (i - begin) * tokens, std::min(kQuantBlock, end - i), out + i / kQuantBlock * k_.tile_block_bytes});
    }
  }
}

// down is stored by neuron, but summed over neurons: its columns are quantised anew, once for all rows of the step.
void Prefill::pack_down(const MatrixView& w, const Executor& on) {
  const int panels = (w.cols + kPanel - 1) / kPanel * ((w.rows + kernels::kPanelRows - 1) / kernels::kPanelRows);
  grow(down_, panels * k_.panel_bytes);
  on.each((w.rows + kQuantBlock - 1) / kQuantBlock, [&](int block) {
    const int begin = block * kQuantBlock;
    k_.pack_columns({w, begin, std::min(begin + kQuantBlock, w.rows), w.rows, down_.data()});
  });
}

void Prefill::ffn(const LayerWeights& w, const float* x, int rows, float* out, const Executor& on) {
  const bool ints = w.up.blocks() || w.gate.blocks(), floats = !w.up.blocks() || (c_.gated && !w.gate.blocks());
  pack(x, rows, c_.dim, ints, floats, on);
  const int n = w.up.rows;
  const size_t tokens = k_.tile_tokens, scratch = tiles(rows) * kPanel * tokens;
  const size_t active_bytes = kernels::packed_bytes(whole_blocks(n), k_.tile_tokens);
  grow(scratch_, 2 * on.threads() * scratch);
  grow(active_, tiles(rows) * active_bytes);
  on.each_on_thread((n + kPanel - 1) / kPanel, [&](int panel, int thread) {
    float* gate = scratch_.data() + 2 * thread * scratch;
    neurons(w, rows, panel * kPanel, std::min((panel + 1) * kPanel, n), gate, gate + scratch, active_.data());
  });

  if (w.down_t.blocks()) pack_down(w.down_t, on);
  grow(out_, tiles(rows) * c_.dim * tokens);
  on.each((c_.dim + kPanel - 1) / kPanel, [&](int panel) {
    const int begin = panel * kPanel, end = std::min(begin + kPanel, c_.dim);
    k_.gemm({w.down_t, true, n, begin, end, active_.data(), active_bytes, rows, down_.data(),
             out_.data() + begin * tokens, c_.dim * tokens});
  });
  MatrixView shape = w.down_t;
  shape.rows = c_.dim;
  unpack(out_, rows, 0, c_.dim, {&shape, w.down_bias, out}, on);
}

size_t Prefill::allocated_bytes() const {
  return ints_.size() + floats_.size() + active_.size() + down_.size() +
         (scratch_.size() + out_.size()) * sizeof(float);
}

}  // namespace pi
