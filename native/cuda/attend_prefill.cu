// Attention of prompts, tiled as in FlashAttention-2 (Dao 2023), in f32. A block has up to 64 queries of one KV head (a
// query is a row's head; all heads of a group and neighbouring rows share what is read) and walks over the blocks of
// positions, 32 at a time, keys first and then values, in slices of 32 dimensions that are fetched while the slice
// before is multiplied.
//
// Thread t has queries t / 8 + 16 i, positions t % 8 + 8 j of a tile's scores and dimensions 4 (t % 8) + 0…3 of a slice
// of the result. Tiles begin at multiples of 32 positions and a query's sums run over them in order, so its bits depend
// neither on the other queries of the block nor on how a prompt was cut into steps.
#include "cuda/attend.h"
#include "cuda/kv.cuh"
#include "cuda/language.h"
#include "cuda/launchers.h"
#include "cuda/reduce.cuh"

namespace pi::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kAcross = 8, kDown = kThreads / kAcross;  // threads of a query; queries of the threads' first ones
constexpr int kSlice = 32;                              // dimensions
constexpr int kPad = 4;                           // floats, so that rows of shared memory begin in different banks
constexpr int kColumns = kBlockTokens / kAcross;  // of scores, or of a slice, a thread
constexpr float kLow = -3.4e38f;

struct Prompt {
  Attend a;
  KvPages kv;
  int group;  // query heads of a KV head
};

template <int kQueries, int kSlices>
struct Tiles {
  float q[kQueries][kSlices * kSlice + kPad];
  float slice[kBlockTokens][kSlice + kPad];      // of keys or values: [position][dimension]
  float weights[kQueries][kBlockTokens + kPad];  // a warp reads only what it wrote
  int position[kQueries], sequence[kQueries];
};

// Eight elements of a slice a thread, on their way to shared memory.
template <KvType kType>
struct Fetched {
  Octet<kType> octet;
  float scale;
};
template <KvType kType>
__device__ __forceinline__ Fetched<kType> fetch(const KvPages& kv, int block, Side side, int head, int slice,
                                                int positions) {
  constexpr int kOctets = kSlice / kOctet;
  const int slot = threadIdx.x / kOctets, octet = slice * kOctets + threadIdx.x % kOctets,
            octets = kv.head_dim / kOctet;
  Fetched<kType> f;
  f.octet.clear();
  f.scale = 1;
  if (slot >= positions || octet >= octets) return f;  // what nobody stored yet may be anything, NaN included
  const KvTile tile = kv_tile<kType>(kv, block, side, head);
  f.octet.load(tile, slot * octets + octet);
  if constexpr (kType == KvType::kQ8) f.scale = tile.scales[slot];
  return f;
}

template <KvType kType>
__device__ __forceinline__ void keep(const Fetched<kType>& f, float (&slice)[kBlockTokens][kSlice + kPad]) {
  constexpr int kOctets = kSlice / kOctet;
  float x[kOctet];
  f.octet.unpack(x);
  if constexpr (kType == KvType::kQ8) {
    for (int i = 0; i < kOctet; ++i) x[i] *= f.scale;
  }
  float4* to = reinterpret_cast<float4*>(&slice[threadIdx.x / kOctets][threadIdx.x % kOctets * kOctet]);
  to[0] = make_float4(x[0], x[1], x[2], x[3]);
  to[1] = make_float4(x[4], x[5], x[6], x[7]);
}

__device__ __forceinline__ float4 four(const float* p) { return *reinterpret_cast<const float4*>(p); }

// s[i][j] += q[query i] · keys[position j] over one slice.
template <int kRows, int kStride>
__device__ __forceinline__ void add_scores(const float (*q)[kStride], int first, const float (*keys)[kSlice + kPad],
                                           float (&s)[kRows][kColumns]) {
  const int down = threadIdx.x / kAcross, across = threadIdx.x % kAcross;
#pragma unroll 2
  for (int d = 0; d < kSlice; d += 4) {
    float4 k[kColumns];
#pragma unroll
    for (int j = 0; j < kColumns; ++j) k[j] = four(&keys[across + kAcross * j][d]);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float4 x = four(&q[down + kDown * i][first + d]);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) s[i][j] = s[i][j] + x.x * k[j].x + x.y * k[j].y + x.z * k[j].z + x.w * k[j].w;
    }
  }
}

