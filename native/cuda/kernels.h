// What the GPU can compute, one function a kernel, each with its arguments as a struct of plain values. What kernels
// work in is as large as cuda/workspace.h says.
//
// Launches are recorded once and repeated, so nothing here may change from step to step: what does (tokens' positions,
// block tables, the step's number) is read from device memory. `T` is the number of rows of a step. Every output
// element is summed in one fixed order, so that results do not depend on timing, nor on the rows beside a row.
//
// Block types are multiplied as the CPU does: activations quantised to 8 bits, 32 at a time (scale = max|x| / 127,
// rounded to nearest even), dot products of a block in integers. All other types with f32 activations.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"
#include "cuda/layout.h"
#include "kernels/kernels.h"

namespace pi::cuda {

// A weight matrix in device memory, rows as in cuda/layout.h; rows == 0 where the model has none.
struct DeviceMatrix {
  const uint8_t* data = nullptr;
  DType type = DType::kF32;
  int rows = 0, cols = 0;
  size_t row_bytes = 0;
  explicit operator bool() const { return rows > 0; }
};

// Vectors [T, cols] with what block types are multiplied with: quants int8 [T, cols], scales f32 [T, cols / 32]. A
// kernel that writes them fills the last two wherever they are not null.
struct DeviceRows {
  float* x = nullptr;
  int8_t* quants = nullptr;
  float* scales = nullptr;
  int cols = 0;
};

// A meeting of GPU and host at a word of page-locked memory: whoever has something for the other stores the number of
// the step in it, after everything else, and the other waits until it holds at least that (as a signed difference: it
// may wrap). Where `abort` is not 0 nobody waits any more.
struct Meeting {
  uint32_t* flag = nullptr;         // null: no meeting
  const uint32_t* step = nullptr;   // device memory
  const uint32_t* abort = nullptr;  // page-locked
};

// ------------------------------------------------------------------------------------------------- what meets the host

// Waits, then out[t] = host[t] for T rows. `host` f32 [T, cols] is page-locked.
struct Receive {
  Meeting wait;
  const float* host = nullptr;
  DeviceRows out;
  int rows = 0;
};

// `words` 4-byte words of device memory to page-locked memory, then the signal. words == 0: the signal alone.
struct Publish {
  const void* device = nullptr;
  void* host = nullptr;
  int words = 0;
  Meeting signal;
};

// out[0] += the sum of the words: reading at its fastest, for measuring.
struct Sweep {
  const uint32_t* words = nullptr;  // on 16 bytes
  size_t n = 0;                     // a multiple of 4
  uint32_t* out = nullptr;          // device memory
};

// Memory of the device to another place in it: one row or number, 4-byte words.
struct Move {
  void* to = nullptr;
  const void* from = nullptr;
  uint64_t bytes = 0;
};

// All of them, in any order: none reads what another writes.
struct Scatter {
  const Move* moves = nullptr;  // [n], device memory
  int n = 0;                    // 1 at least
};

// The device's clock in nanoseconds to *out (page-locked or device memory).
struct Stamp {
  uint64_t* out = nullptr;
};

// ------------------------------------------------------------------------------------------------------------ streams

// A kernel with a `norm`, `merge` or `select` in its arguments does that, too, once its own results are complete: in
// the same launch where rows are few (cuda/tail.cuh), so that a token takes as few launches as it can. `arrivals` are
// words of device memory, 0 before and after every launch, arrival_words() of cuda/workspace.h at most.

// out[t] = x[t] / rms(x[t]) * weight, or (x - mean) / sqrt(var + eps) * weight + bias with a bias.
struct Norm {
  const float* x = nullptr;  // [T, out.cols]
  const float* weight = nullptr;
  const float* bias = nullptr;  // null: RMS norm
  float eps = 0;
  DeviceRows out;
  int rows = 0;
  float* host = nullptr;  // page-locked [T, out.cols], or null: out.x once more
  Meeting signal;
  uint32_t* arrivals = nullptr;
};

// Fills in.quants and in.scales from in.x.
struct Quantize {
  DeviceRows in;
  int rows = 0;
};

// y[t] = base[t] + bias + parts[0][t] + … in that order (null or 0: left out), and then, once `wait` was met, +
// host[t]. Where *skip_wait is 0 (`skip_wait` not null) there is nothing to wait for, and host is left out. y may be
// base; it may be page-locked, and is then signalled. `norm` is of y.
struct Merge {
  const float* base = nullptr;
  const float* bias = nullptr;   // [dim]
  const float* parts = nullptr;  // [n_parts, T, dim]
  int n_parts = 0;
  Meeting wait;
  const float* host = nullptr;  // page-locked [T, dim]
  const int32_t* skip_wait = nullptr;
  float* y = nullptr;
  Meeting signal;
  Norm norm;
  uint32_t* arrivals = nullptr;
  int rows = 0, dim = 0;
};

// --------------------------------------------------------------------------------------------------------- projections

// y[t][i] = W[i] · x[t] + bias[i], up to three matrices that read the same x, decoding: T small. With `add`, y is added
// to. `relu` is applied last. `norm` is of the y of the only output.
struct Project {
  struct Output {
    DeviceMatrix w;
    const float* bias = nullptr;
    float* y = nullptr;  // [T, w.rows]
  };
  Output outputs[3];
  DeviceRows x;
  int rows = 0;
  bool add = false, relu = false;
  Norm norm;
};

// The same as a matrix product, for prompts: T large. With `transposed`, y[t] = x[t] · W instead: y [T, w.cols], x [T,
// w.rows] (down projections). x in f32; sums within 1e-4 of the row's norms. `workspace` holds gemm_workspace() bytes,
// which of more rows are enough for fewer. A row's result depends on no other row.
struct Gemm {
  DeviceMatrix w;
  bool transposed = false;
  const float* x = nullptr;
  const float* bias = nullptr;
  float* y = nullptr;
  bool add = false;
  int rows = 0;
  void* workspace = nullptr;
};

// up[t][i] = f(gate[t][i]) * up[t][i], or f(up) where gate is null, n values. dRelu: f of both.
struct Activate {
  kernels::Unary f = kernels::Unary::kRelu;
  bool both = false;
  float threshold = 0;  // FATReLU's
  const float* gate = nullptr;
  float* up = nullptr;
  size_t n = 0;
};

// ----------------------------------------------------------------------------------------------------------- attention

// Keys and values of one layer on the GPU: blocks of kKvBlockTokens positions, [block][keys | values][kv
// head][position] [head_dim] of f32, f16 or int8; after an int8 side's [kv head][position][head_dim], its scales f32
// [kv head][position].
struct DeviceKv {
  uint8_t* data = nullptr;
  kernels::KvType type = kernels::KvType::kF16;
  int kv_heads = 0, head_dim = 0;
};
constexpr size_t device_kv_side_bytes(kernels::KvType type, int kv_heads, int head_dim) {
  return size_t(kv_heads) * kernels::kv_tile_bytes(type, head_dim);
}

// Where the rows of a step stand, in device memory. A row at position -1 is nobody's: it stores nothing, and its
// attention is 0.
struct RowPlaces {
  const int32_t* positions = nullptr;  // [T]
  const int32_t* sequences = nullptr;  // [T] row of `tables`
  const int32_t* tables = nullptr;     // [sequences, stride] KV block of each 32 positions
  int stride = 0;
};

// The rows' new keys and values, and the angles [max position, head_dim / 2] that they and the queries are rotated by,
// in half-split pairs as kernels::Table::rope; null: no rotation.
struct NewKv {
  const float* key = nullptr;    // [T, kv_heads, head_dim]
  const float* value = nullptr;  // [T, kv_heads, head_dim]
  const float *cosine = nullptr, *sine = nullptr;
};

// Rotates queries and keys and stores keys and values.
struct StoreKv {
  float* q = nullptr;  // [T, n_heads, head_dim], in place
  NewKv now;
  RowPlaces places;
  DeviceKv kv;
  int n_heads = 0, rows = 0;
};

// out[t] = attention of row t over positions [0, positions[t]]; query heads g of n_heads / kv_heads share a KV head.
// Decoding: positions are cut into `splits` whose number does not depend on the step; `workspace` holds
// attention_workspace() bytes. Rows that are all of different sequences may leave rotating and storing to it (`now`).
// Prompts (`prefill`): runs of neighbouring rows of a sequence share what they read.
struct Attend {
  const float* q = nullptr;
  NewKv now;  // key null: all is rotated and stored
  RowPlaces places;
  DeviceKv kv;
  float scale = 0;
  int n_heads = 0;
  DeviceRows out;  // cols = n_heads * head_dim
  int rows = 0, splits = 1;
  bool prefill = false;
  void* workspace = nullptr;
  uint32_t* arrivals = nullptr;
};

// ----------------------------------------------------------------------------------------------------------------- FFN

// 32 neurons a word, bit i % 32 of word i / 32; words of a row stand mask_words(n) apart.
PI_HOST_DEVICE constexpr int mask_words(int n_neurons) { return (n_neurons + 31) / 32; }

// What of the masks is the GPU's: those of the first `resident` neurons that any row wants, in ascending order, and how
// many bits of rows the others are (`cold`: what the host has to do).
struct Select {
  int resident = 0;
  int32_t* list = nullptr;   // [neurons]
  int32_t* count = nullptr;  // of list
  int32_t* cold = nullptr;
  // Page-locked, unless null: a copy of the masks, signalled.
  uint32_t* host_mask = nullptr;
  Meeting signal;
};

// mask[t]: neurons whose score reaches the threshold; all of them for rows whose mode is not kPredictor (2).
//   matrix kinds: score = w[i] · x[t] + bias[i], x being the hidden layer of an MLP or SVD, or the FFN's input.
//   signs: w of type bit; score = scale[i] * (cols - 2 * columns whose sign is not x[t]'s) + bias[i].
struct Score {
  DeviceMatrix w;
  const float* scale = nullptr;  // of signs
  const float* bias = nullptr;
  DeviceRows x;  // quants may be null: the kernel then quantises for itself
  float threshold = 0;
  const uint8_t* modes = nullptr;  // device [T]
  uint32_t* mask = nullptr;        // [T, mask_words(w.rows)]
  int rows = 0;
  Select select;
  uint32_t* arrivals = nullptr;
};

// Gate, activation and up of the listed neurons i: act[i][t], 0 where row t's mask has it not. A closed gate ends a
// neuron. Without a gate matrix: f(up). Gate and up are of one type.
//
// `active` [mask_words(n_neurons) + 1] is all 0 before, and gets a bit for every neuron with an act that is not 0;
// `down` reads it and leaves it all 0 again.
struct Neurons {
  DeviceMatrix gate, up;
  const float *gate_bias = nullptr, *up_bias = nullptr;  // by neuron
  kernels::Unary f = kernels::Unary::kRelu;
  bool both = false;  // dRelu
  float threshold = 0;
  const int32_t* list = nullptr;  // [n_neurons], the first *count of which mean something; null: all, in order
  const int32_t* count = nullptr;
  const uint32_t* mask = nullptr;  // or null: every row wants every neuron
  int n_neurons = 0;
  DeviceRows x;
  int rows = 0;
  float* act = nullptr;  // [n_neurons, T]; those of other neurons stay as they are
  uint32_t* active = nullptr;
  // Sums over launches, unless null: neuron-rows that were asked for, and those that fired.
  unsigned long long* counters = nullptr;  // [2]
};

// Σ_s parts[s][t] = sum over active neurons i of act[i][t] * down[i]. Which part has a neuron, and its place in the
// sum, follow from its number alone, so that sums do not depend on the neurons that are idle; neighbours are dealt to
// different parts. `active` is all 0 afterwards. n_parts >= n_neurons / 16384. `merge` is of these parts, unless its y
// is null.
struct Down {
  DeviceMatrix w;
  uint32_t* active = nullptr;
  const float* act = nullptr;
  int n_neurons = 0, rows = 0, n_parts = 0;
  float* parts = nullptr;  // [n_parts, T, w.cols]
  Merge merge;
  uint32_t* arrivals = nullptr;  // beside those of `merge`
};

// ---------------------------------------------------------------------------------------------------------------- head

// How a row's token is drawn: at a temperature, as the CPU's sampler (engine/sampler.h) does without penalties, top-k,
// top-p and min-p, with weights that may differ from its in their last bits. Temperature 0: the highest token.
struct Draw {
  float temperature;
  int32_t position;
  uint64_t seed;
};

// Per row of logits: the highest one's token (of equal ones the lowest), or the token drawn; its logit, and the natural
// logarithm of the sum of exponentials. Logits that are no numbers are never highest, and make log_sum one; where all
// are, the token is the last one.
struct Highest {
  const float* logits = nullptr;  // [T, vocab]
  int rows = 0, vocab = 0;
  const Draw* draws = nullptr;  // [T], page-locked or device memory; null: all temperatures are 0
  int32_t* token = nullptr;     // [T], page-locked or device memory
  float* logit = nullptr;
  float* log_sum = nullptr;
  void* workspace = nullptr;  // highest_workspace() bytes
};

// --------------------------------------------------------------------------------------------------------------- table

// Launchers. They check nothing: shapes were checked when the engine was made.
struct Kernels {
  void (*receive)(void* stream, const Receive&);
  void (*publish)(void* stream, const Publish&);
  void (*scatter)(void* stream, const Scatter&);
  void (*stamp)(void* stream, const Stamp&);
  void (*norm)(void* stream, const Norm&);
  void (*quantize)(void* stream, const Quantize&);
  void (*merge)(void* stream, const Merge&);
  void (*project)(void* stream, const Project&);
  void (*gemm)(void* stream, const Gemm&);
  void (*activate)(void* stream, const Activate&);
  void (*store_kv)(void* stream, const StoreKv&);
  void (*attend)(void* stream, const Attend&);
  void (*score)(void* stream, const Score&);
  void (*neurons)(void* stream, const Neurons&);
  void (*down)(void* stream, const Down&);
  void (*highest)(void* stream, const Highest&);
  void (*sweep)(void* stream, const Sweep&);
};

}  // namespace pi::cuda
