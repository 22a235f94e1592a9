// Sixteen f32 lanes on AVX-512 F+BW+VL+DQ.
#pragma once

#include <immintrin.h>

#include "base/types.h"

namespace pi::kernels::avx512 {

constexpr const char* kName = "avx512";
constexpr int kLanes = 16;
using V = __m512;

inline V zero() { return _mm512_setzero_ps(); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V a) { _mm512_storeu_ps(p, a); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a where a >= b, else 0.
inline V keep_ge(V a, V b) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_GE_OQ), a); }
// 2^n for integral n.
inline V pow2(V n) {
  const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
  return _mm512_castsi512_ps(_mm512_slli_epi32(e, 23));
}
inline float sum(V a) { return _mm512_reduce_add_ps(a); }

inline V load_f16(const uint16_t* p) { return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
inline V load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store_f16(uint16_t* p, V a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
inline float f16(uint16_t h) { return _cvtsh_ss(h); }

inline V from_i8(__m128i bytes) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)); }
// The 32 quants of a block, without its scale.
inline void unpack(const BlockQ8_0& block, V out[2]) {
  for (int i = 0; i < 2; ++i) out[i] = from_i8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.q + 16 * i)));
}
inline void unpack(const BlockQ4_0& block, V out[2]) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.q));
  const __m128i mask = _mm_set1_epi8(15), eight = _mm_set1_epi8(8);
  out[0] = from_i8(_mm_sub_epi8(_mm_and_si128(bytes, mask), eight));
  out[1] = from_i8(_mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), mask), eight));
}

}  // namespace pi::kernels::avx512
