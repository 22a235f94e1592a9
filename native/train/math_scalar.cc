#include "train/math.h"

#define PI_ISA scalar
#include "kernels/simd-scalar.h"
// After the instruction set it is compiled for:
#include "kernels/exp-inl.h"
#include "train/math-inl.h"

namespace pi::train {
extern const Math* const kScalarMath;
const Math* const kScalarMath = &scalar::kMath;
}  // namespace pi::train
