// Attention while decoding: bound by reading keys and values, so every warp streams positions of its own, straight from
// memory to registers. A row's positions are cut into pieces, one block each; the block that comes last puts them
// together.
//
// A warp holds 32 / lanes positions at once, `lanes` (a power of two) neighbouring lanes a position, eight elements a
// lane. It runs an online softmax (Milakov & Gimelshein 2018) for up to eight query heads, which share what is read.
#include "cuda/attend.h"
#include "cuda/launchers.h"
#include "cuda/layout.h"
#include "cuda/new_kv.cuh"
#include "cuda/quantize.cuh"
#include "cuda/tail.cuh"

namespace pi::cuda {
namespace {

constexpr int kWarps = 4;
constexpr float kLow = -3.4e38f;  // below every score; two of them have a difference

// What a piece found of a query head: Σ weight * value [head_dim], and its highest score and sum of weights.
struct Pieces {
  float* sums;    // [T, n_heads, splits, head_dim]
  float2* peaks;  // [T, n_heads, splits]
};

struct Decode {
  Attend a;
  KvPages kv;
  Pieces pieces;
  int group, chunks;  // query heads of a KV head; blocks that share them
  int lanes;          // of a position
};

// Pieces are whole blocks of positions, all as long as the first. Their number follows from the row's position alone,
// so that a row's bits depend neither on its neighbours nor on the step.
struct Cut {
  int blocks, count;  // of a piece; pieces
};
__device__ __forceinline__ Cut cut(int position, int splits) {
  const int blocks = (position + kBlockTokens) / kBlockTokens, each = (blocks + splits - 1) / splits;
  return {each, each > 0 ? (blocks + each - 1) / each : 0};
}

// The running softmax of kHeads query heads over the positions that one group of lanes saw.
template <int kHeads>
struct Running {
  float sum[kHeads][kOctet], high[kHeads], total[kHeads];

  // Takes in what other positions made of the head.
  __device__ __forceinline__ void merge(int h, float other_high, float other_total, const float (&other)[kOctet]) {
    const float now = fmaxf(high[h], other_high), keep = __expf(high[h] - now), take = __expf(other_high - now);
    high[h] = now;
    total[h] = total[h] * keep + other_total * take;
    for (int i = 0; i < kOctet; ++i) sum[h][i] = sum[h][i] * keep + other[i] * take;
  }
};

// Positions of one step: kUnroll of a group of lanes, their loads all in flight at once.
template <KvType kType, int kUnroll>
struct Step {
  Octet<kType> keys[kUnroll], values[kUnroll];
  float key_scale[kUnroll], value_scale[kUnroll];
  bool inside[kUnroll];
};

template <KvType kType, int kUnroll>
__device__ __forceinline__ void load_step(const Decode& o, int block, int head, int first, int end,
                                          Step<kType, kUnroll>& s) {
  const int lane = threadIdx.x % kWarp, own = lane / o.lanes, octet = lane % o.lanes, octets = o.kv.head_dim / kOctet;
  const KvTile keys = kv_tile<kType>(o.kv, block, kKeys, head), values = kv_tile<kType>(o.kv, block, kValues, head);
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    const int position = first + u * (kWarp / o.lanes) + own, slot = position % kBlockTokens;
    s.inside[u] = position < end;
    s.keys[u].clear();
    s.values[u].clear();
    s.key_scale[u] = s.value_scale[u] = 1;
    if (s.inside[u] && octet < octets) {
      s.keys[u].load(keys, slot * octets + octet);
      s.values[u].load(values, slot * octets + octet);
    }
    if constexpr (kType == KvType::kQ8) {
      if (s.inside[u]) s.key_scale[u] = keys.scales[slot], s.value_scale[u] = values.scales[slot];
    }
  }
}

// p[h][u] = q[h] · key[u], of the lane's own elements. `q` [kHeads, head_dim] begins at those.
template <KvType kType, int kHeads, int kUnroll>
__device__ __forceinline__ void multiply(const float* q, int dim, const Step<kType, kUnroll>& s,
                                         float (&p)[kHeads][kUnroll]) {
  float k[kUnroll][kOctet];
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) s.keys[u].unpack(k[u]);
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    const float4 low = *reinterpret_cast<const float4*>(q + h * dim),
                 high = *reinterpret_cast<const float4*>(q + h * dim + 4);
    const float x[kOctet] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      p[h][u] = 0;
      for (int i = 0; i < kOctet; ++i) p[h][u] += x[i] * k[u][i];
    }
  }
}

