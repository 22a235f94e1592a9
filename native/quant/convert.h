// Conversion of weight matrices between element types, the only place that encodes block types.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"

namespace pi::quant {

// True for the types convert() reads: f32, f16, bf16.
constexpr bool is_float(DType type) { return type == DType::kF32 || type == DType::kF16 || type == DType::kBF16; }

// How q4_0 chooses a block's scale: by GGUF's reference rule, or for the least squared error, which costs more time and
// is read the same way. q8_0 always follows GGUF's rule.
enum class Scales { kPlain, kFitted };

// Encodes rows x cols elements of a float type into `to` (any weight type, or their signs), row-major. With `transpose`
// the source is [cols, rows]. `cols` is a whole number of `to`'s blocks; `source` need not be aligned. Rounds once,
// from f32: to nearest even for floats, by the rule `scales` for blocks; a type converts to itself bit by bit. Uses up
// to `threads` threads; the result does not depend on how many. Throws std::range_error naming the first row with a
// value that f16 or a block cannot hold: not finite, or too large.
void convert(const uint8_t* source, DType from, uint8_t* out, DType to, size_t rows, size_t cols, bool transpose,
             Scales scales, int threads);

// Decodes rows x cols elements of any weight type to f32.
void dequantize(const uint8_t* source, DType from, float* out, size_t rows, size_t cols, int threads);

}  // namespace pi::quant
