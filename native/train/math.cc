#include "train/math.h"

#include <string_view>

#include "kernels/kernels.h"

namespace pi::train {

// Defined by math_<isa>.cc; null where the compiler's target has no such instructions.
extern const Math* const kScalarMath;
extern const Math* const kAvx2Math;
extern const Math* const kAvx512Math;
extern const Math* const kNeonMath;

const Math& math() {
  const std::string_view wanted = kernels::active().name;
  for (const Math* table : {kAvx2Math, kAvx512Math, kNeonMath}) {
    if (table && wanted == table->name) return *table;
  }
  return *kScalarMath;
}

}  // namespace pi::train