template <KvType kType, int kHeads, int kUnroll>
__device__ __forceinline__ void add_step(const Decode& o, const float* q, const Step<kType, kUnroll>& s,
                                         Running<kHeads>& r) {
  float p[kHeads][kUnroll];
  multiply<kType, kHeads>(q, o.kv.head_dim, s, p);
  for (int with = o.lanes / 2; with > 0; with /= 2) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int h = 0; h < kHeads; ++h) p[h][u] += __shfl_xor_sync(kAllLanes, p[h][u], with);
    }
  }
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    float now = r.high[h];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      p[h][u] *= o.a.scale * s.key_scale[u];
      if (s.inside[u]) now = fmaxf(now, p[h][u]);
    }
    const float keep = __expf(r.high[h] - now);
    r.high[h] = now;
    r.total[h] *= keep;
    for (int i = 0; i < kOctet; ++i) r.sum[h][i] *= keep;
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      p[h][u] = s.inside[u] ? __expf(p[h][u] - now) : 0.0f;
      r.total[h] += p[h][u];
      p[h][u] *= s.value_scale[u];
    }
  }
#pragma unroll
  for (int u = 0; u < kUnroll; ++u) {
    float v[kOctet];
    s.values[u].unpack(v);
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      for (int i = 0; i < kOctet; ++i) r.sum[h][i] += p[h][u] * v[i];
    }
  }
}

// The groups of lanes of a warp, then the warps of the block, in order; then to memory.
template <int kHeads>
__device__ __forceinline__ void finish(const Decode& o, Running<kHeads>& r, int row, int first_head, int heads,
                                       float* shared) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, dim = o.kv.head_dim;
  for (int with = o.lanes; with < kWarp; with *= 2) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      float other[kOctet];
      for (int i = 0; i < kOctet; ++i) other[i] = __shfl_xor_sync(kAllLanes, r.sum[h][i], with);
      const float high = __shfl_xor_sync(kAllLanes, r.high[h], with),
                  total = __shfl_xor_sync(kAllLanes, r.total[h], with);
      r.merge(h, high, total, other);
    }
  }
  float* const peaks = shared + kWarps * kHeads * dim;  // [warp][head] pairs, behind sums [warp][head][dim]
  if (lane * kOctet < dim) {
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      const int at = warp * kHeads + h;
      float4* const to = reinterpret_cast<float4*>(shared + at * dim + lane * kOctet);
      to[0] = make_float4(r.sum[h][0], r.sum[h][1], r.sum[h][2], r.sum[h][3]);
      to[1] = make_float4(r.sum[h][4], r.sum[h][5], r.sum[h][6], r.sum[h][7]);
      if (lane == 0) peaks[2 * at] = r.high[h], peaks[2 * at + 1] = r.total[h];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * dim; i += blockDim.x) {
    const int h = i / dim, d = i % dim;
    float high = kLow, sum = 0, total = 0;
    for (int w = 0; w < kWarps; ++w) high = fmaxf(high, peaks[2 * (w * kHeads + h)]);
    for (int w = 0; w < kWarps; ++w) {
      const int at = w * kHeads + h;
      const float weight = __expf(peaks[2 * at] - high);
      sum += weight * shared[at * dim + d];
      total += weight * peaks[2 * at + 1];
    }
    const size_t to = (size_t(row) * o.a.n_heads + first_head + h) * o.a.splits + blockIdx.x;
    o.pieces.sums[to * dim + d] = sum;
    if (d == 0) o.pieces.peaks[to] = make_float2(high, total);
  }
}

