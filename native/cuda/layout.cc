#include "cuda/layout.h"

#include <cstring>

namespace pi::cuda {

namespace {

template <typename Block>
void pack_blocks(size_t cols, const uint8_t* host, uint8_t* device) {
  const Block* const blocks = reinterpret_cast<const Block*>(host);
  uint8_t* const scales = device + cols * sizeof(Block::q) / kQuantBlock;
  for (size_t b = 0; b < cols / kQuantBlock; ++b) {
    std::memcpy(device + b * sizeof(Block::q), blocks[b].q, sizeof(Block::q));
    std::memcpy(scales + b * sizeof(uint16_t), &blocks[b].d, sizeof(uint16_t));
  }
}

}  // namespace

void pack_row(DType type, size_t cols, const uint8_t* host, uint8_t* device) {
  const size_t bytes = row_bytes(type, cols);
  if (type == DType::kQ8_0) {
    pack_blocks<BlockQ8_0>(cols, host, device);
  } else if (type == DType::kQ4_0) {
    pack_blocks<BlockQ4_0>(cols, host, device);
  } else {
    std::memcpy(device, host, bytes);
  }
  std::memset(device + bytes, 0, device_row_bytes(type, cols) - bytes);
}

}  // namespace pi::cuda
