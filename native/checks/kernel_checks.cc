// Every kernel of every instruction set against a naive f64 twin, and the order-of-summation promises bit for bit.
#include <algorithm>
#include <cstring>

#include "base/aligned.h"
#include "checks/check.h"
#include "kernels/kernels.h"

namespace pi::checks {
namespace {

using kernels::Matrix;
using kernels::Table;

constexpr DType kTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0};
constexpr const char* kTypeNames[] = {"f32", "f16", "bf16", "q8_0", "q4_0"};

// A matrix of `type` with its exact values in f64.
struct Weights {
  std::vector<uint8_t> bytes;
  std::vector<double> values;
  Matrix view;
};

void fill_block(std::mt19937& random, bool saturate, BlockQ8_0& block, double* values) {
  block.d = f32_to_f16(saturate ? 100.0f : 0.01f + (random() % 100) * 1e-4f);
  for (int i = 0; i < 32; ++i) {
    block.q[i] = static_cast<int8_t>(saturate ? (random() % 2 ? 127 : -128) : static_cast<int>(random() % 255) - 127);
    values[i] = double(f16_to_f32(block.d)) * block.q[i];
  }
}

void fill_block(std::mt19937& random, bool saturate, BlockQ4_0& block, double* values) {
  block.d = f32_to_f16(saturate ? 100.0f : 0.01f + (random() % 100) * 1e-4f);
  for (int i = 0; i < 16; ++i) {
    block.q[i] = static_cast<uint8_t>(saturate ? (random() % 2 ? 0xff : 0x00) : random() % 256);
    values[i] = double(f16_to_f32(block.d)) * ((block.q[i] & 15) - 8);
    values[i + 16] = double(f16_to_f32(block.d)) * ((block.q[i] >> 4) - 8);
  }
}

template <typename Block>
void fill_blocks(std::mt19937& random, bool saturate, Weights& w, size_t n) {
  for (size_t b = 0; b < n / 32; ++b) {
    fill_block(random, saturate, reinterpret_cast<Block*>(w.bytes.data())[b], &w.values[b * 32]);
  }
}

Weights make_weights(DType type, int rows, int cols, uint32_t seed, bool saturate) {
  std::mt19937 random(seed);
  const size_t n = size_t(rows) * cols;
  Weights w;
  w.bytes.resize(rows * row_bytes(type, cols));
  w.values.resize(n);
  if (type == DType::kQ8_0) fill_blocks<BlockQ8_0>(random, saturate, w, n);
  if (type == DType::kQ4_0) fill_blocks<BlockQ4_0>(random, saturate, w, n);
  if (block_size(type) == 1) {
    const std::vector<float> x = random_vector(n, seed, saturate ? 1e4f : 1.0f);
    for (size_t i = 0; i < n; ++i) {
      const uint16_t half = type == DType::kF16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
      if (type == DType::kF32) {
        std::memcpy(&w.bytes[i * 4], &x[i], 4);
        w.values[i] = x[i];
      } else {
        std::memcpy(&w.bytes[i * 2], &half, 2);
        w.values[i] = type == DType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
      }
    }
  }
  w.view = {w.bytes.data(), type, row_bytes(type, cols), cols};
  return w;
}

// Rounding error of a sum of n products in f32, whatever its order: n * eps * sum |a b| (Higham, 2002), with slack for
// the extra product by a block's scale.
double tolerance(int n, double absolute_sum) { return (n + 8) * 6e-8 * absolute_sum + 1e-30; }

std::string at(const char* what, size_t i, double expected, double actual) {
  return std::string(what) + " " + std::to_string(i) + ": expected " + std::to_string(expected) + ", got " +
         std::to_string(actual);
}

// Rows of activations as a table's products read them, and the exact values that stand for them.
struct Inputs {
  std::vector<float> x;
  std::vector<uint8_t> quants;
  std::vector<double> values;
  kernels::Activations view;
};

// What quantize wrote: groups of blocks, their columns 0-15, their columns 16-31, a scale in four lanes.
std::vector<double> quantized_values(const Table& k, const uint8_t* quants, int cols) {
  const int blocks = k.lanes / 4;
  const size_t group_bytes = 64 * blocks;
  std::vector<double> out(cols);
  for (int j = 0; j < cols; ++j) {
    const int block = j / 32 % blocks, in_block = j % 32;
    const uint8_t* group = quants + j / 32 / blocks * group_bytes;
    const int8_t q = static_cast<int8_t>(group[(in_block < 16 ? 0 : 16 * blocks) + 16 * block + in_block % 16]);
    float scale;
    std::memcpy(&scale, group + 48 * blocks + 16 * block, sizeof scale);
    out[j] = double(q) * scale;
  }
  return out;
}

Inputs make_inputs(const Table& k, DType type, int tokens, int cols, float scale) {
  Inputs in;
  in.x = random_vector(size_t(tokens) * cols, 8, scale);
  in.values.assign(in.x.begin(), in.x.end());
  const size_t bytes = kernels::quantized_bytes(cols);
  in.quants.resize(tokens * bytes);
  for (int t = 0; block_size(type) > 1 && t < tokens; ++t) {
    k.quantize(&in.x[size_t(t) * cols], cols, &in.quants[t * bytes]);
    const std::vector<double> row = quantized_values(k, &in.quants[t * bytes], cols);
    std::copy(row.begin(), row.end(), in.values.begin() + size_t(t) * cols);
  }
  in.view = {in.x.data(), size_t(cols), in.quants.data(), tokens};
  return in;
}

// Half a step, of 1/127 of the block's largest, everywhere; and zeros stay zeros.
std::string check_quantize(const Table& k, int cols) {
  std::vector<float> x = random_vector(cols, 20, 3.0f);
  for (int j = 32; j < 64; ++j) x[j] = 0;
  x[0] = 1e30f, x[70] = -1e-30f;
  std::vector<uint8_t> quants(kernels::quantized_bytes(cols));
  k.quantize(x.data(), cols, quants.data());
  const std::vector<double> got = quantized_values(k, quants.data(), cols);
  for (int j = 0; j < cols; ++j) {
    double high = 0;
    for (int i = j / 32 * 32; i < j / 32 * 32 + 32; ++i) high = std::max(high, std::fabs(double(x[i])));
    if (!(std::fabs(got[j] - x[j]) <= high / 127 * 0.50001)) return at("element", j, x[j], got[j]);
  }
  return "";
}

std::string check_dot(const Table& k, DType type, int rows, int cols, int tokens, bool saturate) {
  const Weights w = make_weights(type, rows, cols, 7, saturate);
  const Inputs in = make_inputs(k, type, tokens, cols, saturate ? 1e4f : 1.0f);
  std::vector<float> y(size_t(tokens) * rows), again(y.size());
  k.dot_rows({w.view, nullptr, 0, rows, in.view, y.data(), size_t(rows)});
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < rows; ++r) {
      double sum = 0, absolute = 0;
      for (int j = 0; j < cols; ++j) {
        const double product = w.values[size_t(r) * cols + j] * in.values[size_t(t) * cols + j];
        sum += product;
        absolute += std::fabs(product);
      }
      const double got = y[size_t(t) * rows + r];
      if (!(std::fabs(got - sum) <= tolerance(cols, absolute))) return at("row", r, sum, got);
    }
  }
  // Alone, one token at a time, in odd pieces, through an index list: the same bits.
  std::vector<int32_t> list(rows);
  for (int r = 0; r < rows; ++r) list[r] = r;
  for (int t = 0; t < tokens; ++t) {
    const kernels::Activations one{&in.x[size_t(t) * cols], size_t(cols),
                                   &in.quants[t * kernels::quantized_bytes(cols)], 1};
    for (int begin = 0; begin < rows; begin += 5) {
      k.dot_rows({w.view, list.data(), begin, std::min(rows, begin + 5), one, &again[size_t(t) * rows], size_t(rows)});
    }
  }
  return std::memcmp(y.data(), again.data(), y.size() * 4) == 0 ? "" : "bits depend on the tiling";
}

