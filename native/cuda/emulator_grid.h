// Runs the blocks of one launch after the other; see cuda/emulator.h. Belongs to one OS thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/emulator.h"
#include "cuda/emulator_fiber.h"

namespace pi::cuda::emulator {

// Why a GPU would not take a launch, or an empty string.
std::string refusal(const Launch& launch);

class Grid {
 public:
  // Kernels that sleep are given up as soon as `closing` is true. `seed` 0: lanes run in the order of their numbers.
  Grid(const std::atomic<bool>& closing, uint64_t seed) : closing_(closing), random_(seed) {}

  // Runs all of it; returns an empty string, or what was wrong, naming kernel and block.
  std::string run(const Launch& launch);

  // Of the kernel that is running.
  void barrier(int line);
  Told exchange(uint64_t value, Exchange kind, int line);
  // Says what is wrong with the running kernel; and ends it.
  void set_error(const std::string& what);
  [[noreturn]] void give_up();
  void sleep();
  void* dynamic_shared() { return shared_.data() + kGuard; }
  // The running kernel waits for the host. Of any thread.
  bool sleeping() const { return sleeping_.load(std::memory_order_relaxed); }

 private:
  static constexpr size_t kGuard = 64;

  struct Warp {
    uint32_t live = 0;        // lanes that have not returned
    uint32_t ready = 0;       // those that may run: not begun, or no longer waiting
    uint32_t arrived = 0;     // those that wait for the others at a warp operation,
    uint32_t at_barrier = 0;  // or at the block's barrier
    Exchange kind = Exchange::kNone;
    int line = 0;  // of the operation that they wait at
    // What they told each other, in turns, for a lane may be one operation ahead of one that has yet to read.
    struct Turn {
      uint64_t values[kWarp];
      uint32_t live, ballot;
    } turns[2] = {};
    int turn = 0;
  };
  struct Lane {
    uint3 thread;
    Fiber* fiber = nullptr;  // null until it begins
  };

  PI_UNCOUNTED static void fiber_main();
  PI_UNCOUNTED void run_lanes();
  void order_blocks();
  bool begin_block();
  void end_lane();
  void show_lane();
  void end_block();
  bool pick();
  PI_UNCOUNTED void enter(Fiber& fiber);
  void wait();
  void open_barrier();
  void open_warp(Warp& warp);
  Fiber& free_fiber();
  [[noreturn]] void stuck();
  std::string who_waits() const;
  Warp& warp() { return warps_[current_ / kWarp]; }
  uint32_t bit() const { return 1u << (current_ % kWarp); }
  uint32_t next_random();

  const std::atomic<bool>& closing_;
  std::atomic<bool> sleeping_{false};
  uint64_t random_;

  const Launch* launch_ = nullptr;
  uint64_t block_ = 0, blocks_ = 0;  // of the launch; which of them it is, counted along x, y, z, says
  uint64_t first_ = 0, stride_ = 1;  // (first_ + block_ * stride_) % blocks_
  int threads_ = 0, n_warps_ = 0, live_ = 0;
  std::vector<Warp> warps_;
  std::vector<Lane> lanes_;
  unsigned current_ = 0;  // lane, counted along the block's x, y, z
  int barrier_line_ = 0, barrier_arrived_ = 0;
  std::vector<uint8_t> shared_;
  std::string error_;

  Fiber home_;  // run()'s own stack
  Fiber* running_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> free_;
};

}  // namespace pi::cuda::emulator
