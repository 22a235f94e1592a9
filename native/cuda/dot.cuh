// Dot products of rows of weights with rows of x, the work of decoding: a warp a row (or a few), every lane a chunk of
// each 32, so that a load of a warp is 512 neighbouring bytes. x is staged in shared memory, tile by tile of its
// columns.
//
// A lane adds its chunks in their order and the lanes are added as a tree, whatever the tiles and however many rows of
// x are multiplied together: a sum's bits depend on its row of weights and its row of x alone.
#pragma once

#include "cuda/kernels.h"
#include "cuda/quantize.cuh"
#include "cuda/reduce.cuh"
#include "cuda/weights.cuh"

namespace pi::cuda {

// What lies in a block's shared memory: units of kT rows of x, and the scales of block types.
template <DType kType, int kT>
struct Tiles {
  using W = Weights<kType>;
  static constexpr int kMostChunks = 2048 / (W::kUnits * kT);   // 32 KiB of units
  static constexpr int kScales = W::kBlocks ? W::kColumns : 0;  // of 32 chunks
  static PI_HOST_DEVICE constexpr int chunks(int cols) {
    const int all = (chunks_of<kType>(cols) + kWarp - 1) / kWarp * kWarp;
    return all < kMostChunks ? all : kMostChunks;
  }
  static constexpr size_t shared_bytes(int cols) {
    return size_t(kT) * chunks(cols) * (W::kUnits * sizeof(uint4)) +
           size_t(kT) * chunks(cols) / kWarp * kScales * sizeof(float);
  }
};

// kT rows of x, those past the last as zeros. Every thread of the block makes one, and all make the same calls.
template <DType kType, int kT>
class Staged {
 public:
  using W = Weights<kType>;

  __device__ Staged(const DeviceRows& x, int rows, uint4* shared)
      : x_(x), rows_(rows), units_(shared), tile_(Tiles<kType, kT>::chunks(x.cols)), all_(chunks_of<kType>(x.cols)) {
    scales_ = reinterpret_cast<float*>(shared + size_t(kT) * tile_ * W::kUnits);
  }

  // Row 0 of what is staged from now on.
  __device__ __forceinline__ void begin_at(int t0) {
    if (t0 != t0_) held_ = -1;
    t0_ = t0;
  }

  __device__ __forceinline__ int tiles() const { return (all_ + tile_ - 1) / tile_; }
  __device__ __forceinline__ int first(int tile) const { return tile * tile_; }
  __device__ __forceinline__ int count(int tile) const { return min(tile_, all_ - first(tile)); }
  __device__ __forceinline__ bool holds(int tile) const { return tile == held_; }
  __device__ __forceinline__ int cols() const { return x_.cols; }

  // Brings a tile in, unless it is there.
  __device__ void stage(int tile) {
    if (holds(tile)) return;
    __syncthreads();
    if constexpr (kType == DType::kBit) {
      stage_signs(tile);
    } else if constexpr (!W::kBlocks) {
      stage_floats(tile);
    } else if (x_.quants != nullptr) {
      stage_quants(tile);
    } else {
      quantize(tile);
    }
    __syncthreads();
    held_ = tile;
  }

  // What row t has at chunk c of the tile.
  __device__ __forceinline__ void units(int t, int c, uint4 (&out)[W::kUnits]) const {
#pragma unroll
    for (int v = 0; v < W::kUnits; ++v) out[v] = units_[at(t, c, v)];
  }
  __device__ __forceinline__ float scale(int t, int c) const {
    if constexpr (!W::kBlocks) return 1.0f;
    return scales_[(t * tile_ + c) * W::kColumns / kQuantBlock];
  }

 private:
  // The lanes' first units side by side, then their second ones: read without a conflict of banks.
  __device__ __forceinline__ int at(int t, int c, int v) const {
    return t * tile_ * W::kUnits + (c / kWarp * W::kUnits + v) * kWarp + c % kWarp;
  }
  __device__ __forceinline__ int at(int t, int unit) const { return at(t, unit / W::kUnits, unit % W::kUnits); }