// y [tokens, rows of the output] of a product of the prefill.
std::vector<float> run_gemm(const Table& k, const Weights& w, bool transposed, int w_rows, const std::vector<float>& x,
                            int tokens, int panel) {
  const int inner = transposed ? w_rows : w.view.cols, rows = transposed ? w.view.cols : w_rows, tile = k.tile_tokens;
  const bool blocks = block_size(w.view.type) > 1;
  const int padded = (inner + 31) / 32 * 32, tiles = (tokens + tile - 1) / tile;
  const size_t tile_bytes = kernels::packed_bytes(padded, tile);
  Buffer<uint8_t> packed(tiles * tile_bytes), panels;
  for (int t = 0; t < tiles; ++t) {
    const int first = t * tile, n = std::min(tokens - first, tile);
    k.pack_tokens({&x[size_t(first) * inner], size_t(inner), n, inner, blocks && !transposed, &packed[t * tile_bytes]});
  }
  if (blocks && transposed) {
    Buffer<uint8_t> lanes = packed;  // f32 as a product leaves them
    for (int t = 0; t < tiles; ++t) {
      for (int i = 0; i < inner; i += 32) {
        const float* from = reinterpret_cast<const float*>(&lanes[t * tile_bytes]) + size_t(i) * tile;
        k.pack_rows({from, std::min(32, inner - i), &packed[t * tile_bytes + i / 32 * k.tile_block_bytes]});
      }
    }
    panels.resize((rows + 63) / 64 * ((inner + kernels::kPanelRows - 1) / kernels::kPanelRows) * k.panel_bytes);
    for (int i = 0; i < inner; i += 32) k.pack_columns({w.view, i, std::min(i + 32, inner), inner, panels.data()});
  }
  std::vector<float> y(size_t(tiles) * rows * tile), out(size_t(tokens) * rows);
  for (int begin = 0; begin < rows; begin += panel) {
    k.gemm({w.view, transposed, w_rows, begin, std::min(begin + panel, rows), packed.data(), tile_bytes, tokens,
            panels.data(), &y[begin * tile], size_t(rows) * tile});
  }
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < rows; ++r) out[size_t(t) * rows + r] = y[(size_t(t / tile) * rows + r) * tile + t % tile];
  }
  return out;
}

