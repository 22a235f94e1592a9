// Four lanes in plain C++, for machines without any of the others and as the slow twin in checks.
#pragma once

#include <cmath>

#include "base/types.h"

namespace pi::kernels::scalar {

constexpr const char* kName = "scalar";
constexpr int kLanes = 4;
struct V {
  float v[kLanes];
};

template <typename F>
inline V map(F&& f) {
  V r;
  for (int i = 0; i < kLanes; ++i) r.v[i] = f(i);
  return r;
}

inline V zero() { return V{}; }
inline V set1(float x) {
  return map([&](int) { return x; });
}
inline V load(const float* p) {
  return map([&](int i) { return p[i]; });
}
inline void store(float* p, V a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline V add(V a, V b) {
  return map([&](int i) { return a.v[i] + b.v[i]; });
}
inline V sub(V a, V b) {
  return map([&](int i) { return a.v[i] - b.v[i]; });
}
inline V mul(V a, V b) {
  return map([&](int i) { return a.v[i] * b.v[i]; });
}
inline V div(V a, V b) {
  return map([&](int i) { return a.v[i] / b.v[i]; });
}
inline V max(V a, V b) {
  return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; });
}
inline V min(V a, V b) {
  return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; });
}
// Two roundings: without the instruction, a fused one costs a library call.
inline V fma(V a, V b, V c) {
  return map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; });
}
inline V round(V a) {
  return map([&](int i) { return std::nearbyint(a.v[i]); });
}
// a where a >= b, else 0.
inline V keep_ge(V a, V b) {
  return map([&](int i) { return a.v[i] >= b.v[i] ? a.v[i] : 0.0f; });
}
// 2^n for integral n.
inline V pow2(V n) {
  return map([&](int i) { return std::bit_cast<float>((static_cast<int32_t>(n.v[i]) + 127) << 23); });
}
inline V abs(V a) {
  return map([&](int i) { return std::fabs(a.v[i]); });
}
inline float highest(V a) { return std::fmax(std::fmax(a.v[0], a.v[1]), std::fmax(a.v[2], a.v[3])); }
inline float sum(V a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

inline V load_f16(const uint16_t* p) {
  return map([&](int i) { return f16_to_f32(p[i]); });
}
inline V load_bf16(const uint16_t* p) {
  return map([&](int i) { return bf16_to_f32(p[i]); });
}
inline void store_f16(uint16_t* p, V a) {
  for (int i = 0; i < kLanes; ++i) p[i] = f32_to_f16(a.v[i]);
}
inline float f16(uint16_t h) { return f16_to_f32(h); }

// Rounds to the nearest integers, which fit.
inline void store_i8(int8_t* p, V a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(std::nearbyint(a.v[i]));
}

// ------------------------------------------------------------------------------------------------------ blocks as f32

inline V from_i8(const int8_t* p) {
  return map([&](int i) { return static_cast<float>(p[i]); });
}
inline int8_t quant(const BlockQ8_0& block, int i) { return block.q[i]; }
inline int8_t quant(const BlockQ4_0& block, int i) {
  return static_cast<int8_t>((i < 16 ? block.q[i] & 15 : block.q[i - 16] >> 4) - 8);
}
// The 32 quants of a block, without its scale.
template <typename Block>
inline void unpack(const Block& block, V out[8]) {
  for (int k = 0; k < 8; ++k) out[k] = map([&](int i) { return static_cast<float>(quant(block, 4 * k + i)); });
}

// ----------------------------------------------------------------------------------------------- 8-bit dot products

// One block of a row, in place, and what a row of activations holds for it.
template <typename Block>
struct Quants {
  const Block* block;
};
struct Acts {
  const int8_t* q;
  V scale;
};

// Reads the quants of a type. A row has no part of a block.
template <typename Block>
struct Reader {
  Quants<Block> operator()(const Block* w, int) const { return {w}; }
  Quants<Block> operator()(const Block* w) const { return {w}; }
};
inline Acts load_acts(const uint8_t* p) {
  return {reinterpret_cast<const int8_t*>(p), load(reinterpret_cast<const float*>(p + 48))};
}
inline void store_offsets(const int8_t*, const int8_t*, int32_t* out) {
  for (int i = 0; i < kLanes; ++i) out[i] = 0;
}
template <typename Block>
inline V add_dot(const Quants<Block>& w, const Acts& x, V acc) {
  int32_t sums[kLanes] = {};
  for (int i = 0; i < kQuantBlock; ++i) sums[i % kLanes] += quant(*w.block, i) * x.q[i];
  const float d = f16(w.block->d);
  return fma(map([&](int i) { return static_cast<float>(sums[i]); }), mul(set1(d), x.scale), acc);
}

// ------------------------------------------------------------------------------------------------------------ prefill

constexpr int kGemmRows = 4, kIntGemmRows = 4;

// Integers of activations (a lane a token) and of weights (broadcast), and how many of them a lane multiplies at once.
using GemmX = int8_t;
using GemmW = int8_t;
constexpr int kGemmStep = 1, kGemmOffset = 0;

inline void unpack_bytes(const BlockQ4_0& block, int8_t* q) {
  for (int i = 0; i < kQuantBlock; ++i) q[i] = quant(block, i);
}
struct I {
  int32_t v[kLanes];
};
inline I set1_int(int32_t x) { return {{x, x, x, x}}; }
inline V to_float(I a) {
  return map([&](int i) { return static_cast<float>(a.v[i]); });
}
inline I load_step(const GemmX* x) { return {{x[0], x[1], x[2], x[3]}}; }
inline I load_step1(const GemmW* w) { return set1_int(*w); }
inline I add_step(I x, I w, I acc) {
  for (int i = 0; i < kLanes; ++i) acc.v[i] += x.v[i] * w.v[i];
  return acc;
}

}  // namespace pi::kernels::scalar