// q [kHeads, head_dim] to shared memory, rotated; zeros past the last head.
template <int kHeads>
__device__ __forceinline__ void load_queries(const Decode& o, int row, int first_head, int heads, int position,
                                             float* q) {
  const Attend& a = o.a;
  const int dim = o.kv.head_dim, half = dim / 2;
  const bool rotated = a.now.key && a.now.cosine && position >= 0;
  for (int i = threadIdx.x; i < kHeads * half; i += blockDim.x) {
    const int h = i / half, d = i % half;
    const float* from = a.q + (size_t(row) * a.n_heads + first_head + h) * dim + d;
    float low = h < heads ? from[0] : 0.0f, high = h < heads ? from[half] : 0.0f;
    if (rotated)
      rotate_pair(low, high, a.now.cosine[size_t(position) * half + d], a.now.sine[size_t(position) * half + d]);
    q[h * dim + d] = low;
    q[h * dim + half + d] = high;
  }
}

// Columns [begin, end) of a row, its pieces in order, normalised; four a thread. Columns [n_heads, head_dim] of a row
// are its blocks of 32, so begin and end are multiples of it or the row's ends.
__device__ __forceinline__ void join_pieces(const Decode& o, int row, int pieces, int begin, int end) {
  const Attend& a = o.a;
  const int dim = o.kv.head_dim;
  for (int first = begin; first < end; first += kWarps * kWarp * kLaneColumns) {  // whole warps
    const int column = first + static_cast<int>(threadIdx.x) * kLaneColumns;
    const bool inside = column < end;
    float x[kLaneColumns] = {};
    if (inside) {
      const size_t at = (size_t(row) * a.n_heads + column / dim) * a.splits;
      const float* sums = o.pieces.sums + at * dim + column % dim;
      const float2* peaks = o.pieces.peaks + at;
      float high = kLow, total = 0;
#pragma unroll 4
      for (int s = 0; s < pieces; ++s) high = fmaxf(high, peaks[s].x);
#pragma unroll 4
      for (int s = 0; s < pieces; ++s) {
        const float2 peak = peaks[s];
        const float weight = __expf(peak.x - high);
        const float4 sum = *reinterpret_cast<const float4*>(sums + size_t(s) * dim);
        total += weight * peak.y;
        x[0] += weight * sum.x, x[1] += weight * sum.y, x[2] += weight * sum.z, x[3] += weight * sum.w;
      }
      for (int i = 0; i < kLaneColumns; ++i) x[i] = pieces > 0 ? x[i] / total : 0.0f;
      *reinterpret_cast<float4*>(a.out.x + size_t(row) * a.out.cols + column) = make_float4(x[0], x[1], x[2], x[3]);
    }
    if (a.out.quants) store_quantized(a.out, size_t(row) * a.out.cols + column, x, inside);
  }
}

// What comes last joins: of the blocks of the same query heads where these end with a block of 32 columns, else of the
// row.
__device__ __forceinline__ void join_last(const Decode& o, int row, int pieces, int first_head, int heads) {
  const bool alone = o.kv.head_dim % kQuantBlock == 0;
  const int dim = o.kv.head_dim, begin = alone ? first_head * dim : 0, end = alone ? begin + heads * dim : o.a.out.cols;
  uint32_t* const arrivals = o.a.arrivals + size_t(row) * gridDim.y + (alone ? blockIdx.y : 0);
  if (comes_last(arrivals, max(pieces, 1) * (alone ? 1 : gridDim.y))) join_pieces(o, row, pieces, begin, end);
}