// `cols` beyond one panel; a token count that fills a tile, half a tile and less. Weights [rows, cols].
std::string check_gemm(const Table& k, DType type, bool transposed, bool saturate) {
  const int rows = transposed ? 1100 : 70, cols = transposed ? 96 : 1184, tokens = 2 * k.tile_tokens + 3;
  const int inner = transposed ? rows : cols, outer = transposed ? cols : rows;
  const Weights w = make_weights(type, rows, cols, 21, saturate);
  const std::vector<float> x = random_vector(size_t(tokens) * inner, 8, saturate ? 1e4f : 1.0f);
  std::vector<double> values(x.begin(), x.end());
  for (int t = 0; block_size(type) > 1 && !transposed && t < tokens; ++t) {
    std::vector<uint8_t> quants(kernels::quantized_bytes(cols));
    k.quantize(&x[size_t(t) * cols], cols, quants.data());
    const std::vector<double> row = quantized_values(k, quants.data(), cols);
    std::copy(row.begin(), row.end(), values.begin() + size_t(t) * cols);
  }
  const std::vector<float> y = run_gemm(k, w, transposed, rows, x, tokens, 64);
  const bool requantised = transposed && block_size(type) > 1;
  double squares = 0, errors = 0;
  for (int t = 0; t < tokens; ++t) {
    for (int r = 0; r < outer; ++r) {
      double sum = 0, absolute = 0;
      for (int j = 0; j < inner; ++j) {
        const double product =
            w.values[transposed ? size_t(j) * cols + r : size_t(r) * cols + j] * values[size_t(t) * inner + j];
        sum += product;
        absolute += std::fabs(product);
      }
      const double got = y[size_t(t) * outer + r];
      if (!requantised && !(std::fabs(got - sum) <= tolerance(inner, absolute))) return at("row", r, sum, got);
      squares += sum * sum;
      errors += (got - sum) * (got - sum);
    }
  }
  // Quantised anew along the sum, both factors are off by up to half a step of 1/127 of the largest of 32, at random:
  // for normal values, whose largest is about 2.5 times their root mean square, 2.5 / 127 / sqrt(12) of it each.
  if (!(errors <= squares * 0.02 * 0.02)) return at("relative error", 0, 0.02, std::sqrt(errors / squares));
  // A token alone, and another split into panels: the same bits.
  for (int t : {0, k.tile_tokens + 1, tokens - 1}) {
    const std::vector<float> one(x.begin() + size_t(t) * inner, x.begin() + size_t(t + 1) * inner);
    const std::vector<float> again = run_gemm(k, w, transposed, rows, one, 1, transposed ? 64 : 32);
    if (std::memcmp(again.data(), &y[size_t(t) * outer], outer * 4) != 0)
      return "bits of token " + std::to_string(t) + " depend on the others";
  }
  return "";
}

