#include "train/math.h"

#if defined(__aarch64__)
#define PI_ISA neon
#include "kernels/simd-neon.h"
// After the instruction set it is compiled for:
#include "kernels/exp-inl.h"
#include "train/math-inl.h"
#endif

namespace pi::train {
extern const Math* const kNeonMath;
#if defined(__aarch64__)
const Math* const kNeonMath = &neon::kMath;
#else
const Math* const kNeonMath = nullptr;
#endif
}  // namespace pi::train