  // Columns [col, col + 4) of row t0 + t, zeros past the last.
  __device__ __forceinline__ float4 four(int t, int col) const {
    float4 out = make_float4(0, 0, 0, 0);
    if (t0_ + t >= rows_) return out;
    const float* from = x_.x + size_t(t0_ + t) * x_.cols + col;
    if (x_.cols % 4 == 0) return col < x_.cols ? *reinterpret_cast<const float4*>(from) : out;
    if (col < x_.cols) out.x = from[0];
    if (col + 1 < x_.cols) out.y = from[1];
    if (col + 2 < x_.cols) out.z = from[2];
    if (col + 3 < x_.cols) out.w = from[3];
    return out;
  }

  __device__ void stage_floats(int tile) {
    const int col = first(tile) * W::kColumns, n = count(tile) * W::kUnits;
    for (int t = 0; t < kT; ++t) {
      for (int unit = threadIdx.x; unit < n; unit += blockDim.x) {
        *reinterpret_cast<float4*>(&units_[at(t, unit)]) = four(t, col + 4 * unit);
      }
    }
  }

  __device__ void stage_quants(int tile) {
    const int col = first(tile) * W::kColumns, n = count(tile) * W::kUnits,
              n_scales = count(tile) * W::kColumns / kQuantBlock;
    for (int t = 0; t < kT; ++t) {
      const bool inside = t0_ + t < rows_;
      const size_t from = size_t(t0_ + t) * x_.cols + col;
      for (int unit = threadIdx.x; unit < n; unit += blockDim.x) {
        units_[at(t, unit)] =
            inside ? *reinterpret_cast<const uint4*>(x_.quants + from + 16 * unit) : make_uint4(0, 0, 0, 0);
      }
      for (int i = threadIdx.x; i < n_scales; i += blockDim.x) {
        scales_[t * tile_ * W::kColumns / kQuantBlock + i] = inside ? x_.scales[from / kQuantBlock + i] : 0.0f;
      }
    }
  }

  __device__ void quantize(int tile) {
    const int col = first(tile) * W::kColumns, n = count(tile) * W::kColumns / 4;
    for (int t = 0; t < kT; ++t) {
      for (int begin = 0; begin < n; begin += blockDim.x) {  // eight lanes are all inside or all outside
        const int i = begin + static_cast<int>(threadIdx.x);
        const float4 x = i < n ? four(t, col + 4 * i) : make_float4(0, 0, 0, 0);
        const float columns[kLaneColumns] = {x.x, x.y, x.z, x.w};
        float scale;
        const unsigned bytes = quantize_columns(columns, scale);
        if (i >= n) continue;
        reinterpret_cast<unsigned*>(&units_[at(t, i / 4)])[i % 4] = bytes;
        if (i % 8 == 0) scales_[t * tile_ * W::kColumns / kQuantBlock + i / 8] = scale;
      }
    }
  }

  __device__ void stage_signs(int tile) {
    const int col = first(tile) * W::kColumns, n = count(tile) * 4, warps = blockDim.x / kWarp;
    for (int t = 0; t < kT; ++t) {
      const float* from = x_.x + size_t(t0_ + t) * x_.cols;
      for (int word = threadIdx.x / kWarp; word < n; word += warps) {
        const int j = col + word * 32 + static_cast<int>(threadIdx.x) % kWarp;
        const bool inside = t0_ + t < rows_ && j < x_.cols;
        const unsigned bits = __ballot_sync(kAllLanes, inside && __float_as_uint(from[j]) >> 31);
        if (threadIdx.x % kWarp == 0) reinterpret_cast<unsigned*>(&units_[at(t, word / 4)])[word % 4] = bits;
      }
    }
  }

