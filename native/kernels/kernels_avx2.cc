#include "kernels/kernels.h"

#if defined(__AVX2__)
#define PI_ISA avx2
#include "kernels/simd-avx2.h"
// After the instruction set it is compiled for:
#include "kernels/float-reader-inl.h"
#include "kernels/kernels-inl.h"
#endif

namespace pi::kernels {
extern const Table* const kAvx2Table;
#if defined(__AVX2__)
const Table* const kAvx2Table = &avx2::kTable;
#else
const Table* const kAvx2Table = nullptr;
#endif
}  // namespace pi::kernels
