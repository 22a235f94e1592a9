// The emulator itself: what it must do as a GPU does, and what it must report instead of hanging. On devices of its
// own, for an error ends one.
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <thread>

#include "checks/check.h"
#include "cuda/emulator_device.h"
#include "cuda/kernels.h"
#include "cuda/language.h"
#include "cuda/launchers.h"
#include "cuda/meeting.cuh"

namespace pi::checks {
namespace {

using namespace pi::cuda;

struct Args {
  int* out = nullptr;
  int n = 0;
  Meeting meeting = {};
};

constexpr Kernels kNoKernels{};

// The error of `work`, or an empty string.
template <typename Work>
std::string error_of(Work&& work) {
  try {
    work();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "";
}

// Runs one launch on a device of its own; returns the error that shows when it is waited for.
std::string run(void (*kernel)(Args), dim3 grid, dim3 block, size_t shared = 0, Args args = {}) {
  const auto device = emulator::make_device(kNoKernels);
  return error_of([&] {
    PI_LAUNCH(kernel, grid, block, shared, device->stream(), args);
    device->synchronize(Queue::kCompute);
  });
}

std::string expect_error(const std::string& error, std::initializer_list<const char*> parts) {
  for (const char* part : parts) {
    if (error.find(part) == std::string::npos)
      return "expected an error with '" + std::string(part) + "', got '" + error + "'";
  }
  return "";
}

std::string expect_equal(const char* what, int64_t expected, int64_t actual) {
  return expected == actual
             ? ""
             : std::string(what) + ": expected " + std::to_string(expected) + ", got " + std::to_string(actual);
}

// ------------------------------------------------------------------------------------------------------ blocks and
// warps

// Sum of a block's threads' numbers through shared memory, by warps, and through shared memory again.
__global__ void block_sum(Args a) {
  __shared__ int parts[32];
  PI_DYNAMIC_SHARED(int, values);
  const int i = static_cast<int>(threadIdx.x), n = static_cast<int>(blockDim.x);
  values[i] = i;
  __syncthreads();
  int sum = values[n - 1 - i];
  for (int k = 16; k > 0; k /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, k);
  if (i % 32 == 0) parts[i / 32] = sum;
  __syncthreads();
  if (i >= 32) return;
  int total = i < n / 32 ? parts[i] : 0;
  for (int k = 16; k > 0; k /= 2) total += __shfl_down_sync(0xffffffffu, total, k);
  if (i == 0) a.out[blockIdx.x + gridDim.x * blockIdx.y] = total;
}

const Check sums("emulator: a block's sum by shuffles and shared memory", [] {
  std::vector<int> out(6, -1);
  const std::string error = run(block_sum, dim3(3, 2), dim3(1024), 4096, {out.data()});
  if (!error.empty()) return error;
  for (int sum : out) {
    if (sum != 1023 * 512) return expect_equal("sum", 1023 * 512, sum);
  }
  return std::string();
});

// Every thread's place, in blocks whose last warp is not whole.
__global__ void places(Args a) {
  const unsigned i = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int lanes = __popc(__ballot_sync(0xffffffffu, 1));
  a.out[block * threads + i] += static_cast<int>(block * threads + i) * 100 + lanes;
}

const Check all_threads("emulator: every thread of every block once, partial warps too", [] {
  std::vector<int> out(24 * 42, 0);
  const std::string error = run(places, dim3(2, 3, 4), dim3(7, 2, 3), 0, {out.data()});
  if (!error.empty()) return error;
  for (size_t i = 0; i < out.size(); ++i) {
    const int lanes = i % 42 < 32 ? 32 : 10;
    if (out[i] != static_cast<int>(i) * 100 + lanes)
      return expect_equal("place", static_cast<int>(i) * 100 + lanes, out[i]);
  }
  return std::string();
});

// What each kind of shuffle and vote gives lane i of two warps.
__global__ void exchanges(Args a) {
  const int i = static_cast<int>(threadIdx.x), lane = i % 32;
  int* const out = a.out + i * 8;
  out[0] = __shfl_sync(0xffffffffu, i, 5);
  out[1] = __shfl_xor_sync(0xffffffffu, i, 3);
  out[2] = __shfl_down_sync(0xffffffffu, i, 4);
  out[3] = __shfl_up_sync(0xffffffffu, i, 4, 8);
  out[4] = static_cast<int>(__ballot_sync(0xffffffffu, lane % 3 == 0));
  out[5] = __any_sync(0xffffffffu, i == 40);
  out[6] = __all_sync(0xffffffffu, i < 40);
  out[7] = static_cast<int>(__shfl_sync(0xffffffffu, 1.5f * static_cast<float>(i), 1, 16) * 2);
}

const Check all_exchanges("emulator: shuffles and votes", [] {
  std::vector<int> out(64 * 8);
  const std::string error = run(exchanges, dim3(1), dim3(64), 0, {out.data()});
  if (!error.empty()) return error;
  unsigned thirds = 0;
  for (int i = 0; i < 32; i += 3) thirds |= 1u << i;
  for (int i = 0; i < 64; ++i) {
    const int lane = i % 32, warp = i - lane;
    const int expected[8] = {
        warp + 5,   i ^ 3,     lane < 28 ? i + 4 : i, i % 8 < 4 ? i : i - 4, static_cast<int>(thirds),
        warp == 32, warp == 0, 3 * (i / 16 * 16 + 1)};
    for (int k = 0; k < 8; ++k) {
      if (out[i * 8 + k] != expected[k])
        return std::to_string(k) + ": " + expect_equal("lane", expected[k], out[i * 8 + k]);
    }
  }
  return std::string();
});

// Lanes that returned are missed by nobody.
__global__ void some_return(Args a) {
  const int i = static_cast<int>(threadIdx.x);
  if (i % 2 == 1) return;
  __syncthreads();
  const unsigned here = __ballot_sync(0xffffffffu, 1);
  __syncthreads();
  a.out[i] = static_cast<int>(here);
}

const Check returned("emulator: barriers and votes of the lanes that have not returned", [] {
  std::vector<int> out(64, 0);
  const std::string error = run(some_return, dim3(1), dim3(64), 0, {out.data()});
  return error.empty() ? expect_equal("ballot", 0x55555555, out[62]) : error;
});

// ---------------------------------------------------------------------------------------------------------- what is
// wrong

__global__ void half_a_barrier(Args a) {
  if (threadIdx.x < 40) __syncthreads();
  if (threadIdx.x >= 40) __shfl_sync(0xffffffffu, 1, 0);
  __syncthreads();
}
__global__ void two_barriers(Args a) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void two_exchanges(Args a) {
  if (threadIdx.x < 7) {
    __syncwarp();
  } else {
    __ballot_sync(0xffffffffu, 1);
  }
}
__global__ void half_a_mask(Args a) { __syncwarp(0xffff); }
__global__ void beyond_shared(Args a) {
  PI_DYNAMIC_SHARED(char, bytes);
  bytes[a.n] = 1;
}
__global__ void too_deep(Args a) {
  volatile char stack[160 << 10];
  for (size_t i = 0; i < sizeof stack; i += 64) stack[i] = static_cast<char>(i);
  a.out[0] = stack[64];
}
__global__ void nothing(Args) {}

const Check misuse("emulator: what would hang or be undefined is an error that names kernel and block", [] {
  int out = 0;
  for (const std::string& wrong : {
           expect_error(run(half_a_barrier, dim3(1), dim3(64)),
                        {"kernel", "block (0, 0, 0)", "not all threads", "24 of 32 lanes of warp 1", "barrier"}),
           expect_error(run(two_barriers, dim3(1), dim3(64)), {"different barriers"}),
           expect_error(run(two_exchanges, dim3(1), dim3(32)), {"__syncwarp", "a vote"}),
           expect_error(run(half_a_mask, dim3(1), dim3(32)), {"some lanes only"}),
           expect_error(run(beyond_shared, dim3(1), dim3(32), 100, {nullptr, 100}),
                        {"outside of the block's dynamic shared memory"}),
           expect_error(run(beyond_shared, dim3(1), dim3(32), 100, {nullptr, -1}),
                        {"outside of the block's dynamic shared memory"}),
           expect_error(run(too_deep, dim3(1), dim3(1), 0, {&out}), {"bytes of stack"}),
           expect_error(run(nothing, dim3(1), dim3(1025)), {"1025 threads", "1024"}),
           expect_error(run(nothing, dim3(0), dim3(32)), {"a launch of nothing"}),
           expect_error(run(nothing, dim3(1), dim3(32), 100 << 10), {"102400 bytes of shared memory"}),
           run(nothing, dim3(1), dim3(1024), 64 << 10),
       }) {
    if (!wrong.empty()) return wrong;
  }
  return std::string();
});

__global__ void racing(Args a) {
  PI_DYNAMIC_SHARED(int, values);
  const int i = static_cast<int>(threadIdx.x);
  values[i] = i;
  __syncwarp();
  a.out[i] = values[63 - i];
}

// Counts blocks, and says whether the last one that there is came last.
__global__ void assume_order(Args a) {
  if (threadIdx.x != 0) return;
  const int before = atomicAdd(a.out, 1);
  if (blockIdx.x == gridDim.x - 1) a.out[1] = before;
}

const Check order(
    "emulator: a missing barrier shows in some order of lanes or blocks, a right kernel is the same in all", [] {
      bool differs = false, blocks_differ = false;
      for (const char* seed : {"0", "1", "2", "3"}) {
        const char* const before = std::getenv("PI_EMULATOR_SEED");
        const std::string kept = before != nullptr ? before : "";
        ::setenv("PI_EMULATOR_SEED", seed, 1);
        std::vector<int> out(64), sum(1), blocks(2);
        const std::string error = run(racing, dim3(1), dim3(64), 256, {out.data()}) +
                                  run(block_sum, dim3(1), dim3(1024), 4096, {sum.data()}) +
                                  run(assume_order, dim3(12), dim3(32), 0, {blocks.data()});
        if (kept.empty()) {
          ::unsetenv("PI_EMULATOR_SEED");
        } else {
          ::setenv("PI_EMULATOR_SEED", kept.c_str(), 1);
        }
        if (!error.empty()) return error;
        for (int i = 0; i < 64; ++i) differs = differs || out[i] != 63 - i;
        if (sum[0] != 1023 * 512) return expect_equal("sum", 1023 * 512, sum[0]);
        if (blocks[0] != 12) return expect_equal("blocks", 12, blocks[0]);
        blocks_differ = blocks_differ || blocks[1] != 11;
      }
      return std::string(differs && blocks_differ ? "" : "no order showed it");
    });

// ----------------------------------------------------------------------------------------------------- memory and
// queues

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
  device->synchronize(Queue::kCopy);
  piece[1000] = 0;
  host[-3] = 1;
  for (const std::string& wrong : {
           expect_error(error_of([&] { device->synchronize(Queue::kCompute); }),
                        {"1000 bytes of device memory were written to 0 bytes after their end"}),
           expect_error(error_after([](Device&device, uint8_t*memory) { memory[1000] = 0, device.free(memory); }),
                        {"after their end"}),
           expect_error(error_after([](Device&device, uint8_t*memory) { device.free(memory), device.free(memory); }),
                        {"freed that is none"}),
           expect_error(error_after([](Device&device, uint8_t*memory) { device.free_host(memory); }),
                        {"page-locked memory was freed that is none"}),
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

// --------------------------------------------------------------------------------------------------------------
// intrinsics

const Check intrinsics("emulator: integer intrinsics", [] {
  int64_t wrong = 0;
  wrong += __byte_perm(0x33221100, 0x77665544, 0x7531) != 0x77553311;
  wrong += (__byte_perm(0x00008000, 0, 0x9) & 0xff) != 0xff;
  wrong += __brev(0x80000001u) != 0x80000001u || __brev(2) != 0x40000000u;
  wrong += __ffs(0) != 0 || __ffs(8) != 4 || __clz(1) != 31 || __popc(0xf0f0u) != 8;
  wrong += __dp4a(static_cast<int>(0x80ff7f01), static_cast<int>(0x7f020103), 5) != -128 * 127 - 2 + 127 + 3 + 5;
  wrong += __float2int_rn(2.5f) != 2 || __float2int_rn(-3.5f) != -4;
  return expect_equal("wrong", 0, wrong);
});

}  // namespace
}  // namespace pi::checks
