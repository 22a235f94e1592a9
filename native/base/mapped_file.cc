#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <utility>

#include "base/aligned.h"

namespace pi {
namespace {

// Of a mapping, what is replaced or made writable at once: few enough mappings, even for the largest models.
constexpr size_t kPiece = 16 * kHugePage;

#ifdef MREMAP_FIXED

// Bytes that can be allocated without swapping, as the system estimates it; 0 where it does not say.
size_t available_memory() {
  size_t kib = 0;
  if (FILE* info = std::fopen("/proc/meminfo", "re")) {
    char line[128];
    while (std::fgets(line, sizeof line, info) && std::sscanf(line, "MemAvailable: %zu kB", &kib) != 1) {
    }
    std::fclose(info);
  }
  return kib << 10;
}

// Copies `bytes` of mapped memory at `to` into huge pages and moves those to where they were read: whoever reads there
// finds the same bytes before and after, and waits for the system in between. False where the system refuses.
bool replace_by_huge_pages(uint8_t* to, size_t bytes) {
  void* raw = ::mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return false;
  uint8_t* copy = to_huge_page(raw);
  bool moved = false;
  if (::madvise(copy, bytes, MADV_HUGEPAGE) == 0) {
    std::memcpy(copy, to, bytes);
    moved = ::mprotect(copy, bytes, PROT_READ) == 0 &&
            ::mremap(copy, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to) != MAP_FAILED;
  }
  uint8_t* const begin = static_cast<uint8_t*>(raw);
  if (!moved) {
    ::munmap(raw, bytes + kHugePage);
  } else {
    if (copy > begin) ::munmap(begin, static_cast<size_t>(copy - begin));
    ::munmap(copy + bytes, static_cast<size_t>(begin + kHugePage - copy));
  }
  return moved;
}

// Small files gain nothing; large ones must leave a quarter of the memory that is free to others.
bool worth_upgrading(size_t size) { return size >= 8 * kHugePage && size / 3 * 4 <= available_memory(); }

using Ranges = std::vector<std::pair<size_t, size_t>>;

// Whole huge pages of the file that lie in none of `released`, which are in order and do not overlap.
Ranges kept(size_t size, const Ranges& released) {
  Ranges out;
  size_t from = 0;
  const auto keep_until = [&](size_t end) {
    const size_t begin = (from + kHugePage - 1) / kHugePage * kHugePage, whole = end / kHugePage * kHugePage;
    if (begin < whole) out.push_back({begin, whole});
  };
  for (const auto& [begin, end] : released) {
    keep_until(begin);
    from = end;
  }
  keep_until(size);
  return out;
}

// Not at once: the first token should not have to share the machine with it.
void upgrade(const std::stop_token& stop, uint8_t* data, const Ranges& ranges) {
  std::mutex mutex;
  std::unique_lock lock(mutex);
  std::condition_variable_any().wait_for(lock, stop, std::chrono::seconds(1), [] { return false; });
  for (const auto& [begin, end] : ranges) {
    for (size_t at = begin; at < end; at += kPiece) {
      if (stop.stop_requested() || !replace_by_huge_pages(data + at, std::min(kPiece, end - at))) return;
    }
  }
}

#endif

}  // namespace

MappedFile::View& MappedFile::View::operator=(View&& other) noexcept {
  std::swap(data, other.data);
  std::swap(size, other.size);
  std::swap(descriptor, other.descriptor);
  std::swap(reserved, other.reserved);
  std::swap(reserved_bytes, other.reserved_bytes);
  return *this;
}

MappedFile::MappedFile(const std::string& path) : path_(path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw std::runtime_error(path + ": " + std::strerror(errno));
  struct stat info;
  void* data = MAP_FAILED;
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
    view_.size = static_cast<size_t>(info.st_size);
    // On a huge page's border, in address space of its own.
    view_.reserved_bytes = view_.size + kHugePage;
    view_.reserved = ::mmap(nullptr, view_.reserved_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (view_.reserved != MAP_FAILED)
      data = ::mmap(to_huge_page(view_.reserved), view_.size, PROT_READ, MAP_PRIVATE | MAP_FIXED, fd, 0);
  }
  if (data == MAP_FAILED) {
    const int error = errno;
    ::close(fd);
    throw std::runtime_error(path + ": cannot be mapped: " + std::strerror(error));
  }
  view_.descriptor = fd;
  ::madvise(data, view_.size, MADV_WILLNEED);
  view_.data = static_cast<const uint8_t*>(data);
}

void MappedFile::read(size_t offset, void* to, size_t bytes) const {
  for (size_t done = 0; done < bytes;) {
    const ssize_t n =
        ::pread(view_.descriptor, static_cast<uint8_t*>(to) + done, bytes - done, static_cast<off_t>(offset + done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      throw std::runtime_error(path_ + ": cannot be read at " + std::to_string(offset + done) + ": " +
                               (n < 0 ? std::strerror(errno) : "the file ends"));
    done += static_cast<size_t>(n);
  }
}

uint8_t* MappedFile::writable(const uint8_t* at, size_t bytes) {
  static const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  uint8_t* const data = const_cast<uint8_t*>(view_.data);
  const size_t first = static_cast<size_t>(at - view_.data), end = first + bytes;
  writable_.resize((view_.size + kPiece - 1) / kPiece);
  for (size_t piece = first / kPiece; piece * kPiece < end; ++piece) {
    if (writable_[piece]) continue;
    const size_t length = std::min(kPiece, (view_.size + page - 1) / page * page - piece * kPiece);
    if (::mprotect(data + piece * kPiece, length, PROT_READ | PROT_WRITE) != 0)
      throw std::runtime_error(path_ + ": cannot be made writable: " + std::strerror(errno));
    writable_[piece] = true;
  }
#ifdef MADV_POPULATE_WRITE
  // Otherwise whoever writes first waits for the page to be copied.
  const size_t first_page = first / page * page;
  ::madvise(data + first_page, end - first_page, MADV_POPULATE_WRITE);
#endif
  return data + first;
}

void MappedFile::release(const uint8_t* at, size_t bytes) {
  static const size_t page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = static_cast<size_t>(at - view_.data + page - 1) / page * page,
               end = static_cast<size_t>(at - view_.data + bytes) / page * page;
  if (begin >= end) return;
  ::madvise(const_cast<uint8_t*>(view_.data) + begin, end - begin, MADV_DONTNEED);
  released_.push_back({begin, end});
}

void MappedFile::use_huge_pages() {
#ifdef MREMAP_FIXED
  size_t size = view_.size;
  for (const auto& [begin, end] : released_) size -= end - begin;
  if (!worth_upgrading(size)) return;
  std::sort(released_.begin(), released_.end());
  uint8_t* const data = const_cast<uint8_t*>(view_.data);
  upgrading_ = std::make_unique<std::atomic<bool>>(true);
  upgrade_ = std::jthread(
      [data, upgrading = upgrading_.get(), ranges = kept(view_.size, released_)](const std::stop_token& stop) {
        upgrade(stop, data, ranges);
        *upgrading = false;
      });
#endif
}

MappedFile::~MappedFile() {
  if (upgrade_.joinable()) {
    upgrade_.request_stop();
    upgrade_.join();
  }
  if (view_.data) ::munmap(view_.reserved, view_.reserved_bytes);
  if (view_.descriptor >= 0) ::close(view_.descriptor);
}

}  // namespace pi
