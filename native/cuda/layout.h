// How rows of weights lie in device memory: a block type's quants first and its scales after them, so that a warp reads
// both in whole words; rows begin on 16 bytes. A row means the same as on the host and takes as many bytes, up to the
// padding, so neurons are moved between the two one by one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/types.h"

// Of functions that kernels call, too.
#if defined(__CUDACC__) || defined(__HIPCC__)
#define PI_HOST_DEVICE __host__ __device__
#else
#define PI_HOST_DEVICE
#endif

namespace pi::cuda {

constexpr size_t kRowAlign = 16;

constexpr size_t align_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// Bytes of a row of `cols` elements in device memory.
constexpr size_t device_row_bytes(DType type, size_t cols) { return align_up(row_bytes(type, cols), kRowAlign); }

// Where a block type's scales (f16 [cols / 32]) begin in a row.
//   q8_0: int8 [cols], scales.   q4_0: bytes [cols / 2], scales; byte 16 b + i holds element 32 b + i in its low nibble
//   and element 32 b + 16 + i in its high one, as in BlockQ4_0.   All other types: as on the host.
PI_HOST_DEVICE constexpr size_t scales_offset(DType type, size_t cols) {
  return type == DType::kQ8_0 ? cols : cols / 2;
}

// One row from the host's layout to the device's: device_row_bytes(type, cols), padding zeroed.
void pack_row(DType type, size_t cols, const uint8_t* host, uint8_t* device);

}  // namespace pi::cuda
