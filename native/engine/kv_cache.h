// Keys and values of all sequences, in blocks of kBlockTokens positions that block tables point to.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>

#include "base/aligned.h"
#include "engine/config.h"
#include "kernels/kernels.h"

namespace pi {

// Layout: [block][layer][keys | values][kv head][tile], a tile as in kernels::Attention: a sequence's memory grows by
// whole pieces, so that huge pages waste little. `n_layers` layers, numbered from 0, are those whose attention is here.
class KvCache {
 public:
  static constexpr int kBlockTokens = kernels::kKvBlockTokens;

  KvCache(const ModelConfig& config, int n_layers, int blocks, kernels::KvType type)
      : type_(type),
        head_dim_(config.head_dim),
        n_heads_(config.n_kv_heads),
        blocks_(blocks),
        tile_bytes_(kernels::kv_tile_bytes(type, config.head_dim)),
        side_bytes_(tile_bytes_ * config.n_kv_heads),
        block_bytes_(2 * side_bytes_ * n_layers),
        data_(static_cast<uint8_t*>(std::calloc(bytes() + kHugePage, 1))) {
    if (!data_) throw std::runtime_error("KV cache: no memory for " + std::to_string(bytes()) + " bytes");
    advise_huge_pages(data_.get(), bytes() + kHugePage);
  }

  int blocks() const { return blocks_; }
  // Reserved; what no position was written to yet takes no memory.
  size_t bytes() const { return block_bytes_ * blocks_; }
  // Bytes of keys and values that one cached position adds to a row's reads, over all KV heads of a layer.
  size_t position_bytes() const { return 2 * side_bytes_ / kBlockTokens; }

  // Stores the key and value [head_dim] that one KV head has for one position.
  void store(const kernels::Table& table, int layer, int block, int slot, int head, const float* key,
             const float* value) {
    uint8_t* keys = at(layer, head) + block * block_bytes_;
    // A position is a column of its tile, so that every line of the tile is written.
    for (size_t line = 0; line < tile_bytes_; line += 64) __builtin_prefetch(keys + line, 1, 3);
    table.store_kv(type_, key, value, head_dim_, slot, keys, keys + side_bytes_);
  }

  // The part of an attention call that says where one KV head's keys and values are.
  void describe(kernels::Attention& a, int layer, int head, int first_block) const {
    a.keys = at(layer, head);
    a.values = a.keys + side_bytes_;
    a.block_bytes = block_bytes_;
    a.type = type_;
    a.next_keys = head + 1 < n_heads_ ? a.keys + first_block * a.block_bytes + tile_bytes_ : nullptr;
  }

 private:
  uint8_t* at(int layer, int head) const {
    return to_huge_page(data_.get()) + layer * 2 * side_bytes_ + head * tile_bytes_;
  }

  struct Free {
    void operator()(uint8_t* p) const { std::free(p); }
  };

  kernels::KvType type_;
  int head_dim_, n_heads_, blocks_;
  size_t tile_bytes_, side_bytes_, block_bytes_;
  std::unique_ptr<uint8_t, Free> data_;  // zeroed by the system, page by page, when first written
};

}  // namespace pi
