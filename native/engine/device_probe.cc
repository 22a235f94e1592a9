#include "engine/device_probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <stdexcept>
#include <thread>

#include "cuda/kernels.h"

namespace pi::engine {

namespace {

using cuda::Device;
using cuda::Queue;

constexpr int kRounds = 5;     // of which the best counts
constexpr int kRepeats = 8;    // of what one round times, so that neither its launch nor its end does
constexpr int kMeetings = 64;  // one after the other
constexpr int kKernels = 256;  // one after the other, so that the program's own launch does not count
constexpr int kRow = 4096;     // elements that meet: a 7 B model's stream

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The best of some rounds of `work`, which returns when it is done.
template <typename Work>
double best_seconds(Work&& work) {
  double best = 0;
  for (int round = 0; round <= kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    work();
    const double seconds = seconds_since(start);
    if (round > 0) best = best == 0 ? seconds : std::min(best, seconds);  // the first one warms up
  }
  return best;
}

struct FreeDevice {
  Device* device;
  void operator()(void* memory) const { device->free(memory); }
};
struct FreeHost {
  Device* device;
  void operator()(void* memory) const { device->free_host(memory); }
};

// Half as much as long as there is not that much.
template <typename Free, typename Allocate>
std::unique_ptr<void, Free> take(Device& device, size_t& bytes, Allocate&& allocate) {
  for (; bytes >= 4096; bytes = bytes / 2 / 256 * 256) {
    if (void* const memory = allocate(bytes)) return {memory, Free{&device}};
  }
  throw std::runtime_error("device probe: there is no memory to measure with");
}

auto take_device(Device& device, size_t& bytes) {
  return take<FreeDevice>(device, bytes, [&](size_t n) { return device.allocate(n); });
}
auto take_host(Device& device, size_t& bytes) {
  return take<FreeHost>(device, bytes, [&](size_t n) { return device.allocate_host(n); });
}

double read_bandwidth(Device& device, size_t bytes) {
  const auto memory = take_device(device, bytes);
  size_t word = 4096;
  const auto sum = take_device(device, word);
  device.zero(Queue::kCompute, memory.get(), bytes);
  const double seconds = best_seconds([&] {
    for (int i = 0; i < kRepeats; ++i) {
      device.kernels().sweep(
          device.stream(), {static_cast<const uint32_t*>(memory.get()), bytes / 4, static_cast<uint32_t*>(sum.get())});
    }
    device.synchronize(Queue::kCompute);
  });
  return static_cast<double>(bytes) * kRepeats / seconds;
}

double link_bandwidth(Device& device, size_t bytes) {
  const auto host = take_host(device, bytes);
  const auto memory = take_device(device, bytes);
  const double seconds = best_seconds([&] {
    device.upload(Queue::kCopy, memory.get(), host.get(), bytes);
    device.synchronize(Queue::kCopy);
  });
  return static_cast<double>(bytes) / seconds;
}

// What host and GPU share while they meet. Flags lie a line apart.
struct Table {
  struct alignas(64) Line {
    uint32_t word;
  };
  Line given[kMeetings], answered[kMeetings], abort;
  float row[kRow], answer[kRow];
};

// A program of meetings: each gives a row to the host and waits for another.
std::unique_ptr<cuda::Program> record_meetings(Device& device, Table& table, const uint32_t* step, float* row) {
  device.begin_recording();
  for (int i = 0; i < kMeetings; ++i) {
    device.kernels().publish(device.stream(), {row, table.row, kRow, {&table.given[i].word, step, &table.abort.word}});
    device.kernels().receive(
        device.stream(),
        {{&table.answered[i].word, step, &table.abort.word}, table.answer, {row, nullptr, nullptr, kRow}, 1});
  }
  return device.end_recording();
}

double meeting_seconds(Device& device) {
  size_t table_bytes = sizeof(Table), row_bytes = kRow * sizeof(float) + 256;
  const auto shared = take_host(device, table_bytes);
  const auto memory = take_device(device, row_bytes);
  if (table_bytes < sizeof(Table) || row_bytes < kRow * sizeof(float) + 256)
    throw std::runtime_error("device probe: there is no memory to meet in");
  Table& table = *static_cast<Table*>(shared.get());
  float* const row = static_cast<float*>(memory.get());
  uint32_t* const step = reinterpret_cast<uint32_t*>(row + kRow);
  device.zero(Queue::kCompute, row, row_bytes);
  const auto program = record_meetings(device, table, step, row);
  const auto end = device.event();

  size_t number_bytes = 4096;
  const auto number = take_host(device, number_bytes);
  uint32_t& now = *static_cast<uint32_t*>(number.get());
  const double seconds = best_seconds([&] {
    ++now;
    device.upload(Queue::kCompute, step, &now, sizeof now);
    device.launch(*program);
    device.record(Queue::kCompute, *end);
    for (int i = 0; i < kMeetings; ++i) {
      std::atomic_ref<uint32_t> given(table.given[i].word);
      for (int looks = 1; given.load(std::memory_order_acquire) != now; ++looks) {
        if (looks % 1024 != 0) continue;
        if (device.done(*end) && given.load(std::memory_order_acquire) != now)
          device.synchronize(Queue::kCompute);  // says what went wrong
        std::this_thread::yield();
      }
      std::atomic_ref<uint32_t>(table.answered[i].word).store(now, std::memory_order_release);
    }
    device.synchronize(Queue::kCompute);
  });
  return seconds / kMeetings;
}

// A row goes from one place to another and back: kernels as small as any of a token's, each reading what the last one
// wrote.
double launch_seconds(Device& device) {
  size_t bytes = 2 * kRow * sizeof(float);
  const auto memory = take_device(device, bytes);
  if (bytes < 2 * kRow * sizeof(float)) throw std::runtime_error("device probe: there is no memory for two rows");
  float* const rows[2] = {static_cast<float*>(memory.get()), static_cast<float*>(memory.get()) + kRow};
  device.zero(Queue::kCompute, memory.get(), bytes);
  device.begin_recording();
  for (int i = 0; i < kKernels; ++i)
    device.kernels().receive(device.stream(), {{}, rows[i % 2], {rows[(i + 1) % 2], nullptr, nullptr, kRow}, 1});
  const auto program = device.end_recording();
  const double seconds = best_seconds([&] {
    device.launch(*program);
    device.synchronize(Queue::kCompute);
  });
  return seconds / kKernels;
}

}  // namespace

DeviceProbe probe_device(Device& device, size_t bytes) {
  bytes = std::max<size_t>(4096, bytes / 256 * 256);
  return {read_bandwidth(device, bytes), link_bandwidth(device, bytes), meeting_seconds(device),
          launch_seconds(device)};
}

}  // namespace pi::engine
