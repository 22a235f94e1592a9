// Sequences to attend to, cached on the device and by the CPU's kernels, and attention in f64.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "checks/check.h"
#include "checks/cuda/device.h"
#include "cuda/workspace.h"
#include "kernels/kernels.h"

namespace pi::checks {

using kernels::KvType;

constexpr int kBlock = kernels::kKvBlockTokens;
inline constexpr const char* kKvNames[] = {"f32", "f16", "q8"};

struct Shape {
  KvType type;
  int kv_heads, group, head_dim;
  bool rope;
  int n_heads() const { return kv_heads * group; }
  std::string name() const {
    return std::string(kKvNames[int(type)]) + ", " + std::to_string(n_heads()) + " heads of " +
           std::to_string(head_dim) + " on " + std::to_string(kv_heads) + (rope ? ", rotated" : "");
  }
};

// Where a row stands; -1: nobody's.
struct Row {
  int sequence, position;
};
using Rows = std::vector<Row>;

template <typename T>
inline T read(const uint8_t* at) {
  T x;
  std::memcpy(&x, at, sizeof x);
  return x;
}

// Sequences with their queries, keys and values of every position, a cache on the device and one of the CPU.
class Sequences {
 public:
  Sequences(Shape shape, std::vector<int> lengths, float scale = 1)
      : s(shape),
        lengths_(std::move(lengths)),
        longest_(*std::max_element(lengths_.begin(), lengths_.end())),
        stride_((longest_ + kBlock - 1) / kBlock + 1),
        n_blocks_(stride_ * static_cast<int>(lengths_.size())),
        tile_(kernels::kv_tile_bytes(s.type, s.head_dim)),
        side_(cuda::device_kv_side_bytes(s.type, s.kv_heads, s.head_dim)),
        tables_(n_blocks_),
        cpu_(n_blocks_ * 2 * side_, 0xff),
        device_(std::vector<uint8_t>(n_blocks_ * 2 * side_, 0xff)),  // NaN where nothing was stored
        tables_device_(shuffled()),
        cosine_(angles(true)),
        sine_(angles(false)),
        cosine_device_(cosine_),
        sine_device_(sine_) {
    const size_t positions = size_t(lengths_.size()) * longest_;
    q = random_vector(positions * s.n_heads() * s.head_dim, 31, 2.0f * scale);
    key = random_vector(positions * s.kv_heads * s.head_dim, 32, scale);
    value = random_vector(positions * s.kv_heads * s.head_dim, 33);
  }

  // First element of one position's queries, keys or values in q, key, value.
  size_t at(Row r, int heads) const { return (size_t(r.sequence) * longest_ + r.position) * heads * s.head_dim; }

  // Stores the rows' keys and values in both caches; returns their queries, rotated by the device.
  std::vector<float> store(const Rows& rows) {
    DeviceArray<float> queries(gather(q, rows, s.n_heads())), keys(gather(key, rows, s.kv_heads)),
        values(gather(value, rows, s.kv_heads));
    Places places(*this, rows);
    cuda::StoreKv a{queries.data(),  {keys.data(), values.data()}, places.view, device_kv(), s.n_heads(),
                    int(rows.size())};
    if (s.rope) a.now.cosine = cosine_device_.data(), a.now.sine = sine_device_.data();
    kernels_of_device().store_kv(stream(), a);
    for (const Row& r : rows) store_on_cpu(r);
    return queries.get();
  }

