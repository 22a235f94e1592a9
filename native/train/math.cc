#include "train/math.h"

#include "kernels/kernels.h"

namespace pi::train {

// Defined by math_<isa>.cc; null where the compiler's target has no such instructions.
extern const Math* const kScalarMath;
extern const Math* const kAvx2Math;
extern const Math* const kAvx512Math;
extern const Math* const kNeonMath;

const Math& math_of(std::string_view isa) {
  for (const Math* table : {kAvx2Math, kAvx512Math, kNeonMath}) {
    if (table && isa == table->name) return *table;
  }
  return *kScalarMath;
}

const Math& math() { return math_of(kernels::active().name); }

}  // namespace pi::train
