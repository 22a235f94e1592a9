// A queue of work and the OS thread that does it in order.
#pragma once

#include <atomic>
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
  };

  WorkQueue(Fault& fault, const std::atomic<bool>& closing, uint64_t seed) : fault_(fault), grid_(closing, seed), thread_([this] { run(); }) {}
  ~WorkQueue() {
    recording_ = false;
    push({nullptr, true});
    thread_.join();
  }

  void push(Operation operation) {
    if (recording_) {
      recorded_.push_back(std::move(operation));
      return;
    }
    {
      const std::lock_guard lock(mutex_);
      waiting_.push_back(std::move(operation));
    }
    changed_.notify_all();
  }

  void synchronize() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return waiting_.empty() && !busy_; });
  }

  bool recording() const { return recording_; }
  void begin_recording() { recording_ = true; }
  std::vector<Operation> end_recording() {
    recording_ = false;
    return std::exchange(recorded_, {});
  }

 private:
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
        busy_ = true;
      }
      if (!operation.work) return;
      if (operation.always || !fault_.failed()) operation.work(grid_);
    }
  }

  Fault& fault_;
  Grid grid_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Operation> waiting_;
  bool busy_ = false;
  bool recording_ = false;  // of the caller's thread, as recorded_ is
  std::vector<Operation> recorded_;
  std::thread thread_;
};

}  // namespace pi::cuda::emulator
