// The kernels, compiled once per instruction set: PI_ISA names the namespace that simd-<isa>.h has filled. Only plain
// loops and that vocabulary in these files: an inline library function compiled with these flags could be linked in
// elsewhere.

#include <cmath>

#include "kernels/exp-inl.h"
// In this order:
#include "kernels/weights-inl.h"
#include "kernels/quantize-inl.h"
#include "kernels/dot-inl.h"
#include "kernels/axpy-inl.h"
#include "kernels/signs-inl.h"
#include "kernels/gemm-inl.h"
#include "kernels/functions-inl.h"
#include "kernels/attention-inl.h"

namespace pi::kernels::PI_ISA {
namespace {

const Table kTable = {kName,        kLanes,   kTileTokens, kIntBlockBytes, sizeof(IntPanel), dot_rows,
                      axpy_rows,    quantize, sign_bits,   count_signs,    pack_tokens,      pack_rows,
                      pack_columns, gemm,     attention,   store_kv,       dequantize_row,   rms_norm,
                      layer_norm,   rope,     activate,    add_to,         multiply_to,      highest_of,
                      sum_exp,      to_f16};

}  // namespace
}  // namespace pi::kernels::PI_ISA
