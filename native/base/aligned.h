// Buffers that begin on a cache line: a vector load across two lines costs as much as two.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace pi {

template <typename T>
struct LineAllocator {
  using value_type = T;
  static constexpr std::align_val_t kLine{64};

  LineAllocator() = default;
  template <typename U>
  LineAllocator(const LineAllocator<U>&) {}

  T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), kLine)); }
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