std::string check_axpy(const Table& k, DType type, int rows, int cols, int tokens, bool saturate) {
  const Weights w = make_weights(type, rows, cols, 9, saturate);
  std::vector<float> a = random_vector(size_t(tokens) * rows, 10, saturate ? 1e4f : 1.0f);
  for (size_t i = 0; i < a.size(); i += 3) a[i] = 0;
  std::vector<float> y(size_t(tokens) * cols, 0.5f), again = y;
  k.axpy_rows({w.view, nullptr, 0, rows, a.data(), size_t(rows), tokens, y.data(), size_t(cols)});
  for (int t = 0; t < tokens; ++t) {
    for (int c = 0; c < cols; ++c) {
      double sum = 0.5, absolute = 0.5;
      for (int r = 0; r < rows; ++r) {
        const double product = w.values[size_t(r) * cols + c] * a[size_t(t) * rows + r];
        sum += product;
        absolute += std::fabs(product);
      }
      const double got = y[size_t(t) * cols + c];
      if (!(std::fabs(got - sum) <= tolerance(2 * rows, absolute))) return at("column", c, sum, got);
    }
  }
  // Only the rows that are not zero, one token at a time, in pieces: the same bits.
  for (int t = 0; t < tokens; ++t) {
    std::vector<int32_t> list;
    std::vector<float> packed;
    for (int r = 0; r < rows; ++r) {
      if (a[size_t(t) * rows + r] == 0) continue;
      list.push_back(r);
      packed.push_back(a[size_t(t) * rows + r]);
    }
    const int n = static_cast<int>(list.size());
    for (int begin = 0; begin < n; begin += 13) {
      k.axpy_rows({w.view, list.data(), begin, std::min(n, begin + 13), packed.data(), list.size(), 1,
                   &again[size_t(t) * cols], size_t(cols)});
    }
  }
  return std::memcmp(y.data(), again.data(), y.size() * 4) == 0 ? ""
                                                                : "bits depend on the tiling, or on skipping zeros";
}

std::string check_dequantize(const Table& k, DType type) {
  const Weights w = make_weights(type, 3, 96, 11, false);
  std::vector<float> row(96);
  for (int r = 0; r < 3; ++r) {
    k.dequantize_row(w.view, r, row.data());
    for (int j = 0; j < 96; ++j) {
      if (row[j] != static_cast<float>(w.values[r * 96 + j])) return at("element", j, w.values[r * 96 + j], row[j]);
    }
  }
  return "";
}

constexpr const char* kKvNames[] = {"f32", "f16", "q8"};

std::string check_attention(const Table& k, kernels::KvType type, int positions, int head_dim) {
  constexpr int kGroup = 5, kBlock = kernels::kKvBlockTokens;
  const int blocks = (positions + kBlock - 1) / kBlock;
  const size_t side = kernels::kv_tile_bytes(type, head_dim);
  const std::vector<float> q = random_vector(kGroup * head_dim, 12, 3.0f);
  const std::vector<float> keys = random_vector(size_t(positions) * head_dim, 13),
                           values = random_vector(size_t(positions) * head_dim, 22);
  std::vector<uint8_t> cache(blocks * 2 * side, 0xff);  // NaN where nothing was stored
  std::vector<int32_t> table(blocks);
  for (int b = 0; b < blocks; ++b) table[b] = blocks - 1 - b;
  for (int p = 0; p < positions; ++p) {
    uint8_t* at = &cache[table[p / kBlock] * 2 * side];
    k.store_kv(type, &keys[size_t(p) * head_dim], &values[size_t(p) * head_dim], head_dim, p % kBlock, at, at + side);
  }
  std::vector<float> out(kGroup * head_dim);
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  std::vector<kernels::Query> queries;
  for (int g = 0; g < kGroup; ++g)
    queries.push_back({&q[g * head_dim], &out[g * head_dim], g == 1 ? (positions + 1) / 2 : positions});
  kernels::Attention call{queries.data(), kGroup, head_dim,     cache.data(), cache.data() + side,
                          2 * side,       type,   table.data(), scale,        nullptr};
  k.attention(call);
  // Alone: the same bits.
  for (int g = 0; g < kGroup; ++g) {
    std::vector<float> alone(head_dim);
    const kernels::Query query{queries[g].q, alone.data(), queries[g].n_positions};
    call.queries = &query;
    call.n_queries = 1;
    k.attention(call);
    if (std::memcmp(alone.data(), &out[g * head_dim], head_dim * sizeof(float)) != 0)
      return "bits of query " + std::to_string(g) + " depend on the others";
  }

  // The tolerance follows the type's rounding, of keys into scores and of values into the result.
  const double step[] = {1e-6, 5e-4, 4e-3};
  for (int g = 0; g < kGroup; ++g) {
    const int n = queries[g].n_positions;
    std::vector<double> weight(n);
    double high = -1e300, total = 0;
    for (int p = 0; p < n; ++p) {
      for (int d = 0; d < head_dim; ++d) weight[p] += double(q[g * head_dim + d]) * keys[size_t(p) * head_dim + d];
      weight[p] *= scale;
      high = std::max(high, weight[p]);
    }
    for (double& x : weight) total += x = std::exp(x - high);
    for (int d = 0; d < head_dim; ++d) {
      double expected = 0;
      for (int p = 0; p < n; ++p) expected += weight[p] / total * values[size_t(p) * head_dim + d];
      if (!(std::fabs(out[g * head_dim + d] - expected) <= 1e-5 + 10 * step[int(type)]))
        return at("dimension", d, expected, out[g * head_dim + d]);
    }
  }
  return "";
}

