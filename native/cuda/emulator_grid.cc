#include "cuda/emulator_grid.h"

#include <cstdio>
#include <cstring>
#include <numeric>
#include <thread>

namespace pi::cuda::emulator {

constinit Here here{};

namespace {

constinit Grid* grid = nullptr;

constexpr uint8_t kGuardByte = 0xa5;

uint3 place(uint64_t i, const dim3& of) {
  return {static_cast<unsigned>(i % of.x), static_cast<unsigned>(i / of.x % of.y),
          static_cast<unsigned>(i / of.x / of.y)};
}

const char* name(Exchange kind) {
  switch (kind) {
    case Exchange::kShuffle:
      return "a shuffle";
    case Exchange::kVote:
      return "a vote";
    default:
      return "__syncwarp";
  }
}

}  // namespace

void* dynamic_shared() { return grid->dynamic_shared(); }
void barrier(int line) { grid->barrier(line); }
Told exchange(uint64_t value, Exchange kind, int line) { return grid->exchange(value, kind, line); }
void fail(const char* what) {
  grid->set_error(what);
  grid->give_up();
}
void sleep() { grid->sleep(); }

// --------------------------------------------------------------------------------------------------- a launch's blocks

namespace {

uint64_t count(const dim3& of) { return uint64_t{of.x} * of.y * of.z; }

}  // namespace

std::string refusal(const Launch& launch) {
  const uint64_t threads = count(launch.block);
  const std::string of = std::string("kernel ") + launch.kernel + ": ";
  if (count(launch.grid) == 0 || threads == 0) return of + "a launch of nothing";
  if (launch.grid.x > 0x7fffffff) return of + "a grid of more than 2^31 - 1 blocks along x";
  if (launch.grid.y > 65535 || launch.grid.z > 65535) return of + "a grid of more than 65535 blocks along y or z";
  if (threads > kMostThreads)
    return of + std::to_string(threads) + " threads in a block, of at most " + std::to_string(kMostThreads);
  if (launch.shared_bytes > kMostShared) {
    return of + std::to_string(launch.shared_bytes) + " bytes of shared memory, of at most " +
           std::to_string(kMostShared);
  }
  return "";
}

std::string Grid::run(const Launch& launch) {
  const uint64_t threads = count(launch.block);
  launch_ = &launch;
  sleeping_.store(false, std::memory_order_relaxed);
  blocks_ = count(launch.grid);
  threads_ = static_cast<int>(threads);
  n_warps_ = static_cast<int>((threads + kWarp - 1) / kWarp);
  if (lanes_.size() < threads) lanes_.resize(threads);
  for (int i = 0; i < threads_; ++i) lanes_[i] = {place(i, launch.block), nullptr};
  if (warps_.size() < size_t(n_warps_)) warps_.resize(n_warps_);
  if (shared_.size() < launch.shared_bytes + 2 * kGuard) shared_.resize(launch.shared_bytes + 2 * kGuard);
  here.block_dim = launch.block;
  here.grid_dim = launch.grid;
  grid = this;
  error_.clear();
  order_blocks();
  begin_block();
  running_ = &home_;
  enter(free_fiber());
  if (!error_.empty()) {
    free_.clear();
    fibers_.clear();
  }
  return error_;
}

// Those of a launch run in no order on a GPU: with a seed, from any of them on in steps that reach each once.
void Grid::order_blocks() {
  block_ = first_ = 0;
  stride_ = 1;
  if (random_ == 0) return;
  first_ = next_random() % blocks_;
  do {
    stride_ = 1 + next_random() % blocks_;
  } while (std::gcd(stride_, blocks_) != 1);
}

// Prepares block `block_`; false where there is none.
bool Grid::begin_block() {
  if (block_ == blocks_) return false;
  here.block = place((first_ + block_ * stride_) % blocks_, launch_->grid);
  if (launch_->shared_bytes > 0) {
    uint8_t* const data = shared_.data();
    std::memset(data, kGuardByte, kGuard);
    std::memset(data + kGuard, 0xff, launch_->shared_bytes);
    std::memset(data + kGuard + launch_->shared_bytes, kGuardByte, kGuard);
  }
  for (int w = 0; w < n_warps_; ++w) {
    const unsigned n = std::min(kWarp, threads_ - w * kWarp);
    Warp& warp = warps_[w];
    warp.live = warp.ready = n == kWarp ? ~0u : (1u << n) - 1;
    warp.arrived = warp.at_barrier = 0;
    warp.turn = 0;
  }
  live_ = threads_;
  barrier_arrived_ = 0;
  current_ = 0;
  pick();
  return true;
}

void Grid::end_block() {
  if (launch_->shared_bytes == 0) return;
  const uint8_t* const before = shared_.data();
  const uint8_t* const after = before + kGuard + launch_->shared_bytes;
  for (size_t i = 0; i < kGuard; ++i) {
    if (before[i] != kGuardByte || after[i] != kGuardByte)
      emulator::fail("a write outside of the block's dynamic shared memory");
  }
}

// ----------------------------------------------------------------------------------------------------- a block's lanes

void Grid::fiber_main() {
  Fiber::entered();
  grid->run_lanes();
}

// What every fiber does: runs lanes from beginning to end, one after the other and block after block. Where a lane has
// to wait, wait() goes on with another fiber.
void Grid::run_lanes() {
  for (;;) {
    lanes_[current_].fiber = running_;
    show_lane();
    launch_->body();
    end_lane();
    if (live_ == 0) {
      end_block();
      ++block_;
      if (begin_block()) continue;
      free_.push_back(running_);
      enter(home_);
      continue;
    }
    if (!pick()) stuck();
    Fiber* const next = lanes_[current_].fiber;
    if (next == nullptr) continue;
    show_lane();
    free_.push_back(running_);
    enter(*next);
  }
}

void Grid::show_lane() {
  here.thread = lanes_[current_].thread;
  here.lane = static_cast<int>(current_ % kWarp);
}

void Grid::end_lane() {
  if (running_->overflowed()) {
    set_error("a thread used more than " + std::to_string(Fiber::kStackBytes) + " bytes of stack");
    give_up();
  }
  lanes_[current_].fiber = nullptr;
  Warp& mine = warp();
  mine.live &= ~bit();
  --live_;
  if (mine.arrived != 0 && mine.arrived == mine.live) open_warp(mine);
  if (barrier_arrived_ != 0 && barrier_arrived_ == live_) open_barrier();
}

// Chooses the lane to run next, one of the current warp where there is one.
bool Grid::pick() {
  const uint32_t random = random_ != 0 ? next_random() : 0;
  unsigned w = random % 8 == 1 ? (random >> 8) % n_warps_ : current_ / kWarp;
  for (int i = 0; i < n_warps_; ++i) {
    if (const uint32_t ready = warps_[w].ready; ready != 0) {
      const unsigned turned = random >> 27;
      const unsigned lane = (std::countr_zero(std::rotr(ready, turned)) + turned) % kWarp;
      warps_[w].ready &= ~(1u << lane);
      current_ = w * kWarp + lane;
      return true;
    }
    if (++w == static_cast<unsigned>(n_warps_)) w = 0;
  }
  return false;
}

void Grid::enter(Fiber& fiber) {
  Fiber* const from = running_;
  running_ = &fiber;
  from->leave_to(fiber);
}

// Goes on with another lane until this one is picked again.
void Grid::wait() {
  const unsigned self = current_;
  if (!pick()) stuck();
  if (current_ == self) return;
  Fiber* const next = lanes_[current_].fiber;
  if (next != nullptr) show_lane();
  enter(next != nullptr ? *next : free_fiber());
}

Fiber& Grid::free_fiber() {
  if (free_.empty()) {
    fibers_.push_back(std::make_unique<Fiber>(&Grid::fiber_main, fibers_.size()));
    return *fibers_.back();
  }
  Fiber* const fiber = free_.back();
  free_.pop_back();
  return *fiber;
}

// -------------------------------------------------------------------------------------------------- what they wait for

void Grid::open_barrier() {
  for (int w = 0; w < n_warps_; ++w) {
    warps_[w].ready |= warps_[w].at_barrier;
    warps_[w].at_barrier = 0;
  }
  barrier_arrived_ = 0;
}

void Grid::barrier(int line) {
  if (barrier_arrived_ == 0) barrier_line_ = line;
  if (line != barrier_line_) {
    set_error("threads wait at different barriers, of lines " + std::to_string(barrier_line_) + " and " +
              std::to_string(line));
    give_up();
  }
  warp().at_barrier |= bit();
  if (++barrier_arrived_ == live_) {
    open_barrier();
    if (random_ == 0) {
      warp().ready &= ~bit();
      return;
    }
  }
  wait();
}

void Grid::open_warp(Warp& warp) {
  warp.turns[warp.turn].live = warp.live;
  warp.turn ^= 1;
  warp.ready |= warp.arrived;
  warp.arrived = 0;
}

Told Grid::exchange(uint64_t value, Exchange kind, int line) {
  Warp& mine = warp();
  Warp::Turn& turn = mine.turns[mine.turn];
  const unsigned lane = current_ % kWarp;
  if (mine.arrived == 0) {
    mine.kind = kind;
    mine.line = line;
    turn.ballot = 0;
  } else if (kind != mine.kind || line != mine.line) {
    set_error(std::string("lanes of a warp are at ") + name(mine.kind) + " of line " + std::to_string(mine.line) +
              " and at " + name(kind) + " of line " + std::to_string(line));
    give_up();
  }
  turn.values[lane] = value;
  turn.ballot |= static_cast<uint32_t>(value != 0) << lane;
  mine.arrived |= bit();
  if (mine.arrived == mine.live) {
    open_warp(mine);
    if (random_ == 0) {
      mine.ready &= ~bit();
      return {turn.values, turn.live, turn.ballot};
    }
  }
  wait();
  return {turn.values, turn.live, turn.ballot};
}

void Grid::sleep() {
  if (closing_.load(std::memory_order_relaxed)) emulator::fail("the device was closed while it waited");
  sleeping_.store(true, std::memory_order_relaxed);
  std::this_thread::yield();
}

std::string Grid::who_waits() const {
  std::string where;
  for (int w = 0; w < n_warps_; ++w) {
    const Warp& warp = warps_[w];
    const int arrived = std::popcount(warp.arrived);
    if (arrived == 0) continue;
    where = std::to_string(arrived) + " of " + std::to_string(std::popcount(warp.live)) + " lanes of warp " +
            std::to_string(w) + " wait at " + name(warp.kind) + " of line " + std::to_string(warp.line);
    break;
  }
  if (barrier_arrived_ > 0) {
    where += (where.empty() ? "" : ", ") + std::to_string(barrier_arrived_) + " of " + std::to_string(live_) +
             " threads at the barrier of line " + std::to_string(barrier_line_);
  }
  return where;
}

// Nobody can go on: some wait for others that wait elsewhere.
void Grid::stuck() {
  set_error("not all threads come to where others wait: " + who_waits());
  give_up();
}

void Grid::set_error(const std::string& what) {
  const uint3 b = here.block, t = here.thread;
  char where[128];
  std::snprintf(where, sizeof where, ", block (%u, %u, %u), thread (%u, %u, %u): ", b.x, b.y, b.z, t.x, t.y, t.z);
  error_ = std::string("kernel ") + launch_->kernel + where + what;
}

// Ends the launch. What its fibers were doing is never gone on with, so nothing on their stacks may own anything.
void Grid::give_up() {
  running_->leave_to(home_);
  __builtin_unreachable();
}

uint32_t Grid::next_random() {
  random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
  return static_cast<uint32_t>(random_ >> 32);
}

}  // namespace pi::cuda::emulator
