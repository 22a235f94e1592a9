// Four f32 lanes on 64-bit Arm.
#pragma once

#include <arm_neon.h>

#include "base/types.h"

namespace pi::kernels::neon {

constexpr const char* kName = "neon";
constexpr int kLanes = 4;
using V = float32x4_t;

inline V zero() { return vdupq_n_f32(0); }
inline V set1(float x) { return vdupq_n_f32(x); }
inline V load(const float* p) { return vld1q_f32(p); }
inline void store(float* p, V a) { vst1q_f32(p, a); }
inline V add(V a, V b) { return vaddq_f32(a, b); }
inline V sub(V a, V b) { return vsubq_f32(a, b); }
inline V mul(V a, V b) { return vmulq_f32(a, b); }
inline V div(V a, V b) { return vdivq_f32(a, b); }
inline V max(V a, V b) { return vmaxq_f32(a, b); }
inline V min(V a, V b) { return vminq_f32(a, b); }
inline V fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
inline V round(V a) { return vrndnq_f32(a); }
// a where a >= b, else 0.
inline V keep_ge(V a, V b) { return vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vcgeq_f32(a, b))); }
// 2^n for integral n.
inline V pow2(V n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n), vdupq_n_s32(127)), 23)); }
inline V abs(V a) { return vabsq_f32(a); }
inline float sum(V a) { return vaddvq_f32(a); }
inline float highest(V a) { return vmaxvq_f32(a); }

inline V load_f16(const uint16_t* p) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p))); }
inline V load_bf16(const uint16_t* p) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)); }
inline void store_f16(uint16_t* p, V a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a))); }
inline float f16(uint16_t h) { return f16_to_f32(h); }

// Rounds to the nearest integers, which fit.
inline void store_i8(int8_t* p, V a) {
  const int16x4_t half = vqmovn_s32(vcvtnq_s32_f32(a));
  const int8x8_t bytes = vqmovn_s16(vcombine_s16(half, half));
  vst1_lane_s32(reinterpret_cast<int32_t*>(p), vreinterpret_s32_s8(bytes), 0);
}

// ------------------------------------------------------------------------------------------------------ blocks as f32

inline V from_i8(const int8_t* p) {
  int32_t four;
  __builtin_memcpy(&four, p, sizeof four);
  return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four))))));
}
inline void from_i8(int8x8_t bytes, V out[2]) {
  const int16x8_t wide = vmovl_s8(bytes);
  out[0] = vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide)));
  out[1] = vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide)));
}
// The 32 quants of a block, without its scale.
inline void unpack(const BlockQ8_0& block, V out[8]) {
  for (int i = 0; i < 4; ++i) from_i8(vld1_s8(block.q + 8 * i), out + 2 * i);
}
inline void unpack(const BlockQ4_0& block, V out[8]) {
  const uint8x16_t bytes = vld1q_u8(block.q);
  const int8x16_t eight = vdupq_n_s8(8);
  const int8x16_t low = vsubq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), eight);
  const int8x16_t high = vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), eight);
  from_i8(vget_low_s8(low), out);
  from_i8(vget_high_s8(low), out + 2);
  from_i8(vget_low_s8(high), out + 4);
  from_i8(vget_high_s8(high), out + 6);
}

// ----------------------------------------------------------------------------------------------- 8-bit dot products

using I = int32x4_t;

// One block of a row, signed: columns 0-15 and 16-31.
template <typename Block>
struct Quants {
  int8x16_t low, high;
  float scale;
};
// What a row of activations holds for it.
struct Acts {
  int8x16_t low, high;
  V scale;
};

// Reads the quants of a type. A row has no part of a block.
template <typename Block>
struct Reader {
  Quants<Block> operator()(const Block* w, int) const { return (*this)(w); }
  Quants<BlockQ8_0> operator()(const BlockQ8_0* w) const { return {vld1q_s8(w->q), vld1q_s8(w->q + 16), f16(w->d)}; }
  Quants<BlockQ4_0> operator()(const BlockQ4_0* w) const {
    const uint8x16_t bytes = vld1q_u8(w->q);
    const int8x16_t eight = vdupq_n_s8(8);
    return {vsubq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), eight),
            vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), eight), f16(w->d)};
  }
};

inline Acts load_acts(const uint8_t* p) {
  const int8_t* q = reinterpret_cast<const int8_t*>(p);
  return {vld1q_s8(q), vld1q_s8(q + 16), load(reinterpret_cast<const float*>(p + 48))};
}
inline void store_offsets(const int8_t*, const int8_t*, int32_t* out) { vst1q_s32(out, vdupq_n_s32(0)); }

inline I add_products(int8x16_t w, int8x16_t x, I acc) {
  acc = vpadalq_s16(acc, vmull_s8(vget_low_s8(w), vget_low_s8(x)));
  return vpadalq_s16(acc, vmull_s8(vget_high_s8(w), vget_high_s8(x)));
}
template <typename Block>
inline V add_dot(const Quants<Block>& w, const Acts& x, V acc) {
  const I s = add_products(w.high, x.high, add_products(w.low, x.low, vdupq_n_s32(0)));
  return fma(vcvtq_f32_s32(s), mul(set1(w.scale), x.scale), acc);
}

// ------------------------------------------------------------------------------------------------------------ prefill

constexpr int kGemmRows = 8, kIntGemmRows = 4;

// Integers of activations (a lane a token) and of weights (broadcast), and how many of them a lane multiplies at once.
using GemmX = int16_t;
using GemmW = int16_t;
constexpr int kGemmStep = 1, kGemmOffset = 0;

inline void unpack_bytes(const BlockQ4_0& block, int8_t* q) {
  const uint8x16_t bytes = vld1q_u8(block.q);
  const int8x16_t eight = vdupq_n_s8(8);
  vst1q_s8(q, vsubq_s8(vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), eight));
  vst1q_s8(q + 16, vsubq_s8(vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4)), eight));
}
inline I set1_int(int32_t x) { return vdupq_n_s32(x); }
inline V to_float(I a) { return vcvtq_f32_s32(a); }
inline I load_step(const GemmX* x) { return vmovl_s16(vld1_s16(x)); }
inline I load_step1(const GemmW* w) { return vdupq_n_s32(*w); }
inline I add_step(I x, I w, I acc) { return vmlaq_s32(acc, x, w); }

}  // namespace pi::kernels::neon
