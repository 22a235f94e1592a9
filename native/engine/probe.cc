#include "engine/probe.h"

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/aligned.h"

namespace pi::engine {

namespace {

// One cache line; the compiler maps it to the vectors it has.
using Line = uint64_t __attribute__((vector_size(64)));

// Bytes all threads read between two looks at the clock: a few milliseconds, long enough that neither the barrier nor
// the clock counts and short enough that some rounds run undisturbed on a busy machine.
constexpr size_t kRoundBytes = size_t{64} << 20;

// Lines that are asked for before they are read, where they are: as far ahead as the kernels ask.
constexpr size_t kLinesAhead = 12288 / sizeof(Line);

// Sum of all lines. Four independent sums keep enough loads in flight; the barrier stops passes from being merged.
template <bool kPrefetch>
uint64_t sweep(const Line* lines, size_t n) {
  asm volatile("" ::: "memory");
  Line sums[4] = {};
  size_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (size_t j = 0; j < 4; ++j) {
      if (kPrefetch) __builtin_prefetch(lines + i + j + kLinesAhead, 0, 3);
      sums[j] += lines[i + j];
    }
  }
  for (; i < n; ++i) sums[0] += lines[i];
  const Line sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  return sum[0] + sum[1] + sum[2] + sum[3] + sum[4] + sum[5] + sum[6] + sum[7];
}

struct FreeLines {
  void operator()(Line* lines) const { ::operator delete (lines, std::align_val_t{sizeof(Line)}); }
};

}  // namespace

uint64_t sum_lines(const void* lines, size_t bytes) {
  return sweep<false>(static_cast<const Line*>(lines), bytes / sizeof(Line));
}

double read_bandwidth(size_t bytes, int threads, double seconds) {
  const size_t lines = bytes / sizeof(Line);
  if (threads < 1 || lines < static_cast<size_t>(threads) || !(seconds > 0)) {
    throw std::invalid_argument("read bandwidth: expected 1 thread or more, 64 bytes for each and some seconds, got " +
                                std::to_string(threads) + " threads, " + std::to_string(bytes) + " bytes, " +
                                std::to_string(seconds) + " seconds");
  }
  const std::unique_ptr<Line, FreeLines> buffer(
      static_cast<Line*>(::operator new (lines * sizeof(Line), std::align_val_t{sizeof(Line)})));
  advise_huge_pages(buffer.get(), lines * sizeof(Line));
  const size_t passes = std::max<size_t>(1, kRoundBytes / (lines * sizeof(Line)));

  using Clock = std::chrono::steady_clock;
  const auto elapsed = [](Clock::time_point since) {
    return std::chrono::duration<double>(Clock::now() - since).count();
  };
  Clock::time_point start, round;
  double best = 0;
  bool started = false, over = false;
  // Runs once per round, while every thread waits: the first one begins the clock, each later one ends a round.
  std::barrier barrier(threads, [&]() noexcept {
    if (started) {
      best = std::max(best, static_cast<double>(passes * lines * sizeof(Line)) / elapsed(round));
      over = elapsed(start) >= seconds;
    } else {
      start = Clock::now();
      started = true;
    }
    round = Clock::now();
  });

  std::atomic<uint64_t> sink{0};
  const auto read_slice = [&](int thread) {
    Line* const first = buffer.get() + lines * thread / threads;
    const size_t n = lines * (thread + 1) / threads - lines * thread / threads;
    std::memset(static_cast<void*>(first), 1, n * sizeof(Line));
    uint64_t sum = 0;
    // Rounds in turn with and without asking ahead: which one is faster depends on the machine, and on whether it is
    // busy.
    bool ahead = false;
    for (barrier.arrive_and_wait(); !over; barrier.arrive_and_wait()) {
      for (size_t pass = 0; pass < passes; ++pass) sum += ahead ? sweep<true>(first, n) : sweep<false>(first, n);
      ahead = !ahead;
    }
    sink += sum;
  };
  std::vector<std::jthread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(read_slice, thread);
  read_slice(0);
  return best;
}

}  // namespace pi::engine
