// Rotates queries and keys and stores keys and values, a warp a head's vector.
#include "cuda/launchers.h"
#include "cuda/new_kv.cuh"

namespace pi::cuda {
namespace {

constexpr int kWarps = 4;

struct Store {
  StoreKv a;
  KvPages kv;
  int vectors;  // of a row: keys, values and, where there is something to rotate, queries
};

template <KvType kType>
__global__ void __launch_bounds__(kWarps* kWarp) store_kv_rows(Store o) {
  const StoreKv& a = o.a;
  const int row = blockIdx.x, heads = o.kv.kv_heads, vector = blockIdx.y * kWarps + threadIdx.x / kWarp;
  const int position = a.places.positions[row];
  if (vector >= o.vectors || position < 0) return;
  if (vector < 2 * heads) {
    const int block = a.places.tables[size_t(a.places.sequences[row]) * a.places.stride + position / kBlockTokens];
    return store_head<kType>(a.now, o.kv, vector < heads ? kKeys : kValues, row, vector % heads, position, block);
  }
  const int lane = threadIdx.x % kWarp, half = o.kv.head_dim / 2;
  float* const q = a.q + (size_t(row) * a.n_heads + (vector - 2 * heads)) * 2 * half;
  Pairs p = load_pairs(q, half, lane);
  rotate(p, a.now, position, half, lane);
  for (int k = 0; k < kMostPairs; ++k) {
    const int i = lane + k * kWarp;
    if (i < half) q[i] = p.low[k], q[half + i] = p.high[k];
  }
}

}  // namespace

void store_kv(void* stream, const StoreKv& a) {
  const Store o{a, pages_of(a.kv), 2 * a.kv.kv_heads + (a.now.cosine ? a.n_heads : 0)};
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
