// A file mapped read-only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pi {

class MappedFile {
 public:
  // Throws std::runtime_error with path and reason.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return data_; }
  size_t size() const { return size_; }

 private:
  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace pi
