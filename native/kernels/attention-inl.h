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

// Asks for row `i` of 32 elements of a tile that will be read after this one, if any: tiles are too short for the
// hardware to see the next one coming.
template <KvType kType>
inline void prefetch_row(const uint8_t* tile, int i) {
  constexpr size_t kRow = kKvBlockTokens * Kv<kType>::kBytes;
  if (!tile) return;
  for (size_t at = 0; at < kRow; at += 64) __builtin_prefetch(tile + i * kRow + at, 0, 3);
}

// G queries against the same tiles. Softmax weights of a tile: [query][position].
template <int G>
struct Heads {
  const Query* queries;
  float p[G][kKvBlockTokens];
  float high[G], total[G], keep[G];
};

// p[g][position] = q[g] · key[position]; positions past a query's end hold anything.
template <KvType kType, int G>
inline void score_tile(Heads<G>& h, int head_dim, const uint8_t* keys, const uint8_t* next, float scale) {
  using K = Kv<kType>;
  V acc[2][G][kTileVectors];  // of even and of odd dimensions: one sum alone would wait for its additions
  for (int g = 0; g < G; ++g) {
    for (int v = 0; v < kTileVectors; ++v) acc[0][g][v] = acc[1][g][v] = zero();
  }
  const auto add_dimension = [&](int d, int chain) {
    prefetch_row<kType>(next, d);
    V q[G];
    for (int g = 0; g < G; ++g) q[g] = set1(h.queries[g].q[d]);
    for (int v = 0; v < kTileVectors; ++v) {
      const V k = K::vector(keys, size_t(d) * kKvBlockTokens + v * kLanes);
      for (int g = 0; g < G; ++g) acc[chain][g][v] = fma(k, q[g], acc[chain][g][v]);
    }
  };
  int d = 0;
  for (; d + 2 <= head_dim; d += 2) {
    add_dimension(d, 0);
    add_dimension(d + 1, 1);
  }
  if (d < head_dim) add_dimension(d, 0);
  for (int v = 0; v < kTileVectors; ++v) {
    V factor = set1(scale);
    if (kType == KvType::kQ8) factor = mul(factor, load(kv_scales(keys, head_dim) + v * kLanes));
    for (int g = 0; g < G; ++g) store(h.p[g] + v * kLanes, mul(add(acc[0][g][v], acc[1][g][v]), factor));
  }
}

// Turns the scores of n positions into weights e^(score - highest so far), and what was summed before into its share
// (Milakov & Gimelshein 2018; tiled as in FlashAttention).
template <int G>
inline void soften(Heads<G>& h, int g, int n) {
  float* p = h.p[g];
  if (n < 0) n = 0;  // a query that ends before this tile
  for (int j = n; j < kKvBlockTokens; ++j) p[j] = -3.4e38f;
  V high = load(p);
  for (int v = 1; v < kTileVectors; ++v) high = max(high, load(p + v * kLanes));
  const float highest_now = highest(high), before = h.high[g];
  h.high[g] = highest_now > before ? highest_now : before;
  // The first tile starts from nothing; exp(-inf) must not be asked of the polynomial.
  h.keep[g] = h.total[g] > 0 ? std::exp(before - h.high[g]) : 0.0f;
  V sums = zero();
  for (int v = 0; v < kTileVectors; ++v) store(p + v * kLanes, exp(sub(load(p + v * kLanes), set1(h.high[g]))));
  for (int j = n; j < kKvBlockTokens; ++j) p[j] = 0;
  for (int v = 0; v < kTileVectors; ++v) sums = add(sums, load(p + v * kLanes));
  h.total[g] = h.total[g] * h.keep[g] + sum(sums);
}

// out[g] = keep[g] * out[g] + Σ p[g][position] value[position], over n positions.
template <KvType kType, int G>
inline void fold_values(Heads<G>& h, const uint8_t* values, const uint8_t* next, int head_dim, int n) {
  using K = Kv<kType>;
  if (kType == KvType::kQ8) {
    for (int g = 0; g < G; ++g) {
      for (int j = 0; j < n; ++j) h.p[g][j] *= kv_scales(values, head_dim)[j];
    }
  }
  for (int i = 0; i < head_dim; ++i) prefetch_row<kType>(next, i);
  int d = 0;
  for (; d + kLanes <= head_dim; d += kLanes) {
    V acc[G];
    for (int g = 0; g < G; ++g) acc[g] = mul(load(h.queries[g].out + d), set1(h.keep[g]));
    for (int j = 0; j < n; ++j) {
      const V value = K::vector(values, size_t(j) * head_dim + d);
      for (int g = 0; g < G; ++g) acc[g] = fma(value, set1(h.p[g][j]), acc[g]);
    }
    for (int g = 0; g < G; ++g) store(h.queries[g].out + d, acc[g]);
  }
  for (; d < head_dim; ++d) {
    for (int g = 0; g < G; ++g) {
      float acc = h.queries[g].out[d] * h.keep[g];
      for (int j = 0; j < n; ++j) acc += K::element(values, size_t(j) * head_dim + d) * h.p[g][j];
      h.queries[g].out[d] = acc;
    }
  }
}

template <KvType kType, int G>
inline void attend(const Attention& o, const Query* queries) {
  Heads<G> h;
  h.queries = queries;
  int longest = 0;
  for (int g = 0; g < G; ++g) {
    h.high[g] = -3.4e38f, h.total[g] = 0;
    longest = queries[g].n_positions > longest ? queries[g].n_positions : longest;
    for (int d = 0; d < o.head_dim; ++d) queries[g].out[d] = 0;
  }
  for (int start = 0, tile = 0; start < longest; start += kKvBlockTokens, ++tile) {
    const int n = longest - start < kKvBlockTokens ? longest - start : kKvBlockTokens;
    const size_t offset = o.table[tile] * o.block_bytes;
    const uint8_t* next = start + n < longest ? o.keys + o.table[tile + 1] * o.block_bytes : o.next_keys;
    score_tile<kType, G>(h, o.head_dim, o.keys + offset, o.values + offset, o.scale);
    for (int g = 0; g < G; ++g) soften(h, g, queries[g].n_positions - start < n ? queries[g].n_positions - start : n);
    fold_values<kType, G>(h, o.values + offset, next, o.head_dim, n);
  }
  for (int g = 0; g < G; ++g) {
    for (int d = 0; d < o.head_dim; ++d) queries[g].out[d] /= h.total[g];
  }
}

template <KvType kType>
inline void attention_of(const Attention& o) {
  int i = 0;
  for (; i + 4 <= o.n_queries; i += 4) attend<kType, 4>(o, o.queries + i);
  for (; i < o.n_queries; ++i) attend<kType, 1>(o, o.queries + i);
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

void store_kv(KvType type, const float* key, const float* value, int head_dim, int slot, uint8_t* keys,
              uint8_t* values) {
  store_vector(type, key, head_dim, slot, true, keys);
  store_vector(type, value, head_dim, slot, false, values);
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
