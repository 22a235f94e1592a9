#include "kernels/kernels.h"

#if defined(__aarch64__)
#define PI_ISA neon
#include "kernels/simd-neon.h"
// After the instruction set it is compiled for:
#include "kernels/float-reader-inl.h"
#include "kernels/kernels-inl.h"
#endif

namespace pi::kernels {
extern const Table* const kNeonTable;
#if defined(__aarch64__)
const Table* const kNeonTable = &neon::kTable;
#else
const Table* const kNeonTable = nullptr;
#endif
}  // namespace pi::kernels
