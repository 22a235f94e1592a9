// Keys and values of all sequences, in blocks of kBlockTokens positions that block tables point to.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/config.h"
#include "kernels/kernels.h"

namespace pi {

// Layout per layer: [block][keys | values][kv head][position in block][head_dim], f32 or f16.
class KvCache {
 public:
  static constexpr int kBlockTokens = 32;

  KvCache(const ModelConfig& config, int blocks, bool f16)
      : f16_(f16),
        head_dim_(config.head_dim),
        blocks_(blocks),
        head_bytes_(size_t{kBlockTokens} * config.head_dim * (f16 ? 2 : 4)),
        side_bytes_(head_bytes_ * config.n_kv_heads),
        layer_bytes_(2 * side_bytes_ * blocks),
        data_(layer_bytes_ * config.n_layers) {}

  int blocks() const { return blocks_; }
  size_t bytes() const { return data_.size(); }
  // Bytes of keys and values that one cached position adds to a row's reads, over all KV heads of a layer.
  size_t position_bytes() const { return 2 * side_bytes_ / kBlockTokens; }

  // Stores the key and value [n_kv_heads, head_dim] of one position.
  void store(const kernels::Table& table, int layer, int block, int slot, int n_kv_heads, const float* key,
             const float* value) {
    for (int head = 0; head < n_kv_heads; ++head) {
      uint8_t* base = at(layer, block, head) + size_t(slot) * head_dim_ * (f16_ ? 2 : 4);
      put(table, base, key + size_t(head) * head_dim_);
      put(table, base + side_bytes_, value + size_t(head) * head_dim_);
    }
  }

  // The part of an attention call that says where one KV head's keys and values are.
  void describe(kernels::Attention& a, int layer, int head) const {
    const uint8_t* base = data_.data() + layer * layer_bytes_ + head * head_bytes_;
    a.keys = base;
    a.values = base + side_bytes_;
    a.block_bytes = 2 * side_bytes_;
    a.f16 = f16_;
    a.block_tokens = kBlockTokens;
  }

 private:
  uint8_t* at(int layer, int block, int head) {
    return data_.data() + layer * layer_bytes_ + block * 2 * side_bytes_ + head * head_bytes_;
  }
  void put(const kernels::Table& table, uint8_t* to, const float* from) {
    if (f16_) {
      table.to_f16(from, reinterpret_cast<uint16_t*>(to), head_dim_);
    } else {
      std::memcpy(to, from, size_t(head_dim_) * sizeof(float));
    }
  }

  bool f16_;
  int head_dim_, blocks_;
  size_t head_bytes_, side_bytes_, layer_bytes_;
  std::vector<uint8_t> data_;
};

}  // namespace pi
