// Memory of an emulated device: filled with NaN bytes, and with zones around it that nobody may write to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <string>

namespace pi::cuda::emulator {

class GuardedMemory {
 public:
  // `what` is for messages, e.g. "device memory".
  explicit GuardedMemory(const char* what) : what_(what) {}
  ~GuardedMemory() {
    const std::string wrong = check();
    if (!wrong.empty()) std::fprintf(stderr, "emulated device: %s\n", wrong.c_str());
    for (const auto& [begin, bytes] : pieces_) release(begin);
  }

  void* allocate(size_t bytes, int fill) {
    uint8_t* const whole =
        static_cast<uint8_t*>(::operator new (bytes + 2 * kGuard, std::align_val_t{kAlign}, std::nothrow));
    if (whole == nullptr) return nullptr;
    std::memset(whole, kGuardByte, kGuard);
    std::memset(whole + kGuard, fill, bytes);
    std::memset(whole + kGuard + bytes, kGuardByte, kGuard);
    const std::lock_guard lock(mutex_);
    pieces_[whole + kGuard] = bytes;
    used_ += bytes;
    return whole + kGuard;
  }

  // Returns what was wrong with it, or an empty string.
  std::string free(void* memory) {
    const std::lock_guard lock(mutex_);
    const auto piece = pieces_.find(static_cast<uint8_t*>(memory));
    if (piece == pieces_.end()) return std::string(what_) + " was freed that is none";
    const std::string wrong = check(piece->first, piece->second);
    used_ -= piece->second;
    release(piece->first);
    pieces_.erase(piece);
    return wrong;
  }

  bool contains(const void* begin, size_t bytes) {
    const std::lock_guard lock(mutex_);
    const uint8_t* const at = static_cast<const uint8_t*>(begin);
    auto piece = pieces_.upper_bound(const_cast<uint8_t*>(at));
    if (piece == pieces_.begin()) return false;
    --piece;
    return bytes <= piece->second && static_cast<size_t>(at - piece->first) <= piece->second - bytes;
  }

  // Of all pieces.
  std::string check() {
    const std::lock_guard lock(mutex_);
    for (const auto& [begin, bytes] : pieces_) {
      std::string wrong = check(begin, bytes);
      if (!wrong.empty()) return wrong;
    }
    return {};
  }

  const char* what() const { return what_; }
  size_t used() {
    const std::lock_guard lock(mutex_);
    return used_;
  }

 private:
  static constexpr size_t kAlign = 256, kGuard = 4096;
  static constexpr uint8_t kGuardByte = 0xa5;

  std::string check(const uint8_t* begin, size_t bytes) const {
    for (size_t i = 0; i < kGuard; ++i) {
      const bool before = begin[-1 - static_cast<ptrdiff_t>(i)] != kGuardByte, after = begin[bytes + i] != kGuardByte;
      if (!before && !after) continue;
      return std::to_string(bytes) + " bytes of " + what_ + " were written to " + std::to_string(i + (before ? 1 : 0)) +
             " bytes " + (before ? "before their beginning" : "after their end");
    }
    return {};
  }
  static void release(uint8_t* begin) { ::operator delete (begin - kGuard, std::align_val_t{kAlign}); }

  const char* what_;
  std::mutex mutex_;
  std::map<uint8_t*, size_t> pieces_;
  size_t used_ = 0;
};

}  // namespace pi::cuda::emulator
