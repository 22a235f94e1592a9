// Sixteen f32 lanes on AVX-512 F+BW+VL+DQ+VNNI.
#pragma once

#include <immintrin.h>

#include "base/types.h"

namespace pi::kernels::avx512 {

constexpr const char* kName = "avx512";
constexpr int kLanes = 16;
using V = __m512;

// Keeps a value in its register: reading it again from memory costs one of the two loads of a cycle.
template <typename T>
inline T pin(T x) {
  asm("" : "+v"(x));
  return x;
}

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
inline V abs(V a) { return _mm512_abs_ps(a); }
inline float sum(V a) { return _mm512_reduce_add_ps(a); }
inline float highest(V a) { return _mm512_reduce_max_ps(a); }

inline V load_f16(const uint16_t* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline V load_bf16(const uint16_t* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline void store_f16(uint16_t* p, V a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}
inline float f16(uint16_t h) { return _cvtsh_ss(h); }

// Rounds to the nearest integers, which fit.
inline void store_i8(int8_t* p, V a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}

// ------------------------------------------------------------------------------------------------------ blocks as f32

inline V from_i8(const int8_t* p) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
// The 32 quants of a block, without its scale.
inline void unpack(const BlockQ8_0& block, V out[2]) {
  for (int i = 0; i < 2; ++i) out[i] = from_i8(block.q + 16 * i);
}
// A table of the 16 values of a nibble; the permutation reads only the low four bits of its indices.
inline V nibble_values() { return pin(_mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7)); }
inline void unpack(const BlockQ4_0& block, V values, V out[2]) {
  const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.q)));
  out[0] = _mm512_permutexvar_ps(bytes, values);
  out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), values);
}
inline void unpack(const BlockQ4_0& block, V out[2]) { unpack(block, nibble_values(), out); }

// ----------------------------------------------------------------------------------------------- 8-bit dot products

using I = __m512i;

inline I load_bytes(const void* p) { return _mm512_loadu_si512(p); }

// The first n bytes, and zeros.
inline I load_some_bytes(const uint8_t* p, int n) {
  return _mm512_maskz_loadu_epi8(n >= 64 ? ~0ull : n <= 0 ? 0 : (1ull << n) - 1, p);
}

// Four blocks of a row: 16 quants of each in `low` (columns 0-15) and `high` (16-31), its scale in four lanes.
// The products are of unsigned with signed bytes, so that the weights are offset, by 8 or by 128.
template <typename Block>
struct Quants {
  I low, high;
  V scale;
};

// Indices into the 32 words of a vector, or the 64 of two.
struct Words {
  alignas(64) short at[32];
};
template <typename F>
constexpr Words words(F&& f) {
  Words out{};
  for (int i = 0; i < 32; ++i) out.at[i] = static_cast<short>(f(i));
  return out;
}

// Reads the quants of a type, with the constants that takes; made once before a loop.
template <typename Block>
struct Reader;

// Nine words a block, the first its scale; the vectors begin at the words 0 and 4.
template <>
struct Reader<BlockQ4_0> {
  constexpr static Words kQuants = words([](int i) { return 9 * (i / 8) + 1 + i % 8 + (i < 28 ? 0 : 28); });
  constexpr static Words kScale = words([](int i) { return i / 4 % 4 * 9; });
  I quants = pin(load_bytes(kQuants.at)), scale = pin(load_bytes(kScale.at)), nibble = pin(_mm512_set1_epi8(15));

  Quants<BlockQ4_0> operator()(const BlockQ4_0* w) const {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(w);
    return read(pin(load_bytes(at)), load_bytes(at + 8));
  }
  // Only n < 4 blocks are there; the others are zeros.
  Quants<BlockQ4_0> operator()(const BlockQ4_0* w, int n) const {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(w);
    const int bytes = n * static_cast<int>(sizeof *w);
    return read(pin(load_some_bytes(at, bytes)), load_some_bytes(at + 8, bytes - 8));
  }

 private:
  Quants<BlockQ4_0> read(I a, I b) const {
    const I q = _mm512_permutex2var_epi16(a, quants, b);
    return {_mm512_and_si512(q, nibble), _mm512_and_si512(_mm512_srli_epi16(q, 4), nibble),
            _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutexvar_epi16(scale, a)))};
  }
};

// 17 words a block, the first its scale; the vectors begin at the words 0 and 32, and at 8 and 36.
template <>
struct Reader<BlockQ8_0> {
  constexpr static Words kLow = words([](int i) { return 17 * (i / 8) + 1 + i % 8; });
  constexpr static Words kHigh = words([](int i) { return 17 * (i / 8) + 1 + i % 8 + (i < 16 ? 0 : 4); });
  constexpr static Words kScale = words([](int i) { return i / 4 % 4 * 17; });
  I low = pin(load_bytes(kLow.at)), high = pin(load_bytes(kHigh.at)), scale = pin(load_bytes(kScale.at));
  I sign = pin(_mm512_set1_epi8(-128));

