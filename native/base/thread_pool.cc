#include "base/thread_pool.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pi {
namespace {

// About 100 µs on current cores: longer than the gap between two operators, shorter than a scheduler slice.
constexpr int kSpins = 5000;

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  job_.fetch_add(1);
  job_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::run(int n, Function function, void* context) {
  function_.store(function, std::memory_order_relaxed);
  context_.store(context, std::memory_order_relaxed);
  done_.store(0, std::memory_order_relaxed);
  ticket_.store(static_cast<uint64_t>(n) << 32, std::memory_order_release);
  job_.fetch_add(1);  // Sequentially consistent with parked_: a worker either sees the job or is seen parked.
  if (parked_.load() > 0) job_.notify_all();
  take_indices();
  for (int spins = 0; spins < kSpins && done_.load(std::memory_order_acquire) < n; ++spins) pause();
  caller_waits_.store(true);
  for (int done = done_.load(); done < n; done = done_.load()) done_.wait(done);
  caller_waits_.store(false, std::memory_order_relaxed);
}

void ThreadPool::take_indices() {
  for (;;) {
    const uint64_t ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
    const int index = static_cast<int>(ticket & 0xffffffffu);
    if (index >= static_cast<int>(ticket >> 32)) return;
    function_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), index);
    done_.fetch_add(1);  // Sequentially consistent with caller_waits_, like job_ with parked_.
    if (caller_waits_.load()) done_.notify_all();
  }
}

void ThreadPool::work() {
  uint32_t seen = 0;
  for (;;) {
    int spins = 0;
    while (job_.load(std::memory_order_acquire) == seen) {
      if (++spins < kSpins) {
        pause();
        continue;
      }
      parked_.fetch_add(1);
      job_.wait(seen);
      parked_.fetch_sub(1);
    }
    seen = job_.load(std::memory_order_acquire);  // before `stop_`, which comes before the last job
    if (stop_.load()) return;
    take_indices();
  }
}

}  // namespace pi
