// A file mapped into memory. What is written there stays this process's own.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
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
  bool holds(const uint8_t* at) const { return at >= view_.data && at < view_.data + view_.size; }

  // What the file has there, whatever was written to the mapping. Throws std::runtime_error. Any thread may call.
  void read(size_t offset, void* to, size_t bytes) const;

  // Makes [at, at + bytes) writable, in memory that is this process's own, so that writing takes no longer than
  // elsewhere. Only once it is settled; readers are not disturbed. Throws std::runtime_error where the system has no
  // memory for that.
  uint8_t* writable(const uint8_t* at, size_t bytes);
  // No page will be replaced any more.
  bool settled() const { return !upgrading_ || !*upgrading_; }

  // Gives back the memory of whole pages in [at, at + bytes), which will hardly be read again: what is, comes from the
  // file. Before use_huge_pages, if at all.
  void release(const uint8_t* at, size_t bytes);

  // Starts a thread that puts huge pages under the mapping, piece by piece, where memory allows; not under what was
  // released. Rows of a few hundred bytes, picked all over a model, miss the TLB at every turn with 4 KiB pages: from
  // huge pages they stream half as fast again, and file systems do not offer those for what they cache. Resident memory
  // stays what it was; what the system caches of the file, it can drop.
  void use_huge_pages();

 private:
  // What a moved-from file no longer has.
  struct View {
    const uint8_t* data = nullptr;
    size_t size = 0;
    int descriptor = -1;
    void* reserved = nullptr;  // address space that the mapping is in
    size_t reserved_bytes = 0;

    View() = default;
    View(View&& other) noexcept { *this = static_cast<View&&>(other); }
    View& operator=(View&& other) noexcept;
  };

  View view_;
  std::string path_;
  std::vector<std::pair<size_t, size_t>> released_;  // begin and end, in the file
  std::vector<bool> writable_;                       // pieces
  std::unique_ptr<std::atomic<bool>> upgrading_;
  std::jthread upgrade_;
};

}  // namespace pi
