// Persistent fork-join pool. The caller works too; idle workers spin briefly, then park.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace pi {

// Not thread-safe: one parallel_for at a time, from one thread. Indices are handed out dynamically, so a thread that
// the system takes away delays only the index it holds.
class ThreadPool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls f(0) … f(n - 1), each exactly once, on any thread; returns when all are done. f must not throw.
  template <typename F>
  void parallel_for(int n, F&& f) {
    if (n <= 1 || workers_.empty()) {
      for (int i = 0; i < n; ++i) f(i);
      return;
    }
    run(
        n, [](void* context, int i) { (*static_cast<std::remove_reference_t<F>*>(context))(i); }, &f);
  }

 private:
  using Function = void (*)(void* context, int index);

  void run(int n, Function function, void* context);
  void work();
  void take_indices();

  // (size of the job << 32) | next index to hand out, in one word so that a late worker never measures an old index by
  // a new size. The job's function is read only after an index was drawn, and stays put until that index is done.
  std::atomic<uint64_t> ticket_{0};
  std::atomic<Function> function_{nullptr};
  std::atomic<void*> context_{nullptr};
  std::atomic<int> done_{0};
  std::atomic<uint32_t> job_{0};
  std::atomic<int> parked_{0};
  std::atomic<bool> caller_waits_{false};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace pi