  const DeviceRows& x_;
  int rows_, t0_ = 0;
  uint4* units_;
  float* scales_;
  int tile_, all_, held_ = -1;
};

__device__ __forceinline__ int lanes_sum(int x) {
  for (int with = kWarp / 2; with > 0; with /= 2) x += __shfl_xor_sync(kAllLanes, x, with);
  return x;
}

// sum[r][t] += what a lane has of a tile of row[r] · x[t]. kUnroll loads of each row are in flight.
template <int kUnroll, DType kType, int kR, int kT>
__device__ __forceinline__ void add_tile(const Staged<kType, kT>& x, int tile, const uint8_t* const (&row)[kR],
                                         typename Weights<kType>::Sum (&sum)[kR][kT]) {
  using W = Weights<kType>;
  const int n = x.count(tile), first = x.first(tile);
  for (int begin = threadIdx.x % kWarp; begin < n; begin += kUnroll * kWarp) {
    typename W::Chunk w[kUnroll][kR];
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
#pragma unroll
      for (int r = 0; r < kR; ++r) {
        if (begin + u * kWarp < n) w[u][r] = W::load(row[r], x.cols(), first + begin + u * kWarp);
      }
    }
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) {
      const int c = begin + u * kWarp;
      if (c >= n) break;
      typename W::Values values[kR];
#pragma unroll
      for (int r = 0; r < kR; ++r) values[r].unpack(w[u][r]);
#pragma unroll
      for (int t = 0; t < kT; ++t) {
        uint4 units[W::kUnits];
        x.units(t, c, units);
        const float scale = x.scale(t, c);
#pragma unroll
        for (int r = 0; r < kR; ++r) sum[r][t] = values[r].dot(units, scale, sum[r][t]);
      }
    }
  }
}

// Asks for a tile of a row, while x is staged.
template <DType kType, int kT>
__device__ __forceinline__ void prefetch_tile(const Staged<kType, kT>& x, int tile, const uint8_t* row) {
  for (int line = threadIdx.x % kWarp; line * 8 < x.count(tile); line += kWarp)
    prefetch_line(row + 16 * x.first(tile) + 128 * line);
}

// sum[r][t] = row[r] · x[t]; for type bit: columns whose signs differ. Every warp of the block calls; one that is
// `idle` has no rows and gets no sums, all lanes of the others get all of them.
template <int kUnroll, DType kType, int kR, int kT>
__device__ __forceinline__ void dot_rows(Staged<kType, kT>& x, const uint8_t* const (&row)[kR], bool idle,
                                         typename Weights<kType>::Sum (&sum)[kR][kT]) {
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int t = 0; t < kT; ++t) sum[r][t] = 0;
  }
  for (int tile = 0; tile < x.tiles(); ++tile) {
    if (!idle && !x.holds(tile)) {
      for (int r = 0; r < kR; ++r) prefetch_tile(x, tile, row[r]);
    }
    x.stage(tile);
    if (!idle) add_tile<kUnroll>(x, tile, row, sum);
  }
  if (idle) return;
#pragma unroll
  for (int r = 0; r < kR; ++r) {
#pragma unroll
    for (int t = 0; t < kT; ++t) sum[r][t] = lanes_sum(sum[r][t]);
  }
}

// Calls f with a type of weights as a type: TypeOf<…>::value.
template <DType kType>
struct TypeOf {
  static constexpr DType value = kType;
};
template <typename F>
void with_weight_type(DType type, F&& f) {
  switch (type) {
    case DType::kF16:
      return f(TypeOf<DType::kF16>{});
    case DType::kBF16:
      return f(TypeOf<DType::kBF16>{});
    case DType::kQ8_0:
      return f(TypeOf<DType::kQ8_0>{});
    case DType::kQ4_0:
      return f(TypeOf<DType::kQ4_0>{});
    default:
      return f(TypeOf<DType::kF32>{});
  }
}

// Calls f with how many rows of x are multiplied together, as a type: the fewest that hold `rows`, or eight at a time.
template <int kT>
struct RowsOf {
  static constexpr int value = kT;
};
template <typename F>
void with_rows(int rows, F&& f) {
  if (rows <= 1) return f(RowsOf<1>{});
  if (rows <= 2) return f(RowsOf<2>{});
  if (rows <= 4) return f(RowsOf<4>{});
  return f(RowsOf<8>{});
}

}  // namespace pi::cuda