// sum[i][…] += Σ weights[query i][position] * values[position][…] over one slice's dimensions.
template <int kRows>
__device__ __forceinline__ void add_values(const float (*weights)[kBlockTokens + kPad],
                                           const float (*values)[kSlice + kPad], float (&sum)[kRows][kColumns]) {
  const int down = threadIdx.x / kAcross, across = threadIdx.x % kAcross;
#pragma unroll 2
  for (int p = 0; p < kBlockTokens; p += 4) {
    float4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = four(&values[p + j][across * kColumns]);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float4 w = four(&weights[down + kDown * i][p]);
      const float each[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        sum[i][0] += each[j] * v[j].x;
        sum[i][1] += each[j] * v[j].y;
        sum[i][2] += each[j] * v[j].z;
        sum[i][3] += each[j] * v[j].w;
      }
    }
  }
}

// A thread's share of the running softmax (Milakov & Gimelshein 2018); high and total are the same in all threads of a
// query.
template <int kRows, int kSlices>
struct Running {
  float sum[kSlices][kRows][kColumns], high[kRows], total[kRows];
};

// Scores to weights, of the positions before each query's end; what was summed before keeps its share.
template <int kRows, int kSlices>
__device__ __forceinline__ void soften(float scale, float (&s)[kRows][kColumns], const int (&left)[kRows],
                                       float (*weights)[kBlockTokens + kPad], Running<kRows, kSlices>& r) {
  const int down = threadIdx.x / kAcross, across = threadIdx.x % kAcross;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float now = kLow;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      s[i][j] *= scale;
      if (across + kAcross * j < left[i]) now = fmaxf(now, s[i][j]);
    }
    now = fmaxf(r.high[i], lanes_max<kAcross>(now));
    const float share = __expf(r.high[i] - now);
    float total = 0;
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
      const float weight = across + kAcross * j < left[i] ? __expf(s[i][j] - now) : 0.0f;
      weights[down + kDown * i][across + kAcross * j] = weight;
      total += weight;
    }
    r.high[i] = now;
    r.total[i] = r.total[i] * share + lanes_sum<kAcross>(total);
#pragma unroll
    for (int c = 0; c < kSlices; ++c) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) r.sum[c][i][j] *= share;
    }
  }
}

// The queries [from, to) of the block, which are one sequence's, against its positions [0, longest).
template <KvType kType, int kQueries, int kSlices>
__device__ __forceinline__ void attend_sequence(const Prompt& o, int head, int from, int to, int longest,
                                                Tiles<kQueries, kSlices>& t, Running<kQueries / kDown, kSlices>& r) {
  constexpr int kRows = kQueries / kDown;
  const int down = threadIdx.x / kAcross;
  const int32_t* table = o.a.places.tables + size_t(t.sequence[from]) * o.a.places.stride;
  int block = table[0];
  Fetched<kType> next = fetch<kType>(o.kv, block, kKeys, head, 0, longest);
  for (int start = 0; start < longest; start += kBlockTokens) {
    const int positions = longest - start;
    float s[kRows][kColumns] = {};
#pragma unroll
    for (int c = 0; c < kSlices; ++c) {
      __syncthreads();  // the slice before was read
      keep<kType>(next, t.slice);
      const bool last = c + 1 == kSlices;
      next = fetch<kType>(o.kv, block, last ? kValues : kKeys, head, last ? 0 : c + 1, positions);
      __syncthreads();
      add_scores<kRows>(t.q, c * kSlice, t.slice, s);
    }
    int left[kRows];
    for (int i = 0; i < kRows; ++i) {
      const int query = down + kDown * i;
      left[i] = query >= from && query < to ? t.position[query] + 1 - start : 0;
    }
    soften<kRows, kSlices>(o.a.scale, s, left, t.weights, r);
#pragma unroll
    for (int c = 0; c < kSlices; ++c) {
      __syncthreads();  // the slice before was read, the weights written
      keep<kType>(next, t.slice);
      if (c + 1 < kSlices) {
        next = fetch<kType>(o.kv, block, kValues, head, c + 1, positions);
      } else if (positions > kBlockTokens) {
        block = table[start / kBlockTokens + 1];
        next = fetch<kType>(o.kv, block, kKeys, head, 0, positions - kBlockTokens);
      }
      __syncthreads();
      add_values<kRows>(t.weights, t.slice, r.sum[c]);
    }
  }
}

