#include "kernels/kernels.h"

#define PI_ISA scalar
#include "kernels/simd-scalar.h"
// After the instruction set it is compiled for:
#include "kernels/float-reader-inl.h"
#include "kernels/kernels-inl.h"

namespace pi::kernels {
extern const Table* const kScalarTable;
const Table* const kScalarTable = &scalar::kTable;
}  // namespace pi::kernels
