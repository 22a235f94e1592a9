// What the GPU takes from the host and gives to it within a program: rows, words and the time.
#include "cuda/meeting.cuh"

#include "cuda/launchers.h"
#include "cuda/quantize.cuh"

namespace pi::cuda {

namespace {

constexpr int kThreads = 256;
// Words that one block copies; more are copied by many, and a launch of its own signals.
constexpr int kBlockWords = 16384;

// Blocks that look at a flag each for itself, at most. Every look crosses the bus: thousands of blocks that a prompt's
// rows take would fill it, and be late to see what they look for.
constexpr unsigned kLooking = 64;

__global__ void meet_host(Meeting meeting) { wait_for(meeting); }

// Four neighbouring elements a thread, counted over all rows. Every block looks at the flag for itself, where there is
// one.
__global__ void __launch_bounds__(kThreads) receive_rows(Receive a) {
  if (threadIdx.x == 0) wait_for(a.wait);
  __syncthreads();
  const size_t at = (size_t(blockIdx.x) * kThreads + threadIdx.x) * kLaneColumns, n = size_t(a.rows) * a.out.cols;
  float x[kLaneColumns] = {};
  if (at + kLaneColumns <= n) {
    const float4 v = *reinterpret_cast<const float4*>(a.host + at);
    *reinterpret_cast<float4*>(a.out.x + at) = v;
    x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
  } else {
    for (size_t i = at; i < n; ++i) a.out.x[i] = a.host[i];  // then nothing is quantised: rows are no whole blocks
  }
  if (a.out.quants != nullptr) store_quantized(a.out, at, x, at < n);
}

__global__ void __launch_bounds__(kThreads) publish_words(Publish a) {
  const uint32_t* const from = static_cast<const uint32_t*>(a.device);
  uint32_t* const to = static_cast<uint32_t*>(a.host);
  const int step = static_cast<int>(gridDim.x) * kThreads;
  const int whole = a.words / 4;
  const int first = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  for (int i = first; i < whole; i += step) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
  for (int i = 4 * whole + first; i < a.words; i += step) to[i] = from[i];
  if (a.signal.flag == nullptr) return;
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) signal(a.signal);
}

__global__ void stamp_clock(Stamp a) { *a.out = device_clock_ns(); }

}  // namespace

void receive(void* stream, const Receive& a) {
  const size_t threads = (size_t(a.rows) * a.out.cols + kLaneColumns - 1) / kLaneColumns;
  const unsigned blocks = static_cast<unsigned>((threads + kThreads - 1) / kThreads);
  Receive then = a;
  then.wait = wait_before(stream, a.wait, blocks);
  PI_LAUNCH(receive_rows, dim3(blocks), dim3(kThreads), 0, stream, then);
}

Meeting wait_before(void* stream, const Meeting& a, size_t blocks) {
  if (a.flag == nullptr || blocks <= kLooking) return a;
  PI_LAUNCH(meet_host, dim3(1), dim3(1), 0, stream, a);
  return {};
}

void publish(void* stream, const Publish& a) {
  if (a.words <= kBlockWords) {
    PI_LAUNCH(publish_words, dim3(1), dim3(kThreads), 0, stream, a);
    return;
  }
  // The end of one launch is seen by the next, so what signals needs to copy nothing.
  Publish copy = a, then = a;
  copy.signal = {};
  then.words = 0;
  PI_LAUNCH(publish_words, dim3((a.words + 4 * kThreads - 1) / (4 * kThreads)), dim3(kThreads), 0, stream, copy);
  if (a.signal.flag != nullptr) PI_LAUNCH(publish_words, dim3(1), dim3(kThreads), 0, stream, then);
}

void stamp(void* stream, const Stamp& a) { PI_LAUNCH(stamp_clock, dim3(1), dim3(1), 0, stream, a); }

}  // namespace pi::cuda