std::string check_activation(const Table& k, kernels::Unary f, double (*twin)(double)) {
  std::vector<float> x = random_vector(1003, 14, 4.0f);
  x[0] = 80, x[1] = -80, x[2] = 0, x[3] = -0.0f, x[4] = 0.5f;
  std::vector<float> y = x;
  k.activate(f, 0.5f, y.data(), static_cast<int>(y.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    const double expected = twin(x[i]);
    if (!(std::fabs(y[i] - expected) <= 1e-6 * (1 + std::fabs(expected)))) return at("element", i, expected, y[i]);
  }
  return "";
}

std::string check_norms(const Table& k) {
  constexpr int kN = 333;
  const std::vector<float> x = random_vector(kN, 15, 3.0f), weight = random_vector(kN, 16),
                           bias = random_vector(kN, 17);
  std::vector<float> rms(kN), layer(kN);
  k.rms_norm(x.data(), weight.data(), 1e-5f, kN, rms.data());
  k.layer_norm(x.data(), weight.data(), bias.data(), 1e-5f, kN, layer.data());
  double mean = 0, squares = 0, variance = 0;
  for (float v : x) mean += v / double(kN), squares += double(v) * v / kN;
  for (float v : x) variance += (v - mean) * (v - mean) / kN;
  for (int i = 0; i < kN; ++i) {
    const double a = x[i] / std::sqrt(squares + 1e-5) * weight[i];
    const double b = (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + bias[i];
    if (!(std::fabs(rms[i] - a) <= 1e-5)) return at("rms element", i, a, rms[i]);
    if (!(std::fabs(layer[i] - b) <= 1e-5)) return at("layer element", i, b, layer[i]);
  }
  return "";
}

// The highest value at every place of arrays around the widths of vectors.
std::string check_highest(const Table& k) {
  for (const int n : {1, 3, 15, 16, 17, 64, 65, 131}) {
    for (int place = 0; place < n; ++place) {
      std::vector<float> x = random_vector(n, 23, 1.0f);
      x[place] = 7.5f;
      if (const float got = k.highest(x.data(), n); got != 7.5f) return at("highest", place, 7.5, got);
    }
    const std::vector<float> negative(n, -3.0f);
    if (k.highest(negative.data(), n) != -3.0f) return at("negative", n, -3, k.highest(negative.data(), n));
  }
  return "";
}

std::string check_sum_exp(const Table& k) {
  const std::vector<float> x = random_vector(5003, 18, 5.0f);
  const float high = *std::max_element(x.begin(), x.end());
  double expected = 0;
  for (float v : x) expected += std::exp(double(v) - high);
  const double got = k.sum_exp(x.data(), high, static_cast<int>(x.size()));
  return std::fabs(got - expected) <= 1e-5 * expected ? "" : at("sum", 0, expected, got);
}

std::string check_f16(const Table& k) {
  std::vector<float> x = random_vector(1001, 19, 1e-4f);
  for (size_t i = 0; i < 500; ++i) x[i] *= 1e6f;
  x[0] = 65504, x[1] = 65519.9f, x[2] = 65520, x[3] = 6e-8f, x[4] = 2.9e-8f, x[5] = -0.0f;
  std::vector<uint16_t> y(x.size());
  k.to_f16(x.data(), y.data(), static_cast<int>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) {
    if (y[i] != f32_to_f16(x[i])) return at("element", i, f32_to_f16(x[i]), y[i]);
  }
  return "";
}

double relu(double x) { return x > 0 ? x : 0; }
double relu2(double x) { return relu(x) * relu(x); }
double fatrelu(double x) { return x >= 0.5 ? x : 0; }
double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu(double x) { return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0))); }
double gelu_tanh(double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x))); }

