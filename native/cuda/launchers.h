// The launchers of cuda/kernels.h' table; each is defined next to its kernel, with the name that it has there. One that no source defines is null in the table.
#pragma once

#include <cstddef>

#include "cuda/kernels.h"

#define PI_LAUNCHER __attribute__((weak, visibility("default")))

namespace pi::cuda {

PI_LAUNCHER void receive(void* stream, const Receive& a);
PI_LAUNCHER void publish(void* stream, const Publish& a);
PI_LAUNCHER void scatter(void* stream, const Scatter& a);
PI_LAUNCHER void stamp(void* stream, const Stamp& a);
PI_LAUNCHER void norm(void* stream, const Norm& a);
PI_LAUNCHER void quantize(void* stream, const Quantize& a);
PI_LAUNCHER void merge(void* stream, const Merge& a);
PI_LAUNCHER void project(void* stream, const Project& a);
PI_LAUNCHER void gemm(void* stream, const Gemm& a);
PI_LAUNCHER void activate(void* stream, const Activate& a);
PI_LAUNCHER void store_kv(void* stream, const StoreKv& a);
PI_LAUNCHER void attend(void* stream, const Attend& a);
PI_LAUNCHER void score(void* stream, const Score& a);
PI_LAUNCHER void select(void* stream, const Select& a);
PI_LAUNCHER void neurons(void* stream, const Neurons& a);
PI_LAUNCHER void down(void* stream, const Down& a);
PI_LAUNCHER void highest(void* stream, const Highest& a);
PI_LAUNCHER void sweep(void* stream, const Sweep& a);

PI_LAUNCHER size_t gemm_workspace(const DeviceMatrix& w, bool transposed, int rows);
PI_LAUNCHER size_t attention_workspace(int rows, int n_heads, int head_dim, int splits);
PI_LAUNCHER size_t highest_workspace(int rows, int vocab);

// All of the above.
const Kernels& launchers();

}  // namespace pi::cuda
