// A queue of work and the OS thread that does it in order.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cuda/emulator_grid.h"

namespace pi::cuda::emulator {

// The first error of a device; everything after it is left out, as on a GPU.
class Fault {
 public:
  void set(const std::string& what) {
    const std::lock_guard lock(mutex_);
    if (what_.empty()) what_ = what;
    failed_ = true;
  }
  bool failed() const { return failed_; }
  void rethrow() {
    if (!failed_) return;
    const std::lock_guard lock(mutex_);
    throw std::runtime_error("emulated device: " + what_);
  }

 private:
  std::mutex mutex_;
  std::string what_;
  std::atomic<bool> failed_{false};
};

class WorkQueue {
 public:
  struct Operation {
    std::function<void(Grid&)> work;
    bool always = false;  // done after a fault, too: what others wait for
    bool alone = true;    // not of a program
  };

  // It has room for `most` operations that do not come with a program.
  WorkQueue(Fault& fault, const std::atomic<bool>& closing, uint64_t seed, size_t most)
      : fault_(fault), grid_(closing, seed), most_(most), thread_([this] { run(); }) {}
  ~WorkQueue() {
    add({nullptr, true});
    thread_.join();
  }

  // Waits for room. Where that is behind a kernel that waits for the host, which is here, it throws instead.
  void push(Operation operation) {
    if (recording_) {
      recorded_.push_back(std::move(operation));
      return;
    }
    expect_room();
    add(std::move(operation));
  }
  // As many as there are, for a program is launched as one.
  void push(const std::vector<Operation>& program) {
    for (Operation operation : program) {
      operation.alone = false;
      add(std::move(operation));
    }
  }

  void synchronize() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_.empty() && !busy_; });
  }

  bool recording() const { return recording_; }  // of the caller's thread
  void begin_recording() { recording_ = true; }
  std::vector<Operation> end_recording() {
    recording_ = false;
    return std::exchange(recorded_, {});
  }

 private:
  void add(Operation operation) {
    {
      const std::lock_guard lock(mutex_);
      alone_ += operation.alone;
      waiting_.push_back(std::move(operation));
    }
    changed_.notify_all();
  }

  // A kernel that sleeps as long as nothing can end its sleep but the caller will sleep for ever.
  void expect_room() {
    constexpr int kLooks = 50;
    constexpr std::chrono::milliseconds kLook{100};
    std::unique_lock lock(mutex_);
    for (int asleep = 0; !changed_.wait_for(lock, kLook, [this] { return alone_ < most_; });) {
      asleep = grid_.sleeping() ? asleep + 1 : 0;
      if (asleep < kLooks) continue;
      throw std::runtime_error("emulated device: a launch waits for room behind " + std::to_string(alone_) +
                               " others, and they for a kernel that waits for the host");
    }
  }

  void run() {
    for (;;) {
      Operation operation;
      {
        std::unique_lock lock(mutex_);
        busy_ = false;
        if (waiting_.empty()) changed_.notify_all();
        changed_.wait(lock, [this] { return !waiting_.empty(); });
        operation = std::move(waiting_.front());
        waiting_.pop_front();
        if (operation.alone && alone_-- == most_) changed_.notify_all();
        busy_ = true;
      }
      if (!operation.work) return;
      if (operation.always || !fault_.failed()) operation.work(grid_);
    }
  }

  Fault& fault_;
  Grid grid_;
  const size_t most_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Operation> waiting_;
  size_t alone_ = 0;  // of those
  bool busy_ = false;
  bool recording_ = false;  // of the caller's thread, as recorded_ is
  std::vector<Operation> recorded_;
  std::thread thread_;
};

}  // namespace pi::cuda::emulator
