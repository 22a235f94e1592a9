// Pieces of one allocation of device memory, counted by use. Without memory it only counts: the same calls then say how
// much would be needed, so that a budget is checked against exactly what will be taken.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cuda/layout.h"

namespace pi::cuda {

enum class Use { kWeights, kPredictors, kKv, kScratch };

class Arena {
 public:
  Arena() = default;
  Arena(void* memory, size_t bytes) : memory_(static_cast<uint8_t*>(memory)), bytes_(bytes) {}

  // n elements, aligned to 256 bytes; null while it only counts, and for none. Throws std::logic_error past the end.
  template <typename T>
  T* take(Use use, size_t n) {
    const size_t bytes = align_up(n * sizeof(T), 256), at = total();
    used_[static_cast<size_t>(use)] += bytes;
    if (!memory_ || bytes == 0) return nullptr;
    if (at + bytes > bytes_)
      throw std::logic_error("device memory: " + std::to_string(at + bytes) + " bytes of " + std::to_string(bytes_));
    return reinterpret_cast<T*>(memory_ + at);
  }

  size_t used(Use use) const { return used_[static_cast<size_t>(use)]; }
  size_t total() const { return used_[0] + used_[1] + used_[2] + used_[3]; }

 private:
  uint8_t* memory_ = nullptr;
  size_t bytes_ = 0;
  std::array<size_t, 4> used_{};
};

}  // namespace pi::cuda
