#include "quant/convert.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/thread_pool.h"

namespace pi::quant {
namespace {

// --- A row to and from f32. The loops are written for the compiler to vectorise. ---

template <typename T>
T load(const uint8_t* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

void decode_q8_0(const uint8_t* in, float* out, size_t n) {
  for (size_t i = 0; i < n; i += kQuantBlock, in += sizeof(BlockQ8_0)) {
    const auto block = load<BlockQ8_0>(in);
    const float d = f16_to_f32(block.d);
    for (int j = 0; j < kQuantBlock; ++j) out[i + j] = d * block.q[j];
  }
}

void decode_q4_0(const uint8_t* in, float* out, size_t n) {
  for (size_t i = 0; i < n; i += kQuantBlock, in += sizeof(BlockQ4_0)) {
    const auto block = load<BlockQ4_0>(in);
    const float d = f16_to_f32(block.d);
    for (int j = 0; j < kQuantBlock / 2; ++j) {
      out[i + j] = d * ((block.q[j] & 15) - 8);
      out[i + j + kQuantBlock / 2] = d * ((block.q[j] >> 4) - 8);
    }
  }
}

void decode(DType from, const uint8_t* in, float* out, size_t n) {
  switch (from) {
    case DType::kF32:
      std::memcpy(out, in, n * sizeof(float));
      break;
    case DType::kF16:
      for (size_t i = 0; i < n; ++i) out[i] = f16_to_f32(load<uint16_t>(in + 2 * i));
      break;
    case DType::kBF16:
      for (size_t i = 0; i < n; ++i) out[i] = bf16_to_f32(load<uint16_t>(in + 2 * i));
      break;
    case DType::kQ8_0:
      decode_q8_0(in, out, n);
      break;
    case DType::kQ4_0:
      decode_q4_0(in, out, n);
      break;
    case DType::kI32:
    case DType::kBit:
      break;
  }
}

// The bits of the largest |x|. Unsigned order is the order of magnitudes, with infinity and NaN above all others.
uint32_t largest_bits(const float* x, size_t n) {
  uint32_t largest = 0;
  for (size_t i = 0; i < n; ++i) largest = std::max(largest, std::bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
  return largest;
}

// 1 / d of the f32 d, as in GGUF; the block keeps d in f16. Where 1 / d overflows, the f16 d is 0 and q does not
// matter.
float inverse_of(float d) {
  const float inverse = d != 0 ? 1 / d : 0;
  return std::isinf(inverse) ? 0 : inverse;
}

// d = max|x| / 127, q = x / d rounded half away from zero.
void encode_q8_0(const float* in, uint8_t* out, size_t n) {
  for (size_t i = 0; i < n; i += kQuantBlock, out += sizeof(BlockQ8_0)) {
    const float* x = in + i;
    const float d = std::bit_cast<float>(largest_bits(x, kQuantBlock)) / 127;
    const float inverse = inverse_of(d);
    BlockQ8_0 block;
    block.d = f32_to_f16(d);
    for (int j = 0; j < kQuantBlock; ++j) block.q[j] = static_cast<int8_t>(std::round(x[j] * inverse));
    std::memcpy(out, &block, sizeof block);
  }
}

// The value of largest magnitude, with its sign; of several, the first. Positive floats are in the order of their bits
// as signed integers, negative ones (by magnitude, and above all positive ones) as unsigned.
float signed_largest(const float* x) {
  int32_t positive = 0;
  uint32_t negative = 0;
  for (int j = 0; j < kQuantBlock; ++j) {
    positive = std::max(positive, std::bit_cast<int32_t>(x[j]));
    negative = std::max(negative, std::bit_cast<uint32_t>(x[j]));
  }
  const float high = std::bit_cast<float>(positive);
  const float low = negative >> 31 ? std::bit_cast<float>(negative) : 0;
  if (high != -low) return high > -low ? high : low;
  return *std::find_if(x, x + kQuantBlock, [&](float value) { return std::fabs(value) == high; });
}

// d = m / -8 where m is the value of largest magnitude, with its sign: m itself becomes nibble 0.
void encode_q4_0(const float* in, uint8_t* out, size_t n) {
  constexpr int kHalf = kQuantBlock / 2;
  for (size_t i = 0; i < n; i += kQuantBlock, out += sizeof(BlockQ4_0)) {
    const float* x = in + i;
    const float d = (signed_largest(x) + 0.0f) / -8;  // + 0: a block of -0 is one of +0
    const float inverse = inverse_of(d);
    BlockQ4_0 block;
    block.d = f32_to_f16(d);
    int nibble[kQuantBlock];
    for (int j = 0; j < kQuantBlock; ++j) nibble[j] = std::min(15, static_cast<int>(x[j] * inverse + 8.5f));
    for (int j = 0; j < kHalf; ++j) block.q[j] = static_cast<uint8_t>(nibble[j] + 16 * nibble[j + kHalf]);
    std::memcpy(out, &block, sizeof block);
  }
}

// Sums of a block are kept in lanes that are added in order, so that they vectorise and stay the same everywhere.
constexpr int kLanes = 8;

struct Fit {
  float explained;  // Σ x² less the squared error
  float d;
};

// Σ a b over a block.
float dot(const float* a, const float* b) {
  float lanes[kLanes] = {};
  for (int i = 0; i < kQuantBlock; i += kLanes) {
    for (int j = 0; j < kLanes; ++j) lanes[j] += a[i + j] * b[i + j];
  }
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// q = x * inverse rounded to what a nibble holds, and the best scale for these q, Σ x q / Σ q².
Fit fit_nibbles(const float* x, float inverse, float* q) {
  constexpr float kRound = 0x1.8p23f;  // a sum with it has no room for a fraction, and the integer in its low bits
  for (int j = 0; j < kQuantBlock; ++j) {
    const int rounded = std::bit_cast<int>(x[j] * inverse + kRound) - std::bit_cast<int>(kRound);
    q[j] = static_cast<float>(std::min(7, std::max(-8, rounded)));
  }
  const float xq = dot(x, q), d = xq / dot(q, q);
  return {xq * d, d};
}

// Of a few ways to round, the one of least squared error: the value of largest magnitude becomes -8 as in GGUF's rule,
// or a little less for the sake of the others, or is cut off. Each is then given its best scale.
void encode_q4_0_fitted(const float* in, uint8_t* out, size_t n) {
  constexpr float kLargest[] = {-8.0f, -7.4f, -7.7f, -8.3f, -8.6f};  // in units of d
  constexpr float kTiny = 0x1p-23f;                                  // below, d is 0 in f16
  constexpr float kMaxScale = 65504;                                 // of f16
  constexpr int kHalf = kQuantBlock / 2;
  for (size_t i = 0; i < n; i += kQuantBlock, out += sizeof(BlockQ4_0)) {
    const float largest = signed_largest(in + i);
    float q[2][kQuantBlock] = {};
    Fit best{0, 0};
    int kept = 0;
    for (const float units : kLargest) {
      if (std::fabs(largest) < kTiny) break;
      const Fit fit = fit_nibbles(in + i, units / largest, q[1 - kept]);
      if (fit.explained <= best.explained) continue;
      best = fit;
      kept = 1 - kept;
    }
    BlockQ4_0 block;
    block.d = f32_to_f16(std::min(kMaxScale, std::max(-kMaxScale, best.d)));
    int nibble[kQuantBlock];
    for (int j = 0; j < kQuantBlock; ++j) nibble[j] = static_cast<int>(q[kept][j]) + 8;
    for (int j = 0; j < kHalf; ++j) block.q[j] = static_cast<uint8_t>(nibble[j] + 16 * nibble[j + kHalf]);
    std::memcpy(out, &block, sizeof block);
  }
}

void encode_bits(const float* in, uint8_t* out, size_t n) {
  for (size_t i = 0; i < n; i += kBitBlock) {
    unsigned bits = 0;
    for (int j = 0; j < kBitBlock; ++j) bits |= unsigned{std::signbit(in[i + j])} << j;
    out[i / kBitBlock] = static_cast<uint8_t>(bits);
  }
}

void encode(DType to, Scales scales, const float* in, uint8_t* out, size_t n) {
  switch (to) {
    case DType::kF32:
      std::memcpy(out, in, n * sizeof(float));
      break;
    case DType::kF16:
      for (size_t i = 0; i < n; ++i) {
        const uint16_t h = f32_to_f16(in[i]);
        std::memcpy(out + 2 * i, &h, sizeof h);
      }
      break;
    case DType::kBF16:
      for (size_t i = 0; i < n; ++i) {
        const uint16_t h = f32_to_bf16(in[i]);
        std::memcpy(out + 2 * i, &h, sizeof h);
      }
      break;
    case DType::kQ8_0:
      encode_q8_0(in, out, n);
      break;
    case DType::kQ4_0:
      (scales == Scales::kFitted ? encode_q4_0_fitted : encode_q4_0)(in, out, n);
      break;
    case DType::kBit:
      encode_bits(in, out, n);
      break;
    case DType::kI32:
      break;
  }
}

// The magnitude, as bits, from which a value does not survive in `to`: it would become infinite, or a block's scale
// would. Everything that is not finite is above. 0xffffffff: all values survive.
uint32_t limit_bits(DType to) {
  constexpr float kF16Overflow = 65520;  // halfway between the largest f16 and the next step
  switch (to) {
    case DType::kF16:
      return std::bit_cast<uint32_t>(kF16Overflow);
    case DType::kQ8_0:
      return std::bit_cast<uint32_t>(kF16Overflow * 127);
    case DType::kQ4_0:
      return std::bit_cast<uint32_t>(kF16Overflow * 8);
    default:
      return 0xffffffffu;
  }
}

// --- Matrices. ---

// Rows that are transposed together: 64 f16 of a source row are two cache lines.
constexpr size_t kStrip = 64;
// Columns of the square that is turned at a time: it stays in L1.
constexpr size_t kSquare = 16;

// out[r][c] = source[c][first + r] for r < n. `source` is [cols, rows], `out` [n, cols].
template <typename Element>
void transpose_strip(const uint8_t* source, size_t rows, size_t cols, size_t first, size_t n, uint8_t* out) {
  Element square[kSquare][kStrip] = {};
  for (size_t c0 = 0; c0 < cols; c0 += kSquare) {
    const size_t width = std::min(kSquare, cols - c0);
    for (size_t c = 0; c < width; ++c) {
      std::memcpy(square[c], source + ((c0 + c) * rows + first) * sizeof(Element), n * sizeof(Element));
    }
    for (size_t r = 0; r < n; ++r) {
      Element line[kSquare];
      for (size_t c = 0; c < kSquare; ++c) line[c] = square[c][r];
      std::memcpy(out + (r * cols + c0) * sizeof(Element), line, width * sizeof(Element));
    }
  }
}

void keep_smallest(std::atomic<size_t>& smallest, size_t value) {
  size_t seen = smallest.load(std::memory_order_relaxed);
  while (value < seen && !smallest.compare_exchange_weak(seen, value, std::memory_order_relaxed)) {
  }
}

}  // namespace

void convert(const uint8_t* source, DType from, uint8_t* out, DType to, size_t rows, size_t cols, bool transpose,
             Scales scales, int threads) {
  if (rows == 0 || cols == 0) return;
  const uint32_t limit = limit_bits(to);
  const size_t in_bytes = row_bytes(from, cols);
  const size_t out_bytes = row_bytes(to, cols);
  const size_t strips = (rows + kStrip - 1) / kStrip;
  // Each thread takes a contiguous range of strips; its scratch is a row of floats and, to transpose, a strip.
  std::vector<float> floats(cols * threads);
  std::vector<uint8_t> tiles(transpose ? kStrip * in_bytes * threads : 0);
  std::atomic<size_t> bad_row = rows;

  ThreadPool pool(threads);
  pool.parallel_for(threads, [&](int thread) {
    float* row = floats.data() + cols * thread;
    uint8_t* tile = tiles.data() + kStrip * in_bytes * thread;
    const size_t end = std::min(rows, strips * (thread + 1) / threads * kStrip);
    for (size_t first = strips * thread / threads * kStrip; first < end; first += kStrip) {
      const size_t n = std::min(kStrip, end - first);
      const uint8_t* strip = transpose ? tile : source + first * in_bytes;
      if (transpose && block_bytes(from) == 4) transpose_strip<uint32_t>(source, rows, cols, first, n, tile);
      if (transpose && block_bytes(from) == 2) transpose_strip<uint16_t>(source, rows, cols, first, n, tile);
      for (size_t r = 0; r < n; ++r) {
        if (from == to) {
          std::memcpy(out + (first + r) * out_bytes, strip + r * in_bytes, out_bytes);
          continue;
        }
        decode(from, strip + r * in_bytes, row, cols);
        if (largest_bits(row, cols) < limit) {
          encode(to, scales, row, out + (first + r) * out_bytes, cols);
        } else {
          keep_smallest(bad_row, first + r);
        }
      }
    }
  });
  if (bad_row < rows) {
    throw std::range_error("row " + std::to_string(bad_row) + " holds a value that is not finite or too large");
  }
}

void dequantize(const uint8_t* source, DType from, float* out, size_t rows, size_t cols, int threads) {
  if (rows == 0 || cols == 0) return;
  const size_t in_bytes = row_bytes(from, cols);
  ThreadPool pool(threads);
  pool.parallel_for(threads, [&](int thread) {
    const size_t begin = rows * thread / threads, end = rows * (thread + 1) / threads;
    if (begin < end) decode(from, source + begin * in_bytes, out + begin * cols, (end - begin) * cols);
  });
}

}  // namespace pi::quant
