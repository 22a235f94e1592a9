#include "train/math.h"

#if defined(__AVX512F__)
#define PI_ISA avx512
#include "kernels/simd-avx512.h"
// After the instruction set it is compiled for:
#include "kernels/exp-inl.h"
#include "train/math-inl.h"
#endif

namespace pi::train {
extern const Math* const kAvx512Math;
#if defined(__AVX512F__)
const Math* const kAvx512Math = &avx512::kMath;
#else
const Math* const kAvx512Math = nullptr;
#endif
}  // namespace pi::train
