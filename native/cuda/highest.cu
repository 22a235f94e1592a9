// From logits to tokens without moving the logits: parts of a row find their highest logit and their sums, and one
// block a row puts them together, in order.
#include <cmath>

#include "cuda/kernels.h"
#include "cuda/language.h"
#include "cuda/launchers.h"
#include "cuda/layout.h"
#include "cuda/reduce.cuh"
#include "cuda/workspace.h"

namespace pi::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kEach = 16;  // logits a thread, all loads in flight at once
static_assert(kPartTokens == kThreads * kEach);

constexpr int parts_of(int vocab) { return (vocab + kPartTokens - 1) / kPartTokens; }

using Part = HighestPart;

struct Rows {
  Highest a;
  int n_parts;
};

// A logit and its token.
struct Best {
  float logit;
  int32_t token;
  __device__ __forceinline__ void add(float x, int32_t from) {
    if (x > logit || (x == logit && from < token)) logit = x, token = from;
  }
  __device__ __forceinline__ void add_lanes() {
    for (int with = kWarp / 2; with > 0; with /= 2) {
      const float x = __shfl_xor_sync(kAllLanes, logit, with);
      add(x, __shfl_xor_sync(kAllLanes, token, with));
    }
  }
};

__device__ __forceinline__ Best block_best(Best best, float* logits, int32_t* tokens) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  best.add_lanes();
  if (lane == 0) logits[warp] = best.logit, tokens[warp] = best.token;
  __syncthreads();
  for (int i = 0; i < kThreads / kWarp; ++i) best.add(logits[i], tokens[i]);
  return best;
}

// Block: (part, row).
__global__ void __launch_bounds__(kThreads) highest_of_parts(Rows o) {
  __shared__ float logits[kWarp], sums[2][kWarp];
  __shared__ int32_t tokens[kWarp];
  const Highest& a = o.a;
  const int first = blockIdx.x * kPartTokens + threadIdx.x;
  const float* row = a.logits + size_t(blockIdx.y) * a.vocab;
  float x[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int token = first + i * kThreads;
    x[i] = token < a.vocab ? row[token] : -INFINITY;
  }
  Best best{-INFINITY, a.vocab - 1};
#pragma unroll
  for (int i = 0; i < kEach; ++i) best.add(x[i], min(first + i * kThreads, a.vocab - 1));
  best = block_best(best, logits, tokens);
  const float high = best.logit > -INFINITY ? best.logit : 0.0f;  // a part may be masked whole
  const float temperature = a.draws ? a.draws[blockIdx.y].temperature : 0.0f;
  float sum = 0, weight = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) sum += expf(x[i] - high);
  if (temperature > 0) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) weight += expf((x[i] - high) / temperature);
  }
  sum = block_sum(sum, sums[0]);
  weight = block_sum(weight, sums[1]);
  if (threadIdx.x == 0)
    static_cast<Part*>(a.workspace)[blockIdx.y * o.n_parts + blockIdx.x] = {best.logit, best.token, sum, weight};
}

// Uniform in [0, 1), as the CPU's sampler: one number of SplitMix64 (base/random.h).
__device__ __forceinline__ double uniform(const Draw& draw) {
  uint64_t z = draw.seed + 0x9e3779b97f4a7c15ull * (static_cast<uint64_t>(static_cast<int64_t>(draw.position)) + 1);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return static_cast<double>((z ^ (z >> 31)) >> 11) * (1.0 / 9007199254740992.0);  // 2^53
}

__device__ __forceinline__ double lanes_sum(double x) {
  for (int with = kWarp / 2; with > 0; with /= 2) x += __shfl_xor_sync(kAllLanes, x, with);
  return x;
}

// Sum of x over the lanes up to this one.
__device__ __forceinline__ double lanes_scan(double x) {
  const int lane = threadIdx.x % kWarp;
  for (int by = 1; by < kWarp; by *= 2) {
    const double before = __shfl_up_sync(kAllLanes, x, by);
    if (lane >= by) x += before;
  }
  return x;
}

// Where a draw falls: the part, and how much of the part's weight is before it.
struct Place {
  int part;
  double left;
};

