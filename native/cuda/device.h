// A GPU as the engine sees it: memory, two queues of work, recorded programs. No CUDA header is needed to use one. The
// same kernel sources are compiled for CUDA (libpi_cuda, by nvcc) and for the host (an emulator: blocks, warps, shared
// memory, barriers, shuffles), and either is loaded when it is first asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace pi::cuda {

struct Kernels;

struct DeviceInfo {
  std::string name;     // e.g. "NVIDIA GeForce RTX 4090"
  std::string backend;  // "cuda", "hip" or "emulated"
  int compute_major = 0, compute_minor = 0;
  int multiprocessors = 0;
  size_t total_bytes = 0, free_bytes = 0;  // of device memory; free as of opening, with this process's context in place
  size_t context_bytes = 0;                // what opening took of it: context and code
  int driver_version = 0, runtime_version = 0;  // as CUDA numbers them: 12040 is 12.4
};

// Work is done in order within a queue. kCopy is for what may happen beside a step.
enum class Queue : int { kCompute = 0, kCopy = 1 };

// Work that was recorded once and is launched again and again, with the same arguments. Belongs to its device.
class Program {
 public:
  virtual ~Program() = default;
  // Kernels, copies and fills, one after the other.
  virtual size_t operations() const = 0;
};

// A point in a queue. Belongs to its device.
class Event {
 public:
  virtual ~Event() = default;
};

// Not thread-safe, but for the memory it hands out. Everything asynchronous is ordered by its queue alone. Errors throw
// std::runtime_error naming the call and what the runtime said. A launch that is refused shows at the next record or
// synchronize; an error that a kernel makes ends the device, and shows at every call from then on, at the next
// synchronize at the latest. Only what destructors call throws nothing.
//
// A queue holds about a thousand launches; another waits for room in it, as the host does then. So no more of them may
// be given to the device behind a kernel that waits for the host.
class Device {
 public:
  virtual ~Device() = default;

  virtual const DeviceInfo& info() const = 0;
  virtual size_t free_bytes() const = 0;

  // Device memory, aligned to 256 bytes; null where there is not enough. Never called between steps: cuda/arena.h hands
  // out pieces of one allocation.
  virtual void* allocate(size_t bytes) = 0;
  virtual void free(void* memory) noexcept = 0;
  // Page-locked host memory that kernels reach at the same address; zeroed; null where there is not enough.
  virtual void* allocate_host(size_t bytes) = 0;
  virtual void free_host(void* memory) noexcept = 0;

  // `host` is page-locked, and stays as it is until the queue got there.
  virtual void upload(Queue queue, void* device, const void* host, size_t bytes) = 0;
  virtual void download(Queue queue, void* host, const void* device, size_t bytes) = 0;
  virtual void zero(Queue queue, void* device, size_t bytes) = 0;

  virtual std::unique_ptr<Event> event() = 0;
  virtual void record(Queue queue, Event& event) = 0;
  // What comes later in `queue` waits for the event, as recorded before this call.
  virtual void wait(Queue queue, Event& event) = 0;
  // True when the work before the recorded event is done. Never waits.
  virtual bool done(Event& event) = 0;
  virtual void synchronize(Queue queue) = 0;

  // Between the two, what is asked of kCompute is recorded instead of done. No memory is taken or given back meanwhile,
  // and no event asked for.
  virtual void begin_recording() = 0;
  virtual std::unique_ptr<Program> end_recording() = 0;
  virtual void launch(Program& program) = 0;

  // The kernels, and the stream of kCompute that they are launched into.
  virtual const Kernels& kernels() const = 0;
  virtual void* stream() const = 0;
};

// Which device to open: PI_DEVICE=none|cuda|hip|emulated overrides; otherwise cuda. `ordinal` counts CUDA's visible
// devices.
struct Opened {
  std::shared_ptr<Device> device;  // null where there is none
  std::string reason;              // then: why, in a sentence's half, e.g. "no NVIDIA driver is loaded"
};
Opened open_device(int ordinal = 0);

}  // namespace pi::cuda