// Block: (piece, KV head and chunk of its query heads, row). Two blocks a multiprocessor have 32 KiB
// in flight.
template <KvType kType, int kHeads, int kUnroll>
__global__ void __launch_bounds__(kWarps* kWarp, 2) attend_pieces(Decode o) {
  PI_DYNAMIC_SHARED(float, shared);
  const Attend& a = o.a;
  const int row = blockIdx.z, position = a.places.positions[row], dim = o.kv.head_dim, piece = blockIdx.x;
  const Cut pieces = cut(position, a.splits);
  if (piece > 0 && piece >= pieces.count) return;  // the first one is there for a row that is nobody's, too
  const int kv_head = blockIdx.y / o.chunks, chunk = blockIdx.y % o.chunks * kHeads;
  const int first_head = kv_head * o.group + chunk, heads = min(kHeads, o.group - chunk);
  const int32_t* table = a.places.tables + size_t(a.places.sequences[row]) * a.places.stride;
  float* const q = shared + kWarps * kHeads * (dim + 2);
  load_queries<kHeads>(o, row, first_head, heads, position, q);
  // Blocks that share a KV head each store the same of it: each then reads what it has written itself.
  const int warp = threadIdx.x / kWarp;
  if (a.now.key && piece == pieces.count - 1 && warp < 2) {
    store_head<kType>(a.now, o.kv, warp == 0 ? kKeys : kValues, row, kv_head, position, table[position / kBlockTokens]);
  }
  __syncthreads();
  const float* own =
      q + min(static_cast<int>(threadIdx.x % kWarp) % o.lanes * kOctet, dim - kOctet);  // idle lanes multiply zeros

  Running<kHeads> r;
#pragma unroll
  for (int h = 0; h < kHeads; ++h) {
    r.high[h] = kLow, r.total[h] = 0;
    for (int i = 0; i < kOctet; ++i) r.sum[h][i] = 0;
  }
  const int begin = piece * pieces.blocks * kBlockTokens, end = min(begin + pieces.blocks * kBlockTokens, position + 1);
  const int stride = kWarp / o.lanes * kUnroll;  // positions of a step, which lie in one block
  int first = begin + warp * stride, block = first < end ? table[first / kBlockTokens] : 0;
  while (first < end) {
    const int next = first + kWarps * stride;
    Step<kType, kUnroll> step;
    load_step<kType, kUnroll>(o, block, kv_head, first, end, step);
    if (next < end) block = table[next / kBlockTokens];
    add_step<kType, kHeads, kUnroll>(o, own, step, r);
    first = next;
  }
  finish<kHeads>(o, r, row, first_head, heads, shared);
  join_last(o, row, pieces.count, first_head, heads);
}

template <KvType kType, int kHeads>
void launch_pieces(void* stream, Decode o) {
  constexpr int kUnroll = kType == KvType::kF32 ? 2 : 4;
  o.chunks = (o.group + kHeads - 1) / kHeads;
  const dim3 grid(o.a.splits, o.kv.kv_heads * o.chunks, o.a.rows);
  const size_t shared = sizeof(float) * kHeads * (kWarps * (o.kv.head_dim + 2) + o.kv.head_dim);
  PI_LAUNCH((attend_pieces<kType, kHeads, kUnroll>), grid, dim3(kWarps * kWarp), shared, stream, o);
}

template <KvType kType>
void launch_group(void* stream, const Decode& o) {
  if (o.group == 1) {
    launch_pieces<kType, 1>(stream, o);
  } else if (o.group <= 4) {
    launch_pieces<kType, 4>(stream, o);
  } else {
    launch_pieces<kType, 8>(stream, o);
  }
}

}  // namespace

void attend(void* stream, const Attend& a) {
  if (a.prefill) return attend_prompts(stream, a);
  Decode o{a, pages_of(a.kv), {}, a.n_heads / a.kv.kv_heads, 1, 4};
  while (o.lanes * kOctet < a.kv.head_dim) o.lanes *= 2;
  o.pieces.sums = static_cast<float*>(a.workspace);
  o.pieces.peaks = reinterpret_cast<float2*>(o.pieces.sums + size_t(a.rows) * a.n_heads * a.splits * a.kv.head_dim);
  switch (a.kv.type) {
    case KvType::kF32:
      launch_group<KvType::kF32>(stream, o);
      break;
    case KvType::kF16:
      launch_group<KvType::kF16>(stream, o);
      break;
    case KvType::kQ8:
      launch_group<KvType::kQ8>(stream, o);
      break;
  }
}

}  // namespace pi::cuda
