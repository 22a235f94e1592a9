// Activations to 8 bits; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

// Blocks that one vector of int32 sums holds, four lanes each.
constexpr int kGroup = kLanes / 4;
constexpr int kGroupCols = kGroup * kQuantBlock;
// Columns 0-15 of the group's blocks, columns 16-31, what store_offsets makes of them, and each block's scale in four
// lanes.
constexpr size_t kGroupBytes = kGroupCols + 8 * kLanes;

// 32 floats to integers of up to 127 in magnitude; returns the scale.
inline float quantize_block(const float* x, int8_t* q) {
  V high = abs(load(x));
  for (int k = 1; k < kBlockVectors; ++k) high = max(high, abs(load(x + k * kLanes)));
  const float amax = highest(high);
  const V inverse = set1(amax > 0 ? 127.0f / amax : 0.0f);
  for (int k = 0; k < kBlockVectors; ++k) store_i8(q + k * kLanes, mul(load(x + k * kLanes), inverse));
  return amax / 127.0f;
}

void quantize(const float* x, int cols, uint8_t* out) {
  for (int col = 0; col < cols; col += kGroupCols, out += kGroupBytes) {
    int8_t* low = reinterpret_cast<int8_t*>(out);
    int8_t* high = low + 16 * kGroup;
    float* scale = reinterpret_cast<float*>(out + kGroupCols + 4 * kLanes);
    for (int k = 0; k < kGroup; ++k) {
      int8_t q[kQuantBlock] = {};
      const int at = col + k * kQuantBlock;
      const float d = at < cols ? quantize_block(x + at, q) : 0.0f;
      __builtin_memcpy(low + 16 * k, q, 16);
      __builtin_memcpy(high + 16 * k, q + 16, 16);
      for (int i = 0; i < 4; ++i) scale[4 * k + i] = d;
    }
    store_offsets(low, high, reinterpret_cast<int32_t*>(out + kGroupCols));
  }
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
