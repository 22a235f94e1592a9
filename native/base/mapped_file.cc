#include "base/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <vector>

namespace pi {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

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

// Reads the whole file into `to` with a few threads, since most of the time goes into making pages. False where it cannot.
bool read_all(int fd, uint8_t* to, size_t size) {
  constexpr size_t kChunk = 8 * kHugePage;
  std::atomic<size_t> next{0};
  std::atomic<bool> good{true};
  const auto work = [&] {
    for (size_t at = next.fetch_add(kChunk); at < size && good; at = next.fetch_add(kChunk)) {
      const size_t end = std::min(size, at + kChunk);
      for (size_t done = at; done < end && good;) {
        const ssize_t n = ::pread(fd, to + done, end - done, static_cast<off_t>(done));
        if (n > 0) done += static_cast<size_t>(n);
        if (n == 0 || (n < 0 && errno != EINTR)) good = false;
      }
    }
  };
  std::vector<std::jthread> others;
  for (unsigned i = 1; i < std::min(std::thread::hardware_concurrency(), 8u); ++i) others.emplace_back(work);
  work();
  others.clear();
  return good;
}

}  // namespace

MappedFile::MappedFile(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) throw std::runtime_error(path + ": " + std::strerror(errno));
  struct stat info;
  if (::fstat(fd, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
    size_ = static_cast<size_t>(info.st_size);
    if (!copy(fd)) map(fd);
  }
  const int error = errno;
  ::close(fd);
  if (!data_) throw std::runtime_error(path + ": cannot be mapped: " + std::strerror(error));
}

// Files of less than a page gain nothing; larger ones must leave a quarter of the memory that is free to others.
bool MappedFile::copy(int fd) {
#ifdef MADV_HUGEPAGE
  if (size_ < kHugePage || size_ / 3 * 4 > available_memory()) return false;
  const size_t reserved = size_ + kHugePage;
  void* raw = ::mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return false;
  const uintptr_t aligned = (reinterpret_cast<uintptr_t>(raw) + kHugePage - 1) / kHugePage * kHugePage;
  uint8_t* data = reinterpret_cast<uint8_t*>(aligned);
  ::madvise(data, size_, MADV_HUGEPAGE);
  if (!read_all(fd, data, size_)) {
    ::munmap(raw, reserved);
    return false;
  }
  ::mprotect(data, size_, PROT_READ);
  data_ = data;
  start_ = raw;
  reserved_ = reserved;
  return true;
#else
  return false;
#endif
}

void MappedFile::map(int fd) {
  void* data = ::mmap(nullptr, size_, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return;
  ::madvise(data, size_, MADV_WILLNEED);
  data_ = static_cast<const uint8_t*>(data);
}

MappedFile::~MappedFile() {
  if (!data_) return;
  if (reserved_ == 0) {
    ::munmap(const_cast<uint8_t*>(data_), size_);
  } else {
    ::munmap(start_, reserved_);
  }
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(other.data_), size_(other.size_), start_(other.start_), reserved_(other.reserved_) {
  other.data_ = nullptr;
}

}  // namespace pi
