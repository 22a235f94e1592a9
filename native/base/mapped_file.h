// The bytes of a file, read-only: copied into huge pages where memory allows, mapped otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace pi {

// Rows of a few hundred bytes, picked all over a model, miss the TLB at every turn with 4 KiB pages: with huge pages they
// stream half as fast again, and file systems do not offer them for what they cache. A copy costs a fraction of a second
// a gigabyte and no more resident memory than the mapping; what the system caches of the file, it can drop.
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
  bool copy(int fd);
  void map(int fd);

  const uint8_t* data_ = nullptr;
  size_t size_ = 0;
  void* start_ = nullptr;  // of the address space that holds a copy
  size_t reserved_ = 0;    // its bytes; 0 for a mapping
};

}  // namespace pi
