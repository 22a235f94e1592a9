// A file mapped read-only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace pi {

class MappedFile {
 public:
  // Throws std::runtime_error with path and reason.
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept = default;
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const uint8_t* data() const { return view_.data; }
  size_t size() const { return view_.size; }

  // Gives back the memory of whole pages in [at, at + bytes), which will hardly be read again: what is, comes from the file.
  // Before use_huge_pages, if at all.
  void release(const uint8_t* at, size_t bytes);

  // Starts a thread that puts huge pages under the mapping, piece by piece, where memory allows; not under what was
  // released. Rows of a few hundred bytes, picked all over a model, miss the TLB at every turn with 4 KiB pages: from huge
  // pages they stream half as fast again, and file systems do not offer those for what they cache. Resident memory stays
  // what it was; what the system caches of the file, it can drop.
  void use_huge_pages();

 private:
  // What a moved-from file no longer has.
  struct View {
    const uint8_t* data = nullptr;
    size_t size = 0;
    void* reserved = nullptr;  // address space that the mapping is in
    size_t reserved_bytes = 0;

    View() = default;
    View(View&& other) noexcept { *this = static_cast<View&&>(other); }
    View& operator=(View&& other) noexcept;
  };

  View view_;
  std::vector<std::pair<size_t, size_t>> released_;  // begin and end, in the file
  std::jthread upgrade_;
};

}  // namespace pi