  Quants<BlockQ8_0> operator()(const BlockQ8_0* w) const {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(w);
    return read(pin(load_bytes(at)), pin(load_bytes(at + 64)), load_bytes(at + 16), load_bytes(at + 72));
  }
  // Only n < 4 blocks are there; the others are zeros.
  Quants<BlockQ8_0> operator()(const BlockQ8_0* w, int n) const {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(w);
    const auto load_at = [&](int offset) {
      return pin(load_some_bytes(at + offset, n * static_cast<int>(sizeof *w) - offset));
    };
    return read(load_at(0), load_at(64), load_at(16), load_at(72));
  }

 private:
  Quants<BlockQ8_0> read(I a, I b, I c, I d) const {
    return {_mm512_xor_si512(_mm512_permutex2var_epi16(a, low, b), sign),
            _mm512_xor_si512(_mm512_permutex2var_epi16(c, high, d), sign),
            _mm512_cvtph_ps(_mm512_castsi512_si256(_mm512_permutex2var_epi16(a, scale, b)))};
  }
};

// Reads blocks as f32; made once before a loop.
template <typename Block>
struct FloatReader {
  constexpr static Words kScales = words([](int i) { return i % 4 * int(sizeof(Block) / 2); });
  I scale = pin(load_bytes(kScales.at));
  V values = nibble_values();

  // The 32 quants of a block, without its scale.
  void quants(const BlockQ4_0& block, V* q) const { unpack(block, values, q); }
  void quants(const BlockQ8_0& block, V* q) const { unpack(block, q); }

  // The scales of four blocks, times a.
  void scales(const Block* w, float a, float* out) const {
    _mm_storeu_ps(out, _mm_mul_ps(_mm_cvtph_ps(_mm512_castsi512_si128(scale_words(w))), _mm_set1_ps(a)));
  }

 private:
  I scale_words(const BlockQ4_0* w) const { return _mm512_permutexvar_epi16(scale, load_bytes(w)); }
  I scale_words(const BlockQ8_0* w) const {
    const uint8_t* at = reinterpret_cast<const uint8_t*>(w);
    return _mm512_permutex2var_epi16(load_bytes(at), scale, load_bytes(at + 64));
  }
};

// What a row of activations holds for four blocks; `offset` is -8 times the sum of a lane's bytes.
struct Acts {
  I low, high, offset;
  V scale;
};

inline Acts load_acts(const uint8_t* p) {
  return {pin(load_bytes(p)), pin(load_bytes(p + 64)), pin(load_bytes(p + 128)),
          pin(load(reinterpret_cast<const float*>(p + 192)))};
}

inline void store_offsets(const int8_t* low, const int8_t* high, int32_t* out) {
  const I ones = _mm512_set1_epi8(1);
  const I sums =
      _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), ones, load_bytes(low)), ones, load_bytes(high));
  _mm512_storeu_si512(out, _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(sums, 3)));
}

inline V add_dot(const Quants<BlockQ4_0>& w, const Acts& x, V acc) {
  const I s = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(x.offset, w.low, x.low), w.high, x.high);
  return fma(_mm512_cvtepi32_ps(s), mul(w.scale, x.scale), acc);
}
inline V add_dot(const Quants<BlockQ8_0>& w, const Acts& x, V acc) {
  const I offset = _mm512_slli_epi32(x.offset, 4);
  const I s = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(offset, w.low, x.low), w.high, x.high);
  return fma(_mm512_cvtepi32_ps(s), mul(w.scale, x.scale), acc);
}

// ------------------------------------------------------------------------------------------------------------ prefill

constexpr int kGemmRows = 8, kIntGemmRows = 4;

// Integers of activations (a lane a token) and of weights (broadcast), and how many of them a lane multiplies at once.
// Unsigned with signed bytes again: here the activations are offset.
using GemmX = uint8_t;
using GemmW = int8_t;
constexpr int kGemmStep = 4, kGemmOffset = 128;

inline void unpack_bytes(const BlockQ4_0& block, int8_t* q) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(block.q)), nibble = _mm_set1_epi8(15),
                eight = _mm_set1_epi8(8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm_sub_epi8(_mm_and_si128(bytes, nibble), eight));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16),
                   _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16(bytes, 4), nibble), eight));
}
inline I set1_int(int32_t x) { return _mm512_set1_epi32(x); }
inline V to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline I load_step(const GemmX* x) { return load_bytes(x); }
inline I load_step1(const GemmW* w) {
  int32_t four;
  __builtin_memcpy(&four, w, sizeof four);
  return _mm512_set1_epi32(four);
}
inline I add_step(I x, I w, I acc) { return _mm512_dpbusd_epi32(acc, x, w); }

}  // namespace pi::kernels::avx512