  struct Options {
    int splits = 4;
    bool prefill = false, quants = false;
    bool stores = false;  // `queries` as they come, and attention rotates and stores
  };
  struct Result {
    std::vector<float> x, scales;
    std::vector<int8_t> quants;
  };
  Result attend(const Rows& rows, const std::vector<float>& queries, Options o) const {
    const size_t n = rows.size(), cols = size_t(s.n_heads()) * s.head_dim;
    DeviceArray<float> in(queries), out(n * cols), scales(n * cols / 32 + 1);
    DeviceArray<int8_t> quants(n * cols);
    DeviceArray<uint8_t> workspace(cuda::attention_workspace(int(n), s.n_heads(), s.head_dim, o.splits));
    const DeviceArray<uint32_t> arrivals(std::vector<uint32_t>(cuda::arrival_words(int(n), s.n_heads(), 1)));
    const DeviceArray<float> keys(gather(key, rows, s.kv_heads)), values(gather(value, rows, s.kv_heads));
    Places places(*this, rows);
    cuda::Attend a{in.data(),
                   {},
                   places.view,
                   device_kv(),
                   scale(),
                   s.n_heads(),
                   {out.data(), nullptr, nullptr, int(cols)},
                   int(n),
                   o.splits,
                   o.prefill,
                   workspace.data(),
                   arrivals.data()};
    if (o.stores)
      a.now = {keys.data(), values.data(), s.rope ? cosine_device_.data() : nullptr,
               s.rope ? sine_device_.data() : nullptr};
    if (o.quants) a.out.quants = quants.data(), a.out.scales = scales.data();
    kernels_of_device().attend(stream(), a);
    for (const uint32_t word : arrivals.get()) {
      if (word != 0) throw std::runtime_error("attend: arrivals are not 0 again");
    }
    return {out.get(), scales.get(), quants.get()};
  }

  // Queries of the rows as they come, NaN for nobody's.
  std::vector<float> queries_of(const Rows& rows) const { return gather(q, rows, s.n_heads()); }
  std::vector<uint8_t> cache() const { return device_.get(); }

  // What the CPU's kernel makes of one row.
  std::vector<float> attend_on_cpu(Row r) const {
    const int dim = s.head_dim;
    std::vector<float> queries(q.begin() + at(r, s.n_heads()), q.begin() + at(r, s.n_heads()) + s.n_heads() * dim),
        out(queries.size());
    if (s.rope)
      table().rope(queries.data(), s.n_heads(), dim, &cosine_[size_t(r.position) * dim / 2],
                   &sine_[size_t(r.position) * dim / 2]);
    for (int head = 0; head < s.n_heads(); ++head) {
      const kernels::Query query{&queries[head * dim], &out[head * dim], r.position + 1};
      const uint8_t* keys = cpu_.data() + head / s.group * tile_;
      table().attention({&query, 1, dim, keys, keys + side_, 2 * side_, s.type, &tables_[size_t(r.sequence) * stride_],
                         scale(), nullptr});
    }
    return out;
  }

  // Empty if device and CPU hold the same of the sequences' first `lengths` positions. A rotation may round
  // differently, and so may, then, the type.
  std::string compare_caches() const {
    const std::vector<uint8_t> bytes = device_.get();
    const double step[] = {2e-7, 1e-3, 1.0 / 127};
    for (int sequence = 0; sequence < int(lengths_.size()); ++sequence) {
      for (int position = 0; position < lengths_[sequence]; ++position) {
        for (int i = 0; i < 2 * s.kv_heads * s.head_dim; ++i) {
          const bool keys = i < s.kv_heads * s.head_dim;
          const int head = i / s.head_dim % s.kv_heads, d = i % s.head_dim;
          const double expected = cpu_element({sequence, position}, keys, head, d),
                       actual = element(bytes, {sequence, position}, keys, head, d);
          if (!(std::fabs(expected - actual) <=
                step[int(s.type)] * (s.type == KvType::kQ8 ? 5 : std::fabs(expected)) + 1e-7)) {
            return std::string(keys ? "key" : "value") + " of position " + std::to_string(position) + ", head " +
                   std::to_string(head) + ": expected " + std::to_string(expected) + ", got " + std::to_string(actual);
          }
        }
      }
    }
    return "";
  }

