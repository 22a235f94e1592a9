// Projections of decoding.
#include <algorithm>

#include "cuda/dot.cuh"
#include "cuda/launchers.h"
#include "cuda/norm.cuh"

namespace pi::cuda {
namespace {

constexpr int kWarps = 8;
static_assert(kWarps * kWarp == kNormThreads);
constexpr int kBlocks = 512;  // enough to fill every multiprocessor; more would only stage x more often

// The outputs of one type; those of others are launched apart.
struct Job {
  Project::Output outputs[3];
  int first_block[4];  // of each output, and of what would come after them
  int block_rows;
  DeviceRows x;
  int rows;
  bool add, relu;
  Norm norm;
};

// Several rows of weights a warp share what they read of x, once that is the bottleneck; loads in flight of each.
template <int kT>
constexpr int kRowsAWarp = kT > 2 ? 2 : 1;
template <int kT>
constexpr int kUnroll = kT > 4   ? 2
                        : kT > 2 ? 4
                                 : 8;

__device__ __forceinline__ void store(const Job& a, const Project::Output& o, int t, int i, float sum) {
  float* y = o.y + size_t(t) * o.w.rows + i;
  if (o.bias) sum += o.bias[i];
  if (a.add) sum += *y;
  *y = a.relu ? fmaxf(sum, 0.0f) : sum;
}

template <DType kType, int kT>
__global__ void __launch_bounds__(kWarps* kWarp, kT > 2 ? 1 : 2) project_rows(Job a) {
  constexpr int kR = kRowsAWarp<kT>;
  PI_DYNAMIC_SHARED(uint4, shared);
  const int block = blockIdx.x, lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int which = block >= a.first_block[2] ? 2 : block >= a.first_block[1] ? 1 : 0;
  const Project::Output& o = a.outputs[which];
  const int begin = (block - a.first_block[which]) * a.block_rows, end = min(begin + a.block_rows, o.w.rows);
  Staged<kType, kT> x(a.x, a.rows, shared);
  for (int first = begin; first < end; first += kWarps * kR) {
    const int i = first + warp * kR;
    const uint8_t* row[kR];
    for (int r = 0; r < kR; ++r) row[r] = o.w.data + size_t(min(i + r, o.w.rows - 1)) * o.w.row_bytes;
    for (int t0 = 0; t0 < a.rows; t0 += kT) {
      x.begin_at(t0);
      float sum[kR][kT];
      dot_rows<kUnroll<kT>>(x, row, i >= end, sum);
#pragma unroll
      for (int r = 0; r < kR; ++r) {
#pragma unroll
        for (int t = 0; t < kT; ++t) {
          if (lane == r * kT + t && i + r < end && t0 + t < a.rows) store(a, o, t0 + t, i + r, sum[r][t]);
        }
      }
    }
  }
  if (a.norm.x && comes_last(a.norm.arrivals, gridDim.x)) norm_rows(a.norm);
}

void launch(void* stream, Job& job, DType type) {
  int all = 0;
  for (const Project::Output& o : job.outputs) all += o.w.rows;
  with_rows(job.rows, [&](auto t) {
    constexpr int kT = decltype(t)::value, kSet = kWarps * kRowsAWarp<kT>;
    job.block_rows = std::max(1, all / (kSet * kBlocks)) * kSet;
    for (int o = 0; o < 3; ++o) {
      job.first_block[o + 1] = job.first_block[o] + (job.outputs[o].w.rows + job.block_rows - 1) / job.block_rows;
    }
    with_weight_type(type, [&](auto w) {
      constexpr DType kType = decltype(w)::value;
      PI_LAUNCH((project_rows<kType, kT>), dim3(job.first_block[3]), dim3(kWarps * kWarp),
                (Tiles<kType, kT>::shared_bytes(job.x.cols)), stream, job);
    });
  });
}

}  // namespace

void project(void* stream, const Project& a) {
  bool done[3] = {};
  for (int first = 0; first < 3; ++first) {
    if (done[first] || !a.outputs[first].w) continue;
    Job job{{}, {}, 0, a.x, a.rows, a.add, a.relu, a.rows <= kTailRows ? a.norm : Norm{}};
    const DType type = a.outputs[first].w.type;
    for (int o = first, n = 0; o < 3; ++o) {
      if (!a.outputs[o].w || a.outputs[o].w.type != type) continue;
      job.outputs[n++] = a.outputs[o];
      done[o] = true;
    }
    launch(stream, job, type);
  }
  if (a.norm.x && a.rows > kTailRows) norm(stream, a.norm);
}

}  // namespace pi::cuda
