// The launchers of cuda/kernels.h, each defined next to its kernel with the name that it has in the table.
#pragma once

#include "cuda/kernels.h"

namespace pi::cuda {

void receive(void* stream, const Receive& a);
void publish(void* stream, const Publish& a);
void scatter(void* stream, const Scatter& a);
void stamp(void* stream, const Stamp& a);
void norm(void* stream, const Norm& a);
void quantize(void* stream, const Quantize& a);
void merge(void* stream, const Merge& a);
void project(void* stream, const Project& a);
void gemm(void* stream, const Gemm& a);
void activate(void* stream, const Activate& a);
void store_kv(void* stream, const StoreKv& a);
void attend(void* stream, const Attend& a);
void score(void* stream, const Score& a);
void neurons(void* stream, const Neurons& a);
void down(void* stream, const Down& a);
void highest(void* stream, const Highest& a);
void sweep(void* stream, const Sweep& a);

// All of the above.
const Kernels& launchers();

// What a launch of so many blocks waits for itself: where they are many, one block waits in a launch before it, for
// nothing.
Meeting wait_before(void* stream, const Meeting& a, size_t blocks);

}  // namespace pi::cuda
