// What a kernel source includes. The same .cu file is compiled by nvcc, by HIP and, against the emulator, by any C++
// compiler; all three know the words below. Warps have 32 lanes.
//
//   PI_LAUNCH(kernel, grid, block, shared_bytes, stream, args...)   a template-id goes in parentheses. More than 48 KiB
//   of
//                                                  dynamic shared memory are asked for where needed (64 KiB are
//                                                  everywhere)
//   PI_DYNAMIC_SHARED(T, name)                     T* name, the block's dynamic shared memory, aligned to 16 bytes
//   f16_bits_to_f32, f32_to_f16_bits, bf16_bits_to_f32, device_clock_ns
//   load_system(p), store_system(p, x)             words that the host reads and writes at the same time: what was
//   written
//                                                  before a store is seen by who loaded its value
//
// Masks of warp operations are 0xffffffff: every lane that has not returned takes part.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__HIPCC__)
#include "cuda/language_hip.h"
#elif defined(__CUDACC__)
#include "cuda/language_cuda.h"
#else
#include "cuda/emulator.h"
#endif
