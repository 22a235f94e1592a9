// How the kernels read weights of each type; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

// How a row of weights is read: a vector at a time, or a block of 32 quants with one scale.
template <DType>
struct Weights;

template <>
struct Weights<DType::kF32> {
  static constexpr DType kType = DType::kF32;
  static constexpr int kBytes = 4;
  static constexpr bool kBlocks = false;
  static V vector(const uint8_t* row, int j) { return load(reinterpret_cast<const float*>(row) + j); }
  static float element(const uint8_t* row, int j) { return reinterpret_cast<const float*>(row)[j]; }
};

template <>
struct Weights<DType::kF16> {
  static constexpr DType kType = DType::kF16;
  static constexpr int kBytes = 2;
  static constexpr bool kBlocks = false;
  static V vector(const uint8_t* row, int j) { return load_f16(reinterpret_cast<const uint16_t*>(row) + j); }
  static float element(const uint8_t* row, int j) { return f16(reinterpret_cast<const uint16_t*>(row)[j]); }
};

template <>
struct Weights<DType::kBF16> {
  static constexpr DType kType = DType::kBF16;
  static constexpr int kBytes = 2;
  static constexpr bool kBlocks = false;
  static V vector(const uint8_t* row, int j) { return load_bf16(reinterpret_cast<const uint16_t*>(row) + j); }
  static float element(const uint8_t* row, int j) { return bf16_to_f32(reinterpret_cast<const uint16_t*>(row)[j]); }
};

template <typename B>
struct BlockWeights {
  static constexpr bool kBlocks = true;
  using Block = B;
  static const B& block(const uint8_t* row, int j) { return reinterpret_cast<const B*>(row)[j / kQuantBlock]; }
};

template <>
struct Weights<DType::kQ8_0> : BlockWeights<BlockQ8_0> {};
template <>
struct Weights<DType::kQ4_0> : BlockWeights<BlockQ4_0> {};

constexpr int kBlockVectors = kQuantBlock / kLanes;

// The last n < kLanes elements of a row, padded with zeros.
template <typename W>
inline V tail(const uint8_t* row, int j, int n) {
  float buffer[kLanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = W::element(row, j + i);
  return load(buffer);
}

inline V tail(const float* x, int n) {
  float buffer[kLanes] = {};
  for (int i = 0; i < n; ++i) buffer[i] = x[i];
  return load(buffer);
}

inline void store_tail(float* y, V a, int n) {
  float buffer[kLanes];
  store(buffer, a);
  for (int i = 0; i < n; ++i) y[i] = buffer[i];
}

// Calls f with the Weights of a run-time type.
template <typename F>
inline void with_type(DType type, F&& f) {
  switch (type) {
    case DType::kF32:
      return f(Weights<DType::kF32>{});
    case DType::kF16:
      return f(Weights<DType::kF16>{});
    case DType::kBF16:
      return f(Weights<DType::kBF16>{});
    case DType::kQ8_0:
      return f(Weights<DType::kQ8_0>{});
    case DType::kQ4_0:
      return f(Weights<DType::kQ4_0>{});
    case DType::kI32:
    case DType::kBit:
      return;
  }
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
