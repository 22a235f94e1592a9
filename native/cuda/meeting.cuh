// How a kernel meets the host at a word of page-locked memory (cuda/kernels.h). Both are for one thread of a block; the
// others are kept back, or brought in, by a __syncthreads() of the caller.
#pragma once

#include "cuda/kernels.h"
#include "cuda/language.h"

namespace pi::cuda {

// Until the host has stored this step's number, or nobody waits any more. What it stored before is visible afterwards,
// to this thread and, after a __syncthreads(), to its block.
__device__ __forceinline__ void wait_for(const Meeting& meeting) {
  if (meeting.flag == nullptr) return;
  const uint32_t step = *meeting.step;
  // A look crosses the bus, which takes a microsecond, and the flag is what is waited for: abort is looked at now and
  // then.
  for (unsigned looks = 1; static_cast<int32_t>(load_system(meeting.flag) - step) < 0; ++looks) {
    if (looks % 16 == 0 && load_system(meeting.abort) != 0) return;
    __nanosleep(32);
  }
}

// Everything that this thread wrote before, and what others of its block wrote before a __threadfence_system() and a
// __syncthreads(), is visible to who sees the number.
__device__ __forceinline__ void signal(const Meeting& meeting) {
  if (meeting.flag != nullptr) store_system(meeting.flag, *meeting.step);
}

}  // namespace pi::cuda