__device__ __forceinline__ double part_weight(const Part* parts, int n_parts, int i, float high, float temperature) {
  return i < n_parts ? parts[i].weight * exp(static_cast<double>(parts[i].high - high) / temperature) : 0.0;
}

// Every warp for itself, so that all threads know.
__device__ __forceinline__ Place find_part(const Part* parts, int n_parts, float high, const Draw& draw) {
  const int lane = threadIdx.x % kWarp;
  double total = 0;
  for (int i = 0; i < n_parts; i += kWarp)
    total += lanes_sum(part_weight(parts, n_parts, i + lane, high, draw.temperature));
  double left = uniform(draw) * total;
  for (int i = 0; i < n_parts; i += kWarp) {
    const double weight = part_weight(parts, n_parts, i + lane, high, draw.temperature), upto = lanes_scan(weight);
    const unsigned beyond = __ballot_sync(kAllLanes, left < upto);
    if (beyond != 0) {
      const int at = __ffs(static_cast<int>(beyond)) - 1;
      return {i + at, left - __shfl_sync(kAllLanes, upto - weight, at)};
    }
    left -= __shfl_sync(kAllLanes, upto, kWarp - 1);
  }
  return {n_parts - 1, left};
}

// The token of a part at which the weights before it and its own exceed `place.left`; rounding may leave none: then the
// last one that has a weight, and where weights are no numbers, the last one of all.
__device__ __forceinline__ int draw_in_part(const Rows& o, const float* row, Place place, float high,
                                            float temperature) {
  __shared__ double sums[kThreads / kWarp];
  __shared__ int found, last;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp,
            first = place.part * kPartTokens + threadIdx.x * kEach;
  float weight[kEach];
  double own = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    weight[i] = first + i < o.a.vocab ? expf((row[first + i] - high) / temperature) : 0.0f;
    own += weight[i];
  }
  const double upto = lanes_scan(own);
  if (threadIdx.x == 0) found = o.a.vocab, last = -1;
  if (lane == kWarp - 1) sums[warp] = upto;
  __syncthreads();
  double before = upto - own;
  for (int w = 0; w < warp; ++w) before += sums[w];
#pragma unroll
  for (int i = kEach - 1; i >= 0; --i) {
    if (weight[i] > 0) {
      atomicMax(&last, first + i);
      break;
    }
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    before += weight[i];
    if (weight[i] > 0 && place.left < before) {
      atomicMin(&found, first + i);
      break;
    }
  }
  __syncthreads();
  return found < o.a.vocab ? found : last >= 0 ? last : o.a.vocab - 1;
}

// One block a row.
__global__ void __launch_bounds__(kThreads) join_parts(Rows o) {
  const Highest& a = o.a;
  const int lane = threadIdx.x % kWarp;
  const Part* parts = static_cast<const Part*>(a.workspace) + size_t(blockIdx.x) * o.n_parts;
  Best best{-INFINITY, a.vocab - 1};
  for (int i = lane; i < o.n_parts; i += kWarp) best.add(parts[i].high, parts[i].token);
  best.add_lanes();
  double sum = 0;
  for (int i = lane; i < o.n_parts; i += kWarp)
    sum += parts[i].sum * exp(static_cast<double>(parts[i].high - best.logit));
  sum = lanes_sum(sum);
  const float* row = a.logits + size_t(blockIdx.x) * a.vocab;
  int token = best.token;
  if (a.draws && a.draws[blockIdx.x].temperature > 0) {
    const Draw draw = a.draws[blockIdx.x];
    token = draw_in_part(o, row, find_part(parts, o.n_parts, best.logit, draw), best.logit, draw.temperature);
  }
  if (threadIdx.x == 0) {
    a.token[blockIdx.x] = token;
    a.logit[blockIdx.x] = row[token];
    a.log_sum[blockIdx.x] = static_cast<float>(best.logit + log(sum));
  }
}

}  // namespace

void highest(void* stream, const Highest& a) {
  const Rows o{a, parts_of(a.vocab)};
  PI_LAUNCH(highest_of_parts, dim3(o.n_parts, a.rows), dim3(kThreads), 0, stream, o);
  PI_LAUNCH(join_parts, dim3(a.rows), dim3(kThreads), 0, stream, o);
}

}  // namespace pi::cuda
