// Buffers that begin on a cache line, for a vector load across two lines costs as much as two, and large ones on huge
// pages, where the system has them.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

namespace pi {

constexpr size_t kHugePage = size_t{2} << 20;

inline uint8_t* to_huge_page(void* p) {
  return reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(p) + kHugePage - 1) / kHugePage * kHugePage);
}

// Asks for huge pages under whole ones of [begin, begin + bytes).
inline void advise_huge_pages(void* begin, size_t bytes) {
#ifdef MADV_HUGEPAGE
  uint8_t* const first = to_huge_page(begin);
  const uint8_t* const end = static_cast<uint8_t*>(begin) + bytes;
  if (first < end) ::madvise(first, static_cast<size_t>(end - first), MADV_HUGEPAGE);
#endif
}

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}

  T* allocate(size_t n) {
    void* p = ::operator new(n * sizeof(T), kLine);
    if (n * sizeof(T) >= 2 * kHugePage) advise_huge_pages(p, n * sizeof(T));
    return static_cast<T*>(p);
  }
  void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
  bool operator==(const LineAllocator&) const { return true; }
};

template <typename T>
using Buffer = std::vector<T, LineAllocator<T>>;

// Makes room for `size` elements at least.
template <typename T>
void grow(Buffer<T>& buffer, size_t size) {
  if (buffer.size() < size) buffer.resize(size);
}

}  // namespace pi
