// The emulated device: its memory, queues and recordings, and what it refuses as a GPU does.
#include <cstdlib>
#include <thread>

#include "checks/check.h"
#include "checks/cuda/emulator.h"
#include "cuda/launchers.h"
#include "cuda/meeting.cuh"

namespace pi::checks {
namespace {

using namespace emulated;

// What shows at the next wait after `act` had 1,000 bytes of a device of its own: to free memory throws nothing.
template <typename Act>
std::string error_after(Act&& act) {
  const auto device = emulator::make_device(kNoKernels);
  act(*device, static_cast<uint8_t*>(device->allocate(1000)));
  return error_of([&] { device->synchronize(Queue::kCompute); });
}

const Check memory("emulator: memory is counted, not yet written, and guarded", [] {
  const auto device = emulator::make_device(kNoKernels);
  const size_t free = device->free_bytes();
  if (device->allocate(free + 1) != nullptr) return std::string("gave more memory than there is");
  uint8_t* const piece = static_cast<uint8_t*>(device->allocate(1000));
  if (reinterpret_cast<uintptr_t>(piece) % 256 != 0) return std::string("device memory not on 256 bytes");
  if (device->free_bytes() != free - 1000)
    return expect_equal("free", static_cast<int64_t>(free) - 1000, static_cast<int64_t>(device->free_bytes()));
  if (piece[0] != 0xff || piece[999] != 0xff) return std::string("device memory that is no NaN");
  uint8_t* const host = static_cast<uint8_t*>(device->allocate_host(1000));
  if (host[0] != 0 || host[999] != 0) return std::string("page-locked memory that is not zero");
  for (const std::string& wrong : {
           expect_error(error_of([&] { device->upload(Queue::kCopy, piece, host, 1001); }),
                        {"upload: 1001 bytes", "device memory"}),
           expect_error(error_of([&] { device->upload(Queue::kCopy, piece, piece, 10); }),
                        {"upload: 10 bytes", "page-locked memory"}),
           expect_error(error_of([&] { device->zero(Queue::kCopy, host, 10); }), {"zero: 10 bytes", "device memory"}),
       }) {
    if (!wrong.empty()) return wrong;
  }
  const auto overrun = [](Device& on, uint8_t* memory) { memory[1000] = 0, on.free(memory); };
  const auto free_twice = [](Device& on, uint8_t* memory) { on.free(memory), on.free(memory); };
  const auto free_as_host = [](Device& on, uint8_t* memory) { on.free_host(memory); };
  device->synchronize(Queue::kCopy);
  piece[1000] = 0;
  host[-3] = 1;
  for (const std::string& wrong : {
           expect_error(error_of([&] { device->synchronize(Queue::kCompute); }),
                        {"1000 bytes of device memory were written to 0 bytes after their end"}),
           expect_error(error_after(overrun), {"after their end"}),
           expect_error(error_after(free_twice), {"freed that is none"}),
           expect_error(error_after(free_as_host), {"page-locked memory was freed that is none"}),
       }) {
    if (!wrong.empty()) return wrong;
  }
  piece[1000] = host[-3] = 0xa5;  // as it was
  device->free(piece);
  device->free_host(host);
  return std::string();
});

__global__ void wait_kernel(Args a) {
  if (threadIdx.x == 0) wait_for(a.meeting);
  __syncthreads();
  if (threadIdx.x == 1) a.out[0] += 1;
}

// Waits until `is` says so; a hang is a check that never ends, which is what it would be on a GPU.
template <typename Is>
void until(Is&& is) {
  while (!is()) std::this_thread::yield();
}

struct Words {
  explicit Words(Device& device) : device(device), words(static_cast<uint32_t*>(device.allocate_host(64))) {}
  ~Words() { device.free_host(words); }
  Device& device;
  uint32_t* words;
};

const Check two_queues("emulator: a queue works while the other waits for the host, and events order them", [] {
  const auto device = emulator::make_device(kNoKernels);
  Words flags(*device), step(*device), rows(*device);
  step.words[0] = 7;
  int out = 0;
  PI_LAUNCH(wait_kernel, dim3(1), dim3(64), 0, device->stream(),
            Args{&out, 0, {flags.words, step.words, flags.words + 1}});
  const auto after = device->event(), copied = device->event();
  device->record(Queue::kCompute, *after);
  void* const memory = device->allocate(64);
  rows.words[3] = 33;
  device->upload(Queue::kCopy, memory, rows.words, 64);
  device->record(Queue::kCopy, *copied);
  until([&] { return device->done(*copied); });
  if (device->done(*after)) return std::string("the kernel did not wait");
  // The copy queue waits for the kernel, which waits for the host.
  device->wait(Queue::kCopy, *after);
  device->download(Queue::kCopy, rows.words + 8, memory, 32);
  const auto last = device->event();
  device->record(Queue::kCopy, *last);
  if (device->done(*last)) return std::string("the copy did not wait for the kernel");
  store_system(flags.words, 7u);
  device->synchronize(Queue::kCopy);
  device->free(memory);
  if (out != 1) return expect_equal("runs of the kernel", 1, out);
  return expect_equal("word copied", 33, rows.words[11]);
});

const Check aborted("emulator: a kernel that waits for the host is ended by abort, and by closing the device", [] {
  int out = 0;
  {
    const auto device = emulator::make_device(kNoKernels);
    Words words(*device);
    words.words[2] = 0xffffffffu;  // the step's number, which wraps: 1 is later
    PI_LAUNCH(wait_kernel, dim3(1), dim3(32), 0, device->stream(),
              Args{&out, 0, {words.words, words.words + 2, words.words + 1}});
    store_system(words.words, 1u);
    device->synchronize(Queue::kCompute);
    words.words[2] = 2;
    PI_LAUNCH(wait_kernel, dim3(1), dim3(32), 0, device->stream(),
              Args{&out, 0, {words.words, words.words + 2, words.words + 1}});
    store_system(words.words + 1, 1u);
    device->synchronize(Queue::kCompute);
  }
  if (out != 2) return expect_equal("kernels that ended", 2, out);
  uint32_t never[3] = {0, 1, 0};
  {
    const auto device = emulator::make_device(kNoKernels);
    PI_LAUNCH(wait_kernel, dim3(1), dim3(32), 0, device->stream(), Args{&out, 0, {never, never + 1, never + 2}});
  }
  return expect_equal("kernels that ended", 2, out);
});

__global__ void count_up(Args a) {
  if (threadIdx.x == 0) a.out[0] = a.out[0] * 2 + 1;
}

const Check recorded("emulator: what was recorded is done when it is launched, as often as it is", [] {
  const auto device = emulator::make_device(kNoKernels);
  int out = 0;
  device->begin_recording();
  PI_LAUNCH(count_up, dim3(1), dim3(32), 0, device->stream(), Args{&out});
  PI_LAUNCH(count_up, dim3(1), dim3(32), 0, device->stream(), Args{&out});
  const auto event = device->event();
  for (const std::string& wrong : {
           expect_error(error_of([&] { device->synchronize(Queue::kCompute); }), {"synchronize cannot be recorded"}),
           expect_error(error_of([&] { device->record(Queue::kCompute, *event); }), {"record cannot be recorded"}),
       }) {
    if (!wrong.empty()) return wrong;
  }
  const auto program = device->end_recording();
  device->synchronize(Queue::kCompute);
  if (out != 0) return expect_equal("before a launch", 0, out);
  for (int i = 0; i < 3; ++i) device->launch(*program);
  device->synchronize(Queue::kCompute);
  return expect_equal("after three launches of two", 63, out);
});

const Check not_recorded(
    "emulator: what cannot be recorded is refused, and what a recording leaves behind is done", [] {
      const auto device = emulator::make_device(kNoKernels);
      const auto event = device->event();
      int out = 0;
      device->begin_recording();
      PI_LAUNCH(count_up, dim3(1), dim3(32), 0, device->stream(), Args{&out});
      for (const std::string& wrong : {
               expect_error(error_of([&] { device->allocate(8); }), {"allocate cannot be recorded"}),
               expect_error(error_of([&] { device->allocate_host(8); }), {"allocate_host cannot be recorded"}),
               expect_error(error_of([&] { device->done(*event); }), {"done cannot be recorded"}),
               expect_error(error_of([&] { device->wait(Queue::kCompute, *event); }), {"wait cannot be recorded"}),
               expect_error(error_of([&] { device->begin_recording(); }), {"begin_recording cannot be recorded"}),
           }) {
        if (!wrong.empty()) return wrong;
      }
      const auto program = device->end_recording();
      device->launch(*program);
      device->synchronize(Queue::kCompute);
      return expect_equal("after a launch of one", 1, out);
    });

const Check after_error("emulator: after an error nothing runs, and every call says which it was", [] {
  const auto device = emulator::make_device(kNoKernels);
  void* const memory = device->allocate(64);
  Words words(*device);
  const auto event = device->event();
  int out = 0;
  PI_LAUNCH(half_a_mask, dim3(1), dim3(32), 0, device->stream(), Args{});
  PI_LAUNCH(count_up, dim3(1), dim3(32), 0, device->stream(), Args{&out});
  const std::string first = error_of([&] { device->synchronize(Queue::kCompute); });
  for (const std::string& wrong : {
           expect_error(first, {"kernel half_a_mask"}),
           expect_error(error_of([&] { device->synchronize(Queue::kCopy); }), {"kernel half_a_mask"}),
           expect_error(error_of([&] { device->upload(Queue::kCopy, memory, words.words, 64); }),
                        {"kernel half_a_mask"}),
           expect_error(error_of([&] { device->download(Queue::kCopy, words.words, memory, 64); }),
                        {"kernel half_a_mask"}),
           expect_error(error_of([&] { device->zero(Queue::kCompute, memory, 64); }), {"kernel half_a_mask"}),
           expect_error(error_of([&] { device->record(Queue::kCopy, *event); }), {"kernel half_a_mask"}),
           expect_error(error_of([&] { device->wait(Queue::kCopy, *event); }), {"kernel half_a_mask"}),
           expect_error(error_of([&] { device->event(); }), {"kernel half_a_mask"}),
           expect_error(error_of([&] { device->allocate(8); }), {"kernel half_a_mask"}),
           expect_error(error_of([&] { device->begin_recording(); }), {"kernel half_a_mask"}),
       }) {
    if (!wrong.empty()) return wrong;
  }
  if (!device->done(*event)) return std::string("an event is waited for that never comes");
  device->free(memory);
  return expect_equal("kernels after it", 0, out);
});

const Check refused("emulator: a launch that is refused shows at the next record, and ends nothing", [] {
  const auto device = emulator::make_device(kNoKernels);
  const auto event = device->event();
  int out = 0;
  PI_LAUNCH(nothing, dim3(1, 65536), dim3(32), 0, device->stream(), Args{});
  PI_LAUNCH(count_up, dim3(1), dim3(32), 0, device->stream(), Args{&out});
  std::string wrong =
      expect_error(error_of([&] { device->record(Queue::kCompute, *event); }), {"kernel nothing", "65535 blocks"});
  if (!wrong.empty()) return wrong;
  device->begin_recording();
  PI_LAUNCH(nothing, dim3(1), dim3(2048), 0, device->stream(), Args{});
  wrong = expect_error(error_of([&] { device->end_recording(); }), {"kernel nothing", "2048 threads"});
  if (!wrong.empty()) return wrong;
  device->synchronize(Queue::kCompute);
  return expect_equal("kernels beside it", 1, out);
});

const Check full("emulator: no more launches than a queue holds wait behind a kernel that waits for the host", [] {
  ::setenv("PI_EMULATOR_QUEUE", "3", 1);
  const auto device = emulator::make_device(kNoKernels);
  ::unsetenv("PI_EMULATOR_QUEUE");
  Words words(*device);
  words.words[2] = 1;
  int out = 0;
  const auto count = [&] { PI_LAUNCH(count_up, dim3(1), dim3(32), 0, device->stream(), Args{&out}); };
  for (int i = 0; i < 10; ++i) count();  // there is room again and again
  device->synchronize(Queue::kCompute);
  out = 0;
  device->begin_recording();
  for (int i = 0; i < 5; ++i) count();
  const auto program = device->end_recording();
  PI_LAUNCH(wait_kernel, dim3(1), dim3(32), 0, device->stream(),
            Args{&out, 0, {words.words, words.words + 2, words.words + 1}});
  device->launch(*program);  // is as one
  const std::string error = error_of([&] {
    for (int i = 0; i < 4; ++i) count();
  });
  store_system(words.words, 1u);
  device->synchronize(Queue::kCompute);
  const std::string wrong = expect_error(error, {"waits for room behind 3 others"});
  return wrong.empty() ? expect_equal("kernels that ran", 511, out)
                       : wrong;  // 1 of the one that waited, doubled and one more eight times
});

}  // namespace
}  // namespace pi::checks
