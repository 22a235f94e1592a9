// What checks of kernels share: one device (PI_DEVICE), arrays in its memory, weights in its layout.
#pragma once

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"

namespace pi::checks {

inline cuda::Device& device() {
  static const cuda::Opened opened = cuda::open_device();
  if (!opened.device) throw std::runtime_error("no device: " + opened.reason);
  return *opened.device;
}

inline const cuda::Kernels& kernels_of_device() { return device().kernels(); }
inline void* stream() { return device().stream(); }
inline void finish() { device().synchronize(cuda::Queue::kCompute); }

// Page-locked elements, reached by kernels and by the host; zeroed.
template <typename T>
class HostArray {
 public:
  explicit HostArray(size_t n) : n_(n), data_(static_cast<T*>(device().allocate_host(n * sizeof(T)))) {}
  HostArray(const HostArray&) = delete;
  HostArray& operator=(const HostArray&) = delete;
  ~HostArray() { device().free_host(data_); }
  T* data() { return data_; }
  size_t size() const { return n_; }
  T& operator[](size_t i) { return data_[i]; }

 private:
  size_t n_;
  T* data_;
};

// Elements in device memory: NaN bytes (on the emulator), or copied from the host.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t n) : n_(n), data_(static_cast<T*>(device().allocate(n * sizeof(T)))) {}
  explicit DeviceArray(const std::vector<T>& from) : DeviceArray(from.size()) { set(from); }
  DeviceArray(DeviceArray&& other) noexcept : n_(other.n_), data_(std::exchange(other.data_, nullptr)) {}
  ~DeviceArray() {
    if (data_ != nullptr) device().free(data_);
  }
  T* data() const { return data_; }
  size_t size() const { return n_; }

  void set(const std::vector<T>& from) {
    if (n_ == 0) return;
    HostArray<T> host(n_);
    std::memcpy(host.data(), from.data(), n_ * sizeof(T));
    device().upload(cuda::Queue::kCompute, data_, host.data(), n_ * sizeof(T));
    finish();
  }
  // Waits for what was asked for before. Throws what a kernel did wrong.
  std::vector<T> get() const {
    std::vector<T> out(n_);
    if (n_ == 0) return out;
    HostArray<T> host(n_);
    device().download(cuda::Queue::kCompute, host.data(), data_, n_ * sizeof(T));
    finish();
    std::memcpy(out.data(), host.data(), n_ * sizeof(T));
    return out;
  }

 private:
  size_t n_;
  T* data_;
};

// Rows in the host's layout, packed into device memory.
class DeviceWeights {
 public:
  DeviceWeights(DType type, int rows, int cols, const uint8_t* host)
      : bytes_(pack(type, rows, cols, host)),
        view{bytes_.data(), type, rows, cols, cuda::device_row_bytes(type, cols)} {}

 private:
  static std::vector<uint8_t> pack(DType type, int rows, int cols, const uint8_t* host) {
    const size_t to = cuda::device_row_bytes(type, cols), from = row_bytes(type, cols);
    std::vector<uint8_t> out(to * rows);
    for (int r = 0; r < rows; ++r) cuda::pack_row(type, cols, host + r * from, out.data() + r * to);
    return out;
  }
  DeviceArray<uint8_t> bytes_;

 public:
  cuda::DeviceMatrix view;
};

}  // namespace pi::checks