  // Empty if `out` is the attention of rows with `queries` over what the cache holds, in f64.
  std::string compare(const Rows& rows, const std::vector<float>& queries, const std::vector<float>& out) const {
    const std::vector<uint8_t> bytes = device_.get();
    const int dim = s.head_dim;
    std::vector<float> side[2];  // keys and values of one sequence and KV head
    Row of{-1, -1};
    for (size_t i = 0; i < rows.size() * s.n_heads(); ++i) {
      // Head by head, so that rows of a sequence share what is decoded.
      const size_t t = i % rows.size();
      const int head = static_cast<int>(i / rows.size());
      if (rows[t].sequence != of.sequence || head / s.group != of.position) {
        of = {rows[t].sequence, head / s.group};
        for (const bool keys : {true, false}) side[keys ? 0 : 1] = decode_head(bytes, of.sequence, of.position, keys);
      }
      const size_t from = (t * s.n_heads() + head) * dim;
      const std::string problem = compare_head(side[0], side[1], rows[t].position + 1, &queries[from], &out[from]);
      if (!problem.empty()) return "row " + std::to_string(t) + ", head " + std::to_string(head) + ", " + problem;
    }
    return "";
  }

  const Shape s;
  std::vector<float> q, key, value;

 private:
  static const kernels::Table& table() { return kernels::active(); }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(s.head_dim)); }
  cuda::DeviceKv device_kv() const { return {device_.data(), s.type, s.kv_heads, s.head_dim}; }

  // RowPlaces in device memory.
  struct Places {
    Places(const Sequences& o, const Rows& rows)
        : positions(of(rows, &Row::position)), sequences(of(rows, &Row::sequence)) {
      view = {positions.data(), sequences.data(), o.tables_device_.data(), o.stride_};
    }
    static std::vector<int32_t> of(const Rows& rows, int Row::*member) {
      std::vector<int32_t> out;
      for (const Row& r : rows) out.push_back(r.*member);
      return out;
    }
    DeviceArray<int32_t> positions, sequences;
    cuda::RowPlaces view;
  };

  std::vector<int32_t> shuffled() {
    std::iota(tables_.begin(), tables_.end(), 0);
    std::mt19937 random(5);
    std::shuffle(tables_.begin(), tables_.end(), random);
    return tables_;
  }

  std::vector<float> angles(bool cosine) const {
    const int half = s.head_dim / 2;
    std::vector<float> out(size_t(longest_) * half);
    for (size_t i = 0; i < out.size(); ++i) {
      const double angle = double(i / half) * std::pow(1e4, -double(i % half) / half);
      out[i] = static_cast<float>(cosine ? std::cos(angle) : std::sin(angle));
    }
    return out;
  }

  // The rows' own part of a vector of all positions; nobody's rows get NaN.
  std::vector<float> gather(const std::vector<float>& x, const Rows& rows, int heads) const {
    std::vector<float> out;
    for (const Row& r : rows) {
      const size_t n = size_t(heads) * s.head_dim;
      if (r.position < 0) {
        out.insert(out.end(), n, NAN);
      } else {
        out.insert(out.end(), x.begin() + at(r, heads), x.begin() + at(r, heads) + n);
      }
    }
    return out;
  }

  size_t block_at(Row r) const {
    return size_t(tables_[size_t(r.sequence) * stride_ + r.position / kBlock]) * 2 * side_;
  }

  void store_on_cpu(Row r) {
    if (r.position < 0) return;
    const int dim = s.head_dim;
    for (int head = 0; head < s.kv_heads; ++head) {
      const size_t from = at(r, s.kv_heads) + size_t(head) * dim;
      std::vector<float> k(key.begin() + from, key.begin() + from + dim);
      if (s.rope)
        table().rope(k.data(), 1, dim, &cosine_[size_t(r.position) * dim / 2], &sine_[size_t(r.position) * dim / 2]);
      uint8_t* const keys = cpu_.data() + block_at(r) + head * tile_;
      table().store_kv(s.type, k.data(), &value[from], dim, r.position % kBlock, keys, keys + side_);
    }
  }

  double decode(const uint8_t* tile, size_t i) const {
    if (s.type == KvType::kF32) return read<float>(tile + i * 4);
    if (s.type == KvType::kF16) return f16_to_f32(read<uint16_t>(tile + i * 2));
    return read<int8_t>(tile + i);
  }

  double cpu_element(Row r, bool keys, int head, int d) const {
    const int slot = r.position % kBlock;
    const uint8_t* const tile = cpu_.data() + block_at(r) + (keys ? 0 : side_) + head * tile_;
    const double x = decode(tile, keys ? size_t(d) * kBlock + slot : size_t(slot) * s.head_dim + d);
    return s.type == KvType::kQ8 ? x * read<float>(tile + kBlock * s.head_dim + slot * 4) : x;
  }

  double element(const std::vector<uint8_t>& bytes, Row r, bool keys, int head, int d) const {
    const size_t slot = size_t(head) * kBlock + r.position % kBlock;
    const uint8_t* const side = bytes.data() + block_at(r) + (keys ? 0 : side_);
    const double x = decode(side, slot * s.head_dim + d);
    return s.type == KvType::kQ8 ? x * read<float>(side + size_t(s.kv_heads) * kBlock * s.head_dim + slot * 4) : x;
  }

  std::vector<float> decode_head(const std::vector<uint8_t>& bytes, int sequence, int head, bool keys) const {
    std::vector<float> out;
    for (int p = 0; p < lengths_[sequence]; ++p) {
      for (int d = 0; d < s.head_dim; ++d)
        out.push_back(static_cast<float>(element(bytes, {sequence, p}, keys, head, d)));
    }
    return out;
  }

  // One query over n positions.
  std::string compare_head(const std::vector<float>& keys, const std::vector<float>& values, int n, const float* query,
                           const float* out) const {
    const int dim = s.head_dim;
    std::vector<double> weight(n), sum(dim);
    double high = -1e300, total = 0, terms = 0, largest = 0;
    for (int p = 0; p < n; ++p) {
      double absolute = 0;
      for (int d = 0; d < dim; ++d) {
        const double term = double(query[d]) * keys[size_t(p) * dim + d] * scale();
        weight[p] += term;
        absolute += std::fabs(term);
      }
      high = std::max(high, weight[p]);
      terms = std::max(terms, absolute);
    }
    for (int p = 0; p < n; ++p) {
      weight[p] = std::exp(weight[p] - high);
      total += weight[p];
      for (int d = 0; d < dim; ++d) {
        const double v = values[size_t(p) * dim + d];
        sum[d] += weight[p] * v;
        largest = std::max(largest, std::fabs(v));
      }
    }
    // An error of a score is a relative one of its weight, which moves the result by at most twice that of the largest
    // value; fast exponentials of differences up to 32 add 40 units in the last place.
    const double tolerance = 2 * ((dim + 8) * 6e-8 * terms + 40 * 6e-8 + n * 6e-8) * largest;
    for (int d = 0; d < dim; ++d) {
      const double expected = n > 0 ? sum[d] / total : 0;
      if (!(std::fabs(out[d] - expected) <= tolerance)) {
        return "element " + std::to_string(d) + ": expected " + std::to_string(expected) + ", got " +
               std::to_string(out[d]);
      }
    }
    return "";
  }

  std::vector<int> lengths_;
  int longest_, stride_, n_blocks_;
  size_t tile_, side_;  // of one head's keys; of all
  std::vector<int32_t> tables_;
  std::vector<uint8_t> cpu_;
  DeviceArray<uint8_t> device_;
  DeviceArray<int32_t> tables_device_;
  std::vector<float> cosine_, sine_;
  DeviceArray<float> cosine_device_, sine_device_;
};

}  // namespace pi::checks
