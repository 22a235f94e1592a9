// What the emulator of a GPU gets done on one core: exchanges and barriers of lanes, threads, launches; one JSON line.
// Time is that of the process, so that neighbours do not count.
#include <ctime>
#include <cstdio>

#include "cuda/emulator_device.h"
#include "cuda/kernels.h"
#include "cuda/language.h"

namespace pi::cuda {
namespace {

struct Args {
  float* x;
  int n;
};

__global__ void shuffles(Args a) {
  float v = a.x[threadIdx.x];
  for (int i = 0; i < a.n; ++i) v += __shfl_xor_sync(0xffffffffu, v, 1);
  a.x[threadIdx.x] = v;
}
__global__ void barriers(Args a) {
  for (int i = 0; i < a.n; ++i) __syncthreads();
}
__global__ void plain(Args a) { a.x[threadIdx.x] += 1; }
__global__ void once(Args a) {
  a.x[threadIdx.x] += 1;
  __syncthreads();
  a.x[threadIdx.x] += 1;
}

double process_seconds() {
  timespec now{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

// Times a second that `work` does what it does `n` times; the first round warms up.
template <typename Work>
double rate(Device& device, double n, Work&& work) {
  double seconds = 0;
  for (int round = 0; round < 2; ++round) {
    const double start = process_seconds();
    work();
    device.synchronize(Queue::kCompute);
    seconds = process_seconds() - start;
  }
  return n / seconds;
}

}  // namespace
}  // namespace pi::cuda

int main() {
  using namespace pi::cuda;
  static const Kernels none{};
  static float x[1024];
  const auto device = emulator::make_device(none);
  void* const stream = device->stream();
  const dim3 block(256);
  const double exchanges = rate(*device, 4 * 256 * 1e4, [&] {
    PI_LAUNCH(shuffles, dim3(4), block, 0, stream, Args{x, 10000});
  });
  const double waits = rate(*device, 4 * 256 * 1e4, [&] {
    PI_LAUNCH(barriers, dim3(4), block, 0, stream, Args{x, 10000});
  });
  const double threads = rate(*device, 256 * 4e4, [&] { PI_LAUNCH(plain, dim3(40000), block, 0, stream, Args{x, 0}); });
  const double meeting = rate(*device, 256 * 1e4, [&] { PI_LAUNCH(once, dim3(10000), block, 0, stream, Args{x, 0}); });
  const double launches = rate(*device, 1e4, [&] {
    for (int i = 0; i < 10000; ++i) PI_LAUNCH(plain, dim3(1), dim3(1), 0, stream, Args{x, 0});
  });
  std::printf(
      "{\"exchangesPerSecond\":%.3g,\"barriersPerSecond\":%.3g,\"threadsPerSecond\":%.3g,"
      "\"threadsWithABarrierPerSecond\":%.3g,\"launchesPerSecond\":%.3g}\n",
      exchanges, waits, threads, meeting, launches);
  return 0;
}
