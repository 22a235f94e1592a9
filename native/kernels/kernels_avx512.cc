#include "kernels/kernels.h"

#if defined(__AVX512F__)
#define PI_ISA avx512
#include "kernels/simd-avx512.h"
// After the instruction set it is compiled for:
#include "kernels/kernels-inl.h"
#endif

namespace pi::kernels {
extern const Table* const kAvx512Table;
#if defined(__AVX512F__)
const Table* const kAvx512Table = &avx512::kTable;
#else
const Table* const kAvx512Table = nullptr;
#endif
}  // namespace pi::kernels
