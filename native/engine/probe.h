// How fast this machine reads memory: the limit that decoding, which reads every weight once a token, is held against.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pi::engine {

// Bytes per second that `threads` threads together read from a buffer of `bytes` (split evenly among them, written once
// by its reader so that pages are near it), best round within `seconds`. A buffer smaller than the last-level cache
// measures that cache. Throws std::invalid_argument on nonsense and std::bad_alloc when the buffer does not fit.
double read_bandwidth(size_t bytes, int threads, double seconds);

// Sum of the u64 at `lines`, which begin on a cache line, in whole lines of the `bytes`: reading at its fastest.
uint64_t sum_lines(const void* lines, size_t bytes);

}  // namespace pi::engine
