// Signs of activations and weights; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

void sign_bits(const float* x, int cols, uint8_t* out) {
  for (int j = 0; j < cols; j += kBitBlock, ++out) {
    unsigned bits = 0;
    for (int k = 0; k < kBitBlock; ++k) bits |= __builtin_bit_cast(uint32_t, x[j + k]) >> 31 << k;
    *out = static_cast<uint8_t>(bits);
  }
}

// The next `n` <= 8 bytes, then zeros.
inline uint64_t load_bits(const uint8_t* p, int n) {
  uint64_t bits = 0;
  __builtin_memcpy(&bits, p, n);
  return bits;
}

// Four counts side by side hide the latency of one.
inline int count_row(const uint8_t* w, const uint8_t* signs, int bytes) {
  int counts[4] = {};
  int i = 0;
  for (; i + 32 <= bytes; i += 32) {
    for (int k = 0; k < 4; ++k)
      counts[k] += __builtin_popcountll(load_bits(w + i + 8 * k, 8) ^ load_bits(signs + i + 8 * k, 8));
  }
  for (; i + 8 <= bytes; i += 8) counts[0] += __builtin_popcountll(load_bits(w + i, 8) ^ load_bits(signs + i, 8));
  if (i < bytes) counts[1] += __builtin_popcountll(load_bits(w + i, bytes - i) ^ load_bits(signs + i, bytes - i));
  return counts[0] + counts[1] + counts[2] + counts[3];
}

void count_signs(const CountSigns& a) {
  const int bytes = static_cast<int>(a.w.row_bytes);
  for (int i = a.begin; i < a.end; ++i) a.y[i] = count_row(a.w.data + size_t(i) * a.w.row_bytes, a.signs, bytes);
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
