// Attention over the paged KV cache; compiled once per instruction set, as kernels-inl.h is. Keys are kept transposed,
// so that a tile's scores are sums of vectors of positions.

namespace pi::kernels::PI_ISA {
namespace {

// How a tile of keys or values is read, q8 without the scales of its positions.
template <KvType>
struct Kv;

template <>
struct Kv<KvType::kF32> {
  static constexpr int kBytes = 4;
  static V vector(const uint8_t* p, size_t i) { return load(reinterpret_cast<const float*>(p) + i); }
  static float element(const uint8_t* p, size_t i) { return reinterpret_cast<const float*>(p)[i]; }
};
template <>
struct Kv<KvType::kF16> {
  static constexpr int kBytes = 2;
  static V vector(const uint8_t* p, size_t i) { return load_f16(reinterpret_cast<const uint16_t*>(p) + i); }
  static float element(const uint8_t* p, size_t i) { return f16(reinterpret_cast<const uint16_t*>(p)[i]); }
};
template <>
struct Kv<KvType::kQ8> {
  static constexpr int kBytes = 1;
  static V vector(const uint8_t* p, size_t i) { return from_i8(reinterpret_cast<const int8_t*>(p) + i); }
  static float element(const uint8_t* p, size_t i) { return reinterpret_cast<const int8_t*>(p)[i]; }
};

constexpr int kTileVectors = kKvBlockTokens / kLanes;

inline const float* kv_scales(const uint8_t* tile, int head_dim) {
  return reinterpret_cast<const float*>(tile + kKvBlockTokens * head_dim);
}

// Asks for row `i` of 32 elements of a tile that will be read after this one: tiles are too short for the hardware to
// see the next one coming.
template <KvType kType>
inline void prefetch_row(const uint8_t* tile, int i) {
  constexpr size_t kRow = kKvBlockTokens * Kv<kType>::kBytes;
  for (size_t at = 0; at < kRow; at += 64) __builtin_prefetch(tile + i * kRow + at, 0, 3);
}

// scores[g][position] = q[g] · key[position] for G heads; positions past the end hold anything.
template <KvType kType, int G>
inline void score_tile(const float* q, int head_dim, const uint8_t* keys, const uint8_t* next, float* scores) {
  using K = Kv<kType>;
  V acc[G][kTileVectors];
  for (auto& head : acc) {
    for (V& a : head) a = zero();
  }
  for (int d = 0; d < head_dim; ++d) {
    prefetch_row<kType>(next, d);
    for (int v = 0; v < kTileVectors; ++v) {
      const V k = K::vector(keys, size_t(d) * kKvBlockTokens + v * kLanes);
      for (int g = 0; g < G; ++g) acc[g][v] = fma(k, set1(q[g * head_dim + d]), acc[g][v]);
    }
  }
  for (int v = 0; v < kTileVectors; ++v) {
    const V scale = kType == KvType::kQ8 ? load(kv_scales(keys, head_dim) + v * kLanes) : set1(1.0f);
    for (int g = 0; g < G; ++g) store(scores + g * kKvBlockTokens + v * kLanes, mul(acc[g][v], scale));
  }
}

// Folds `n` positions into one query head's running softmax (Milakov & Gimelshein 2018; tiled as in FlashAttention):
// `out` is the sum of exp(score - max_score) * value, `total` the sum of the weights.
template <KvType kType>
inline void fold_tile(float* p, const uint8_t* values, const uint8_t* next, int head_dim, int n, float scale, float& max_score, float& total,
                      float* out) {
  using K = Kv<kType>;
  float high = max_score;
  for (int j = 0; j < n; ++j) {
    p[j] *= scale;
    high = p[j] > high ? p[j] : high;
  }
  map_vectors(p, n, [&](V a) { return exp(sub(a, set1(high))); });
  // The first tile starts from nothing; exp(-inf) must not be asked of the polynomial.
  const float keep = total > 0 ? std::exp(max_score - high) : 0.0f;
  max_score = high;
  total *= keep;
  for (int j = 0; j < n; ++j) total += p[j];
  if (kType == KvType::kQ8) {
    for (int j = 0; j < n; ++j) p[j] *= kv_scales(values, head_dim)[j];
  }
  for (int i = 0; i < head_dim; ++i) prefetch_row<kType>(next, i);
  int d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    V acc = mul(load(out + d), set1(keep));
    for (int j = 0; j < n; ++j) acc = fma(K::vector(values, size_t(j) * head_dim + d), set1(p[j]), acc);
    store(out + d, acc);
  }
  for (; d < head_dim; ++d) {
    float acc = out[d] * keep;
    for (int j = 0; j < n; ++j) acc += K::element(values, size_t(j) * head_dim + d) * p[j];
    out[d] = acc;
  }
}

// G query heads read each key once.
template <KvType kType, int G>
inline void attend_heads(const Attention& o, int first) {
  const float* q = o.q + first * o.head_dim;
  float* out = o.out + first * o.head_dim;
  float max_score[G], total[G];
  for (int g = 0; g < G; ++g) max_score[g] = -3.4e38f, total[g] = 0;
  for (int i = 0; i < G * o.head_dim; ++i) out[i] = 0;
  for (int start = 0, tile = 0; start < o.n_positions; start += kKvBlockTokens, ++tile) {
    const int n = o.n_positions - start < kKvBlockTokens ? o.n_positions - start : kKvBlockTokens;
    const size_t offset = o.table[tile] * o.block_bytes;
    const size_t next = start + n < o.n_positions ? o.table[tile + 1] * o.block_bytes : offset;
    float scores[G * kKvBlockTokens];
    score_tile<kType, G>(q, o.head_dim, o.keys + offset, o.values + offset, scores);
    for (int g = 0; g < G; ++g) {
      fold_tile<kType>(scores + g * kKvBlockTokens, o.values + offset, o.keys + next, o.head_dim, n, o.scale, max_score[g], total[g],
                       out + g * o.head_dim);
    }
  }
  for (int g = 0; g < G; ++g) {
    for (int d = 0; d < o.head_dim; ++d) out[g * o.head_dim + d] /= total[g];
  }
}

template <KvType kType>
inline void attention_of(const Attention& o) {
  int g = 0;
  for (; g + 4 <= o.group; g += 4) attend_heads<kType, 4>(o, g);
  for (; g < o.group; ++g) attend_heads<kType, 1>(o, g);
}

void attention(const Attention& o) {
  switch (o.type) {
    case KvType::kF32:
      return attention_of<KvType::kF32>(o);
    case KvType::kF16:
      return attention_of<KvType::kF16>(o);
    case KvType::kQ8:
      return attention_of<KvType::kQ8>(o);
  }
}

// Puts one position's key (transposed) or value into its tile.
inline void store_vector(KvType type, const float* x, int head_dim, int slot, bool transposed, uint8_t* tile) {
  const size_t first = transposed ? slot : size_t(slot) * head_dim, step = transposed ? kKvBlockTokens : 1;
  switch (type) {
    case KvType::kF32:
      for (int d = 0; d < head_dim; ++d) reinterpret_cast<float*>(tile)[first + d * step] = x[d];
      return;
    case KvType::kF16:
      for (int d = 0; d < head_dim; d += kLanes) {
        const int n = head_dim - d < kLanes ? head_dim - d : kLanes;
        uint16_t half[kLanes];
        store_f16(half, n == kLanes ? load(x + d) : tail(x + d, n));
        for (int i = 0; i < n; ++i) reinterpret_cast<uint16_t*>(tile)[first + (d + i) * step] = half[i];
      }
      return;
    case KvType::kQ8:
      float amax = 0;
      for (int d = 0; d < head_dim; ++d) amax = std::fabs(x[d]) > amax ? std::fabs(x[d]) : amax;
      const float inverse = amax > 0 ? 127.0f / amax : 0.0f;
      for (int d = 0; d < head_dim; ++d) {
        reinterpret_cast<int8_t*>(tile)[first + d * step] = static_cast<int8_t>(std::nearbyint(x[d] * inverse));
      }
      reinterpret_cast<float*>(tile + kKvBlockTokens * head_dim)[slot] = amax / 127.0f;
      return;
  }
}

void store_kv(KvType type, const float* key, const float* value, int head_dim, int slot, uint8_t* keys, uint8_t* values) {
  store_vector(type, key, head_dim, slot, true, keys);
  store_vector(type, value, head_dim, slot, false, values);
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
