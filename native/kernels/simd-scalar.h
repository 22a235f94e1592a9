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
inline V set1(float x) { return map([&](int) { return x; }); }
inline V load(const float* p) { return map([&](int i) { return p[i]; }); }
inline void store(float* p, V a) { std::memcpy(p, a.v, sizeof(a.v)); }
inline V add(V a, V b) { return map([&](int i) { return a.v[i] + b.v[i]; }); }
inline V sub(V a, V b) { return map([&](int i) { return a.v[i] - b.v[i]; }); }
inline V mul(V a, V b) { return map([&](int i) { return a.v[i] * b.v[i]; }); }
inline V div(V a, V b) { return map([&](int i) { return a.v[i] / b.v[i]; }); }
inline V max(V a, V b) { return map([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
inline V min(V a, V b) { return map([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
// Two roundings: without the instruction, a fused one costs a library call.
inline V fma(V a, V b, V c) { return map([&](int i) { return a.v[i] * b.v[i] + c.v[i]; }); }
inline V round(V a) { return map([&](int i) { return std::nearbyint(a.v[i]); }); }
// a where a >= b, else 0.
inline V keep_ge(V a, V b) { return map([&](int i) { return a.v[i] >= b.v[i] ? a.v[i] : 0.0f; }); }
// 2^n for integral n.
inline V pow2(V n) {
  return map([&](int i) { return std::bit_cast<float>((static_cast<int32_t>(n.v[i]) + 127) << 23); });
}
inline float sum(V a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

inline V load_f16(const uint16_t* p) { return map([&](int i) { return f16_to_f32(p[i]); }); }
inline V load_bf16(const uint16_t* p) { return map([&](int i) { return bf16_to_f32(p[i]); }); }
inline void store_f16(uint16_t* p, V a) {
  for (int i = 0; i < kLanes; ++i) p[i] = f32_to_f16(a.v[i]);
}
inline float f16(uint16_t h) { return f16_to_f32(h); }

// The 32 quants of a block, without its scale.
inline void unpack(const BlockQ8_0& block, V out[8]) {
  for (int k = 0; k < 8; ++k) out[k] = map([&](int i) { return static_cast<float>(block.q[4 * k + i]); });
}
inline void unpack(const BlockQ4_0& block, V out[8]) {
  for (int k = 0; k < 4; ++k) {
    out[k] = map([&](int i) { return static_cast<float>((block.q[4 * k + i] & 15) - 8); });
    out[k + 4] = map([&](int i) { return static_cast<float>((block.q[4 * k + i] >> 4) - 8); });
  }
}

}  // namespace pi::kernels::scalar
