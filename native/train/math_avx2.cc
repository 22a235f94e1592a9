#include "train/math.h"

#if defined(__AVX2__)
#define PI_ISA avx2
#include "kernels/simd-avx2.h"
// After the instruction set it is compiled for:
#include "kernels/exp-inl.h"
#include "train/math-inl.h"
#endif

namespace pi::train {
extern const Math* const kAvx2Math;
#if defined(__AVX2__)
const Math* const kAvx2Math = &avx2::kMath;
#else
const Math* const kAvx2Math = nullptr;
#endif
}  // namespace pi::train