// Signs that differ, of all rows and of some, for widths that end in every way; -0 is negative, as its bit says.
std::string check_signs(const Table& k, int cols) {
  constexpr int kRows = 50;
  std::vector<float> w = random_vector(size_t(kRows) * cols, 30), x = random_vector(cols, 31);
  x[0] = -0.0f, x[cols - 1] = 0.0f;
  const size_t bytes = row_bytes(DType::kBit, cols);
  std::vector<uint8_t> rows(kRows * bytes), signs(bytes);
  for (int r = 0; r < kRows; ++r) k.sign_bits(&w[size_t(r) * cols], cols, &rows[r * bytes]);
  k.sign_bits(x.data(), cols, signs.data());
  std::vector<int32_t> all(kRows, -1), some(kRows, -1);
  const Matrix view{rows.data(), DType::kBit, bytes, cols};
  k.count_signs({view, 0, kRows, signs.data(), all.data()});
  k.count_signs({view, 7, 20, signs.data(), some.data()});
  for (int r = 0; r < kRows; ++r) {
    int expected = 0;
    for (int j = 0; j < cols; ++j) expected += std::signbit(w[size_t(r) * cols + j]) != std::signbit(x[j]);
    if (all[r] != expected) return at("row", r, expected, all[r]);
    const int ranged = r >= 7 && r < 20 ? expected : -1;
    if (some[r] != ranged) return at("row of a range", r, ranged, some[r]);
  }
  return "";
}

const bool registered = [] {
  for (const Table* k : kernels::available()) {
    const std::string isa = std::string(k->name) + " ";
    for (size_t i = 0; i < std::size(kTypes); ++i) {
      const DType type = kTypes[i];
      const std::string name = isa + kTypeNames[i] + " ";
      for (bool saturate : {false, true}) {
        const std::string inputs = saturate ? "saturating" : "random";
        Check(name + "dot rows, " + inputs, [=] { return check_dot(*k, type, 37, 160, 9, saturate); });
        Check(name + "axpy rows, " + inputs, [=] { return check_axpy(*k, type, 75, 192, 6, saturate); });
      }
      for (bool saturate : {false, true}) {
        const std::string inputs = saturate ? "saturating" : "random";
        Check(name + "prefill, " + inputs, [=] { return check_gemm(*k, type, false, saturate); });
        Check(name + "prefill, transposed, " + inputs, [=] { return check_gemm(*k, type, true, saturate); });
      }
      if (block_size(type) == 1) {
        Check(name + "dot rows, odd width", [=] { return check_dot(*k, type, 11, 77, 5, false); });
        Check(name + "axpy rows, odd width", [=] { return check_axpy(*k, type, 19, 77, 5, false); });
      }
      Check(name + "dequantize", [=] { return check_dequantize(*k, type); });
    }
    for (int cols : {8, 56, 64, 264, 504, 1024})
      Check(isa + "signs of " + std::to_string(cols), [=] { return check_signs(*k, cols); });
    for (int cols : {96, 128, 544})
      Check(isa + "quantize " + std::to_string(cols), [=] { return check_quantize(*k, cols); });
    for (const kernels::KvType type : {kernels::KvType::kF32, kernels::KvType::kF16, kernels::KvType::kQ8}) {
      for (int positions : {1, 32, 77}) {
        Check(isa + kKvNames[int(type)] + " attention over " + std::to_string(positions),
              [=] { return check_attention(*k, type, positions, 40); });
      }
    }
    const std::pair<kernels::Unary, double (*)(double)> activations[] = {
        {kernels::Unary::kRelu, relu}, {kernels::Unary::kRelu2, relu2}, {kernels::Unary::kFatRelu, fatrelu},
        {kernels::Unary::kSilu, silu}, {kernels::Unary::kGelu, gelu},   {kernels::Unary::kGeluTanh, gelu_tanh}};
    for (const auto& [f, twin] : activations) {
      Check(isa + "activation " + std::to_string(static_cast<int>(f)),
            [k, f = f, twin = twin] { return check_activation(*k, f, twin); });
    }
    Check(isa + "norms", [=] { return check_norms(*k); });
    Check(isa + "highest", [=] { return check_highest(*k); });
    Check(isa + "sum of exponentials", [=] { return check_sum_exp(*k); });
    Check(isa + "f16 rounding", [=] { return check_f16(*k); });
  }
  return true;
}();

}  // namespace
}  // namespace pi::checks
