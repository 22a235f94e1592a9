// The emulator itself: what it must do as a GPU does, and what it must report instead of hanging.
#include <array>
#include <cstring>
#include <stdexcept>

#include "checks/check.h"
#include "cuda/emulator_device.h"
#include "cuda/kernels.h"
#include "cuda/language.h"

namespace pi::checks {
namespace {

using namespace pi::cuda;

struct Args {
  int* out = nullptr;
  int n = 0;
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

template <typename Kernel>
std::string run(const char* name, Kernel* kernel, dim3 grid, dim3 block, size_t shared, Args args) {
  const auto device = emulator::make_device(kNoKernels);
  return error_of([&] {
    emulator::launch(name, kernel, grid, block, shared, device->stream(), args);
    device->synchronize(Queue::kCompute);
  });
}


// Sum of a block's threads' numbers, by warps and through shared memory; thread i's part lies in other memory for all i.
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
  if (i == 0) a.out[blockIdx.x] = total;
}

const Check sums("emulator: a block's sum by shuffles and shared memory", [] {
  std::vector<int> out(5, -1);
  const std::string error = run("block_sum", block_sum, dim3(5), dim3(1024), 4096, {out.data(), 0});
  if (!error.empty()) return error;
  for (int sum : out) {
    if (sum != 1023 * 512) return "expected 523776, got " + std::to_string(sum);
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