// Queries of the block: [0, n) are queries first + i of a KV head, query r * group + g being head g of row r.
template <int kQueries, int kSlices>
__device__ __forceinline__ void load_queries(const Prompt& o, int head, int first, int n, Tiles<kQueries, kSlices>& t) {
  constexpr int kQuads = kSlices * kSlice / 4;
  const int dim = o.kv.head_dim;
  for (int i = threadIdx.x; i < kQueries * kQuads; i += kThreads) {
    const int query = i / kQuads, d = i % kQuads * 4, row = (first + query) / o.group, g = (first + query) % o.group;
    float4 x = make_float4(0, 0, 0, 0);
    if (query < n && d < dim) x = four(o.a.q + (size_t(row) * o.a.n_heads + head * o.group + g) * dim + d);
    *reinterpret_cast<float4*>(&t.q[query][d]) = x;
  }
  for (int i = threadIdx.x; i < n; i += kThreads) {
    t.position[i] = o.a.places.positions[(first + i) / o.group];
    t.sequence[i] = o.a.places.sequences[(first + i) / o.group];
  }
}

// Block: (queries, the last ones first, since they take longest; KV head).
template <KvType kType, int kQueries, int kSlices>
__global__ void __launch_bounds__(kThreads, 2) attend_tiles(Prompt o) {
  constexpr int kRows = kQueries / kDown;
  PI_DYNAMIC_SHARED(unsigned char, shared);
  Tiles<kQueries, kSlices>& t = *reinterpret_cast<Tiles<kQueries, kSlices>*>(shared);
  const int first = (gridDim.x - 1 - blockIdx.x) * kQueries, head = blockIdx.y, dim = o.kv.head_dim;
  const int n = min(kQueries, o.a.rows * o.group - first);
  load_queries(o, head, first, n, t);
  __syncthreads();

  Running<kRows, kSlices> r;
  for (int i = 0; i < kRows; ++i) r.high[i] = kLow, r.total[i] = 0;
#pragma unroll
  for (int c = 0; c < kSlices; ++c) {
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kColumns; ++j) r.sum[c][i][j] = 0;
    }
  }
  for (int from = 0, to; from < n; from = to) {
    int longest = 0;
    for (to = from; to < n && t.sequence[to] == t.sequence[from]; ++to) longest = max(longest, t.position[to] + 1);
    if (longest > 0) attend_sequence<kType>(o, head, from, to, longest, t, r);
  }

  const int down = threadIdx.x / kAcross, across = threadIdx.x % kAcross;
  for (int i = 0; i < kRows; ++i) {
    const int query = down + kDown * i, row = (first + query) / o.group, g = (first + query) % o.group;
    if (query >= n) continue;
    float* const out = o.a.out.x + (size_t(row) * o.a.n_heads + head * o.group + g) * dim;
    const float scale = r.total[i] > 0 ? 1.0f / r.total[i] : r.total[i];
#pragma unroll
    for (int c = 0; c < kSlices; ++c) {
      const int d = c * kSlice + across * kColumns;
      const float(&x)[kColumns] = r.sum[c][i];
      if (d < dim)
        *reinterpret_cast<float4*>(out + d) = make_float4(x[0] * scale, x[1] * scale, x[2] * scale, x[3] * scale);
    }
  }
}

template <KvType kType, int kQueries, int kSlices>
void launch_tiles(void* stream, const Prompt& o) {
  const dim3 grid((o.a.rows * o.group + kQueries - 1) / kQueries, o.kv.kv_heads);
  PI_LAUNCH((attend_tiles<kType, kQueries, kSlices>), grid, dim3(kThreads), sizeof(Tiles<kQueries, kSlices>), stream,
            o);
}

// Wider heads have fewer queries a block: their sums fill the registers.
template <KvType kType>
void launch_slices(void* stream, const Prompt& o) {
  if (o.kv.head_dim <= 64) {
    launch_tiles<kType, 64, 2>(stream, o);
  } else if (o.kv.head_dim <= 96) {
    launch_tiles<kType, 64, 3>(stream, o);
  } else if (o.kv.head_dim <= 128) {
    launch_tiles<kType, 64, 4>(stream, o);
  } else {
    launch_tiles<kType, 32, 8>(stream, o);
  }
}

}  // namespace

void attend_prompts(void* stream, const Attend& a) {
  const Prompt o{a, pages_of(a.kv), a.n_heads / a.kv.kv_heads};
  switch (a.kv.type) {
    case KvType::kF32:
      launch_slices<KvType::kF32>(stream, o);
      break;
    case KvType::kF16:
      launch_slices<KvType::kF16>(stream, o);
      break;
    case KvType::kQ8:
      launch_slices<KvType::kQ8>(stream, o);
      break;
  }
  if (a.out.quants) quantize(stream, {a.out, a.rows});  // a block of 32 columns may be of two heads
}

}  // namespace pi::cuda
