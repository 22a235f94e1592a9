// What the emulator runs: threads, warps and blocks as a GPU does them, and errors where a GPU would hang.
#include <cstdlib>

#include "checks/check.h"
#include "checks/cuda/emulator.h"

namespace pi::checks {
namespace {

using namespace emulated;

// ---------------------------------------------------------------------------------------------------- blocks and warps

// Sum of a block's threads' numbers through shared memory, by warps, and through shared memory again.
__global__ void block_sum(Args a) {
  __shared__ int parts[32];
  PI_DYNAMIC_SHARED(int, values);
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  values[i] = i;
  __syncthreads();
  int sum = values[n - 1 - i];
  for (int k = 16; k > 0; k /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, k);
  if (i % 32 == 0) parts[i / 32] = sum;
  __syncthreads();
  if (i >= 32) return;
  int total = i < n / 32 ? parts[i] : 0;
  for (int k = 16; k > 0; k /= 2) total += __shfl_down_sync(0xffffffffu, total, k);
  if (i == 0) a.out[blockIdx.x + gridDim.x * blockIdx.y] = total;
}

const Check sums("emulator: a block's sum by shuffles and shared memory", [] {
  std::vector<int> out(6, -1);
  const std::string error = run(block_sum, dim3(3, 2), dim3(1024), 4096, {out.data()});
  if (!error.empty()) return error;
  for (int sum : out) {
    if (sum != 1023 * 512) return expect_equal("sum", 1023 * 512, sum);
  }
  return std::string();
});

// Every thread's place, in blocks whose last warp is not whole.
__global__ void places(Args a) {
  const unsigned i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int lanes = __popc(__ballot_sync(0xffffffffu, 1));
  a.out[block * threads + i] += static_cast<int>(block * threads + i) * 100 + lanes;
}

const Check all_threads("emulator: every thread of every block once, partial warps too", [] {
  std::vector<int> out(24 * 42, 0);
  const std::string error = run(places, dim3(2, 3, 4), dim3(7, 2, 3), 0, {out.data()});
  if (!error.empty()) return error;
  for (size_t i = 0; i < out.size(); ++i) {
    const int lanes = i % 42 < 32 ? 32 : 10;
    if (out[i] != static_cast<int>(i) * 100 + lanes)
      return expect_equal("place", static_cast<int>(i) * 100 + lanes, out[i]);
  }
  return std::string();
});

// What each kind of shuffle and vote gives lane i of two warps.
__global__ void exchanges(Args a) {
  const int i = static_cast<int>(threadIdx.x), lane = i % 32;
  int* const out = a.out + i * 8;
  out[0] = __shfl_sync(0xffffffffu, i, 5);
  out[1] = __shfl_xor_sync(0xffffffffu, i, 3);
  out[2] = __shfl_down_sync(0xffffffffu, i, 4);
  out[3] = __shfl_up_sync(0xffffffffu, i, 4, 8);
  out[4] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  out[5] = __any_sync(0xffffffffu, i == 40);
  out[6] = __all_sync(0xffffffffu, i < 40);
  out[7] = static_cast<int>(__shfl_sync(0xffffffffu, 1.5f * static_cast<float>(i), 1, 16) * 2);
}

const Check all_exchanges("emulator: shuffles and votes", [] {
  std::vector<int> out(64 * 8);
  const std::string error = run(exchanges, dim3(1), dim3(64), 0, {out.data()});
  if (!error.empty()) return error;
  unsigned thirds = 0;
  for (int i = 0; i < 32; i += 3) thirds |= 1u << i;
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, warp = i - lane;
    const int expected[8] = {
        warp + 5,   i ^ 3,     lane < 28 ? i + 4 : i, i % 8 < 4 ? i : i - 4, static_cast<int>(thirds),
        warp == 32, warp == 0, 3 * (i / 16 * 16 + 1)};
    for (int k = 0; k < 8; ++k) {
      if (out[i * 8 + k] != expected[k])
        return std::to_string(k) + ": " + expect_equal("lane", expected[k], out[i * 8 + k]);
    }
  }
  return std::string();
});

// Lanes that returned are missed by nobody.
__global__ void some_return(Args a) {
  const int i = static_cast<int>(threadIdx.x);
  if (i % 2 == 1) return;
  __syncthreads();
  const unsigned here = __ballot_sync(0xffffffffu, 1);
  __syncthreads();
  a.out[i] = static_cast<int>(here);
}

const Check returned("emulator: barriers and votes of the lanes that have not returned", [] {
  std::vector<int> out(64, 0);
  const std::string error = run(some_return, dim3(1), dim3(64), 0, {out.data()});
  return error.empty() ? expect_equal("ballot", 0x55555555, out[62]) : error;
});

// ------------------------------------------------------------------------------------------------------- what is wrong

__global__ void half_a_barrier(Args a) {
  if (threadIdx.x < 40) __syncthreads();
  if (threadIdx.x >= 40) __shfl_sync(0xffffffffu, 1, 0);
  __syncthreads();
}
__global__ void two_barriers(Args a) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void two_exchanges(Args a) {
  if (threadIdx.x < 7) {
    __syncwarp();
  } else {
    __ballot_sync(0xffffffffu, 1);
  }
}
__global__ void beyond_shared(Args a) {
  PI_DYNAMIC_SHARED(char, bytes);
  bytes[a.n] = 1;
}
__global__ void too_deep(Args a) {
  volatile char stack[160 << 10];
  for (size_t i = 0; i < sizeof stack; i += 64) stack[i] = static_cast<char>(i);
  a.out[0] = stack[64];
}

const Check misuse("emulator: what would hang or be undefined is an error that names kernel and block", [] {
  int out = 0;
  for (const std::string& wrong : {
           expect_error(run(half_a_barrier, dim3(1), dim3(64)),
                        {"kernel", "block (0, 0, 0)", "not all threads", "24 of 32 lanes of warp 1", "barrier"}),
           expect_error(run(two_barriers, dim3(1), dim3(64)), {"different barriers"}),
           expect_error(run(two_exchanges, dim3(1), dim3(32)), {"__syncwarp", "a vote"}),
           expect_error(run(half_a_mask, dim3(1), dim3(32)), {"some lanes only"}),
           expect_error(run(beyond_shared, dim3(1), dim3(32), 100, {nullptr, 100}),
                        {"outside of the block's dynamic shared memory"}),
           expect_error(run(beyond_shared, dim3(1), dim3(32), 100, {nullptr, -1}),
                        {"outside of the block's dynamic shared memory"}),
           expect_error(run(too_deep, dim3(1), dim3(1), 0, {&out}), {"bytes of stack"}),
           expect_error(run(nothing, dim3(1), dim3(1025)), {"1025 threads", "1024"}),
           expect_error(run(nothing, dim3(0), dim3(32)), {"a launch of nothing"}),
           expect_error(run(nothing, dim3(1), dim3(32), 100 << 10), {"102400 bytes of shared memory"}),
           run(nothing, dim3(1), dim3(1024), 64 << 10),
       }) {
    if (!wrong.empty()) return wrong;
  }
  return std::string();
});

__global__ void racing(Args a) {
  PI_DYNAMIC_SHARED(int, values);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = i;
  __syncwarp();
  a.out[i] = values[63 - i];
}

// Counts blocks, and says whether the last one that there is came last.
__global__ void assume_order(Args a) {
  if (threadIdx.x != 0) return;
  const int before = atomicAdd(a.out, 1);
  if (blockIdx.x == gridDim.x - 1) a.out[1] = before;
}

const Check order(
    "emulator: a missing barrier shows in some order of lanes or blocks, a right kernel is the same in all", [] {
      bool differs = false, blocks_differ = false;
      for (const char* seed : {"0", "1", "2", "3"}) {
        const char* const before = std::getenv("PI_EMULATOR_SEED");
        const std::string kept = before != nullptr ? before : "";
        ::setenv("PI_EMULATOR_SEED", seed, 1);
        std::vector<int> out(64), sum(1), blocks(2);
        const std::string error = run(racing, dim3(1), dim3(64), 256, {out.data()}) +
                                  run(block_sum, dim3(1), dim3(1024), 4096, {sum.data()}) +
                                  run(assume_order, dim3(12), dim3(32), 0, {blocks.data()});
        if (kept.empty()) {
          ::unsetenv("PI_EMULATOR_SEED");
        } else {
          ::setenv("PI_EMULATOR_SEED", kept.c_str(), 1);
        }
        if (!error.empty()) return error;
        for (int i = 0; i < 64; ++i) differs = differs || out[i] != 63 - i;
        if (sum[0] != 1023 * 512) return expect_equal("sum", 1023 * 512, sum[0]);
        if (blocks[0] != 12) return expect_equal("blocks", 12, blocks[0]);
        blocks_differ = blocks_differ || blocks[1] != 11;
      }
      return std::string(differs && blocks_differ ? "" : "no order showed it");
    });

// ---------------------------------------------------------------------------------------------------------- intrinsics

const Check intrinsics("emulator: integer intrinsics", [] {
  int64_t wrong = 0;
  wrong += __byte_perm(0x33221100, 0x77665544, 0x7531) != 0x77553311;
  wrong += (__byte_perm(0x00008000, 0, 0x9) & 0xff) != 0xff;
  wrong += __brev(0x80000001u) != 0x80000001u || __brev(2) != 0x40000000u;
  wrong += __ffs(0) != 0 || __ffs(8) != 4 || __clz(1) != 31 || __popc(0xf0f0u) != 8;
  wrong += __dp4a(static_cast<int>(0x80ff7f01), static_cast<int>(0x7f020103), 5) != -128 * 127 - 2 + 127 + 3 + 5;
  wrong += __float2int_rn(2.5f) != 2 || __float2int_rn(-3.5f) != -4;
  return expect_equal("wrong", 0, wrong);
});

}  // namespace
}  // namespace pi::checks
