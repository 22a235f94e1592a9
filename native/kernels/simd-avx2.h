// Eight f32 lanes on AVX2 + FMA + F16C. Every simd-<isa>.h defines the same vocabulary in its own namespace.
#pragma once

#include <immintrin.h>

#include "base/types.h"

namespace pi::kernels::avx2 {

constexpr const char* kName = "avx2";
constexpr int kLanes = 8;
using V = __m256;

inline V zero() { return _mm256_setzero_ps(); }
inline V set1(float x) { return _mm256_set1_ps(x); }
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V a) { _mm256_storeu_ps(p, a); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V min(V a, V b) { return _mm256_min_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a where a >= b, else 0.
inline V keep_ge(V a, V b) { return _mm256_and_ps(a, _mm256_cmp_ps(a, b, _CMP_GE_OQ)); }
// 2^n for integral n.
inline V pow2(V n) {
  const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
inline V abs(V a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a); }
inline float sum(V a) {
  const __m128 h = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 q = _mm_add_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}

inline float highest(V a) {
  const __m128 h = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  const __m128 q = _mm_max_ps(h, _mm_movehl_ps(h, h));
  return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

inline V load_f16(const uint16_t* p) { return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
inline V load_bf16(const uint16_t* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline void store_f16(uint16_t* p, V a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
inline float f16(uint16_t h) { return _cvtsh_ss(h); }

// Rounds to the nearest integers, which fit.
inline void store_i8(int8_t* p, V a) {
  const __m256i wide = _mm256_cvtps_epi32(a);
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(wide), _mm256_extracti128_si256(wide, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}

// ------------------------------------------------------------------------------------------------------ blocks as f32

inline __m128i load_half(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline V from_i8(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)); }
inline V from_i8(const int8_t* p) { return from_i8(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))); }
// The 32 quants of a block, without its scale.
inline void unpack(const BlockQ8_0& block, V out[4]) {
  for (int i = 0; i < 4; ++i) out[i] = from_i8(block.q + 8 * i);
}
inline void unpack(const BlockQ4_0& block, V out[4]) {
  const __m128i bytes = load_half(block.q);
  const __m128i mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  const __m128i low = _mm_sub_epi8(_mm_and_si128(bytes, mask), eight);
  const __m128i high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), eight);
  out[0] = from_i8(low);
  out[1] = from_i8(_mm_srli_si128(low, 8));
  out[2] = from_i8(high);
  out[3] = from_i8(_mm_srli_si128(high, 8));
}

// ----------------------------------------------------------------------------------------------- 8-bit dot products

using I = __m256i;

inline I load_bytes(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

// Two blocks of a row: 16 quants of each in `low` (columns 0-15) and `high` (16-31), its scale in four lanes. Nibbles
// stay unsigned, 8 too high; bytes are signed.
template <typename Block>
struct Quants {
  I low, high;
  V scale;
};

template <typename Block>
inline V scales(const Block* w) {
  return _mm256_set_m128(_mm_set1_ps(f16(w[1].d)), _mm_set1_ps(f16(w[0].d)));
}

// Reads the quants of a type.
template <typename Block>
struct Reader {
  // Only the first of the two blocks is there; the other is zeros.
  Quants<Block> operator()(const Block* w, int) const {
    const Block padded[2] = {*w, {}};
    return (*this)(padded);
  }
  Quants<BlockQ4_0> operator()(const BlockQ4_0* w) const {
    const I bytes = _mm256_set_m128i(load_half(w[1].q), load_half(w[0].q)), nibble = _mm256_set1_epi8(15);
    return {_mm256_and_si256(bytes, nibble), _mm256_and_si256(_mm256_srli_epi16(bytes, 4), nibble), scales(w)};
  }
  Quants<BlockQ8_0> operator()(const BlockQ8_0* w) const {
    return {_mm256_set_m128i(load_half(w[1].q), load_half(w[0].q)),
            _mm256_set_m128i(load_half(w[1].q + 16), load_half(w[0].q + 16)), scales(w)};
  }
};

// What a row of activations holds for two blocks; `offset` is -8 times the sum of a lane's bytes.
struct Acts {
  I low, high, offset;
  V scale;
};

inline Acts load_acts(const uint8_t* p) {
  return {load_bytes(p), load_bytes(p + 32), load_bytes(p + 64), load(reinterpret_cast<const float*>(p + 96))};
}

inline I add_pairs(I words) { return _mm256_madd_epi16(words, _mm256_set1_epi16(1)); }

inline void store_offsets(const int8_t* low, const int8_t* high, int32_t* out) {
  const I ones = _mm256_set1_epi8(1);
  const I sums = add_pairs(
      _mm256_add_epi16(_mm256_maddubs_epi16(ones, load_bytes(low)), _mm256_maddubs_epi16(ones, load_bytes(high))));
  _mm256_storeu_si256(reinterpret_cast<I*>(out), _mm256_sub_epi32(_mm256_setzero_si256(), _mm256_slli_epi32(sums, 3)));
}

// No sum of 16 bits overflows: four products of nibbles are at most 4 * 15 * 127.
inline V add_dot(const Quants<BlockQ4_0>& w, const Acts& x, V acc) {
  const I words = _mm256_add_epi16(_mm256_maddubs_epi16(w.low, x.low), _mm256_maddubs_epi16(w.high, x.high));
  return fma(_mm256_cvtepi32_ps(_mm256_add_epi32(add_pairs(words), x.offset)), mul(w.scale, x.scale), acc);
}
// Here two are: 2 * 128 * 127.
inline V add_dot(const Quants<BlockQ8_0>& w, const Acts& x, V acc) {
  const I low = _mm256_maddubs_epi16(_mm256_abs_epi8(w.low), _mm256_sign_epi8(x.low, w.low));
  const I high = _mm256_maddubs_epi16(_mm256_abs_epi8(w.high), _mm256_sign_epi8(x.high, w.high));
  return fma(_mm256_cvtepi32_ps(_mm256_add_epi32(add_pairs(low), add_pairs(high))), mul(w.scale, x.scale), acc);
}

// ------------------------------------------------------------------------------------------------------------ prefill

constexpr int kGemmRows = 4, kIntGemmRows = 2;

// Integers of activations (a lane a token) and of weights (broadcast), and how many of them a lane multiplies at once.
using GemmX = int16_t;
using GemmW = int16_t;
constexpr int kGemmStep = 2, kGemmOffset = 0;

inline void unpack_bytes(const BlockQ4_0& block, int8_t* q) {
  const __m128i bytes = load_half(block.q), nibble = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm_sub_epi8(_mm_and_si128(bytes, nibble), eight));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16),
                   _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), nibble), eight));
}
inline I set1_int(int32_t x) { return _mm256_set1_epi32(x); }
inline V to_float(I a) { return _mm256_cvtepi32_ps(a); }
inline I load_step(const GemmX* x) { return load_bytes(x); }
inline I load_step1(const GemmW* w) {
  int32_t two;
  __builtin_memcpy(&two, w, sizeof two);
  return _mm256_set1_epi32(two);
}
inline I add_step(I x, I w, I acc) { return _mm256_add_epi32(acc, _mm256_madd_epi16(x, w)); }

}  // namespace pi::kernels::avx2
