// A kernel's tail: what follows from all of its blocks' results is done by the block that comes last, in the same
// launch. A launch of its own would cost a drain, a start and a fill of the GPU, a few microseconds a token and layer;
// the tail costs a counter and what one block takes. So tails are for little work: up to kTailRows rows of decoding.
#pragma once

#include "cuda/language.h"

namespace pi::cuda {

// With more rows their work is dealt to blocks of a launch of its own.
constexpr int kTailRows = 2;

// Whether this block is the last of `blocks` to come here; it then sees all that the others wrote before. The word
// (device memory) is 0 before and afterwards. Every thread of the block calls.
__device__ __forceinline__ bool comes_last(uint32_t* arrivals, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(arrivals, 1u) == blocks - 1;
    if (last) *arrivals = 0;
    __threadfence();
  }
  __syncthreads();
  return last;
}

}  // namespace pi::cuda
