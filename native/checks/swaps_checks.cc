// Which neurons change places, and what a mapped file does with what is written to it.
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <random>
#include <set>
#include <stdexcept>

#include "base/mapped_file.h"
#include "checks/check.h"
#include "engine/swaps.h"

namespace pi::checks {
namespace {

const Check extremes("swaps: the host's most asked for with the GPU's least, until the difference may be chance", [] {
  //                                  GPU                 host
  const std::vector<uint32_t> counts{500, 0, 90, 100, 10, 400, 15, 105, 300, 200};
  const std::vector<Swap> swaps = choose_swaps(counts, 5);
  std::string found;
  for (const Swap& s : swaps) found += std::to_string(s.gpu) + "-" + std::to_string(s.host) + " ";
  return found == "1-5 4-8 2-9 " ? std::string() : "expected 1-5 4-8 2-9, got " + found;
});

const Check rare("swaps: a neuron that was hardly ever asked for says nothing", [] {
  if (!choose_swaps(std::vector<uint32_t>{0, 0, 15, 15}, 2).empty()) return std::string("15 times");
  return choose_swaps(std::vector<uint32_t>{0, 0, 17, 15}, 2).size() == 1 ? std::string()
                                                                          : std::string("17 times are enough");
});

const Check nothing("swaps: none where one side has no neurons", [] {
  const std::vector<uint32_t> counts{0, 1000};
  return choose_swaps(counts, 0).empty() && choose_swaps(counts, 2).empty() && choose_swaps({}, 0).empty()
             ? std::string()
             : std::string("some");
});

const Check chance("swaps: neurons that are equally often asked for stay, whatever chance counts", [] {
  std::mt19937 random(1);
  size_t moved = 0;
  for (double rate : {0.02, 0.1, 0.5}) {
    std::binomial_distribution<uint32_t> count(512, rate);
    std::vector<uint32_t> counts(11008);
    for (uint32_t& c : counts) c = count(random);
    moved += choose_swaps(counts, 4000).size();
  }
  // A few in ten thousand are four deviations off.
  return moved <= 40 ? std::string() : std::to_string(moved) + " moved";
});

const Check settles("swaps: once done, nothing more is to be done, and no position is named twice", [] {
  std::mt19937 random(2);
  std::vector<uint32_t> counts(1000);
  for (uint32_t& c : counts) c = random() % 300;
  const std::vector<Swap> swaps = choose_swaps(counts, 300);
  std::set<int> seen;
  for (const Swap& s : swaps) {
    if (s.gpu >= 300 || s.host < 300 || !seen.insert(s.gpu).second || !seen.insert(s.host).second)
      return std::string("a wrong pair");
    std::swap(counts[s.gpu], counts[s.host]);
  }
  if (swaps.size() < 100) return "only " + std::to_string(swaps.size());
  return choose_swaps(counts, 300).empty() ? std::string() : std::string("more");
});

const Check own("mapped file: what is written is this process's own; the file is read behind it", [] {
  char path[] = "/tmp/pi-mapped-XXXXXX";
  const int fd = ::mkstemp(path);
  std::vector<uint8_t> bytes(100000);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(i * 7 >> 3);
  const bool written = ::write(fd, bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size());
  ::close(fd);
  MappedFile file(path), other(path);
  std::remove(path);
  if (!written) return std::string("cannot write " + std::string(path));
  std::memset(file.writable(file.data() + 4090, 10), 0xee, 10);
  std::memset(file.writable(file.data() + bytes.size() - 3, 3), 0xee, 3);
  std::vector<uint8_t> expected = bytes, from_file(bytes.size());
  std::memset(&expected[4090], 0xee, 10);
  std::memset(&expected[bytes.size() - 3], 0xee, 3);
  if (std::memcmp(file.data(), expected.data(), bytes.size()) != 0)
    return std::string("the mapping differs from what was written");
  if (std::memcmp(other.data(), bytes.data(), bytes.size()) != 0) return std::string("another mapping has changed");
  file.read(0, from_file.data(), bytes.size());
  if (from_file != bytes) return std::string("the file has changed");
  try {
    file.read(bytes.size() - 1, from_file.data(), 2);
  } catch (const std::runtime_error& error) {
    return std::string(error.what()).find("the file ends") != std::string::npos ? std::string()
                                                                                : std::string(error.what());
  }
  return std::string("read past the end");
});

}  // namespace
}  // namespace pi::checks
