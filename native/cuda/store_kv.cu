// Rotates queries and keys and stores keys and values, a warp a head's vector, in one pass over it.
#include "cuda/kv.cuh"
#include "cuda/launchers.h"
#include "cuda/reduce.cuh"

namespace pi::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostPairs = 4;  // a lane's, of at most 256 / 2

struct Store {
  StoreKv a;
  KvPages kv;
  int vectors;  // of a row: keys, values and, where there is something to rotate, queries
};

// A lane has elements i and head_dim / 2 + i for i = lane, lane + 32, …: what is rotated together.
struct Pairs {
  float low[kMostPairs], high[kMostPairs];
};

__device__ __forceinline__ void rotate(Pairs& p, const StoreKv& a, int position, int half, int lane) {
  const float* cosine = a.cosine + size_t(position) * half;
  const float* sine = a.sine + size_t(position) * half;
  for (int k = 0; k < kMostPairs; ++k) {
    const int i = lane + k * kWarp;
    if (i >= half) continue;
    const float c = cosine[i], s = sine[i], low = p.low[k], high = p.high[k];
    p.low[k] = low * c - high * s;
    p.high[k] = high * c + low * s;
  }
}

template <KvType kType>
__device__ __forceinline__ void store_element(const KvTile& tile, int i, float x, float inverse) {
  if constexpr (kType == KvType::kF32) reinterpret_cast<float*>(tile.data)[i] = x;
  if constexpr (kType == KvType::kF16) reinterpret_cast<uint16_t*>(tile.data)[i] = f32_to_f16_bits(x);
  if constexpr (kType == KvType::kQ8) reinterpret_cast<int8_t*>(tile.data)[i] = static_cast<int8_t>(__float2int_rn(x * inverse));
}

template <KvType kType>
__device__ __forceinline__ void store_vector(const Pairs& p, const KvTile& tile, int slot, int half, int lane) {
  float inverse = 0;
  if constexpr (kType == KvType::kQ8) {
    float high = 0;
    for (int k = 0; k < kMostPairs; ++k) high = fmaxf(high, fmaxf(fabsf(p.low[k]), fabsf(p.high[k])));
    high = lanes_max(high);
    inverse = high > 0 ? 127.0f / high : 0.0f;
    if (lane == 0) tile.scales[slot] = high / 127.0f;
  }
  for (int k = 0; k < kMostPairs; ++k) {
    const int i = lane + k * kWarp;
    if (i >= half) continue;
    store_element<kType>(tile, slot * 2 * half + i, p.low[k], inverse);
    store_element<kType>(tile, slot * 2 * half + half + i, p.high[k], inverse);
  }
}

template <KvType kType>
__global__ void __launch_bounds__(kWarps * kWarp) store_kv_rows(Store o) {
  const StoreKv& a = o.a;
  const int row = blockIdx.x, lane = threadIdx.x % kWarp, heads = o.kv.kv_heads, half = o.kv.head_dim / 2;
  const int vector = blockIdx.y * kWarps + threadIdx.x / kWarp, position = a.places.positions[row];
  if (vector >= o.vectors || position < 0) return;
  const bool is_key = vector < heads, is_query = vector >= 2 * heads;
  float* const q = a.q + (size_t(row) * a.n_heads + (vector - 2 * heads)) * 2 * half;
  const float* x = is_query ? q : (is_key ? a.key : a.value) + (size_t(row) * heads + vector % heads) * 2 * half;
  Pairs p;
  for (int k = 0; k < kMostPairs; ++k) {
    const int i = lane + k * kWarp;
    p.low[k] = i < half ? x[i] : 0.0f;
    p.high[k] = i < half ? x[half + i] : 0.0f;
  }
  if (a.cosine && (is_key || is_query)) rotate(p, a, position, half, lane);
  if (is_query) {
    for (int k = 0; k < kMostPairs; ++k) {
      const int i = lane + k * kWarp;
      if (i < half) q[i] = p.low[k], q[half + i] = p.high[k];
    }
    return;
  }
  const int block = a.places.tables[size_t(a.places.sequences[row]) * a.places.stride + position / kBlockTokens];
  store_vector<kType>(p, kv_tile<kType>(o.kv, block, is_key ? kKeys : kValues, vector % heads), position % kBlockTokens, half, lane);
}

}  // namespace

void store_kv(void* stream, const StoreKv& a) {
  const Store o{a, pages_of(a.kv), 2 * a.kv.kv_heads + (a.cosine ? a.n_heads : 0)};
  const dim3 grid(a.rows, (o.vectors + kWarps - 1) / kWarps), block(kWarps * kWarp);
  switch (a.kv.type) {
    case KvType::kF32:
      PI_LAUNCH(store_kv_rows<KvType::kF32>, grid, block, 0, stream, o);
      break;
    case KvType::kF16:
      PI_LAUNCH(store_kv_rows<KvType::kF16>, grid, block, 0, stream, o);
      break;
    case KvType::kQ8:
      PI_LAUNCH(store_kv_rows<KvType::kQ8>, grid, block, 0, stream, o);
      break;
  }
}

}  // namespace pi::cuda
