// Where loops run: on the pool, or on the calling thread when the caller itself is one of the pool's.
#pragma once

#include <algorithm>
#include <atomic>

#include "base/thread_pool.h"

namespace pi {

struct Executor {
  ThreadPool* pool = nullptr;

  template <typename F>
  void each(int n, F&& f) const {
    if (pool) {
      pool->parallel_for(n, f);
    } else {
      for (int i = 0; i < n; ++i) f(i);
    }
  }

  int threads() const { return pool ? pool->threads() : 1; }

  // As `each`, with the number of the thread, below threads(), as f's second argument: for scratch of its own.
  template <typename F>
  void each_on_thread(int n, F&& f) const {
    std::atomic<int> next{0};
    each(std::min(n, threads()), [&](int thread) {
      for (int i = next++; i < n; i = next++) f(i, thread);
    });
  }

  // Splits [0, n) into about four ranges a thread, each a multiple of `grain`, and calls f(begin, end).
  template <typename F>
  void ranges(int n, int grain, F&& f) const {
    const int parts = pool ? threads() * 4 : 1;
    const int size = std::max(1, (n / parts + grain - 1) / grain) * grain;
    each((n + size - 1) / size, [&](int i) { f(i * size, std::min(n, (i + 1) * size)); });
  }
};

}  // namespace pi
