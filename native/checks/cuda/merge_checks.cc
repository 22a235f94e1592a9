// Merging partial sums, alone and with the host.
#include <atomic>
#include <chrono>
#include <thread>

#include "checks/cuda/weights.h"

namespace pi::checks {
namespace {

using cuda::Merge;

struct Case {
  int rows, dim, parts;
  bool base, bias, host, in_place, page_locked;
  int skip = -1;  // what *skip_wait is; -1: null
};

// A step's number for meetings, near where it wraps.
constexpr uint32_t kStep = 0xffffffffu;

std::string check_merge(const Case& c, uint32_t seed) {
  const size_t n = size_t(c.rows) * c.dim;
  const std::vector<float> base = random_vector(n, seed), bias = random_vector(c.dim, seed + 1),
                           parts = random_vector(n * c.parts, seed + 2), host = random_vector(n, seed + 3);
  const DeviceArray<float> device_base(base), device_bias(bias), device_parts(parts), device_y(n);
  HostArray<float> from_host(n), host_y(n);
  HostArray<uint32_t> words(3);  // the host's flag, abort, the device's flag
  const DeviceArray<uint32_t> step(std::vector<uint32_t>{kStep}), arrivals(std::vector<uint32_t>(1));
  const DeviceArray<int32_t> skip(std::vector<int32_t>{c.skip});
  words[0] = words[2] = kStep - 1;
  Merge a;
  a.base = c.base ? device_base.data() : nullptr, a.bias = c.bias ? device_bias.data() : nullptr;
  a.parts = c.parts > 0 ? device_parts.data() : nullptr, a.n_parts = c.parts;
  if (c.host) a.wait = {&words[0], step.data(), &words[1]}, a.host = from_host.data();
  if (c.skip >= 0) a.skip_wait = skip.data();
  a.y = c.page_locked ? host_y.data() : c.in_place ? device_base.data() : device_y.data();
  if (c.page_locked) a.signal = {&words[2], step.data(), &words[1]}, a.arrivals = arrivals.data();
  a.rows = c.rows, a.dim = c.dim;
  const bool waits = c.host && c.skip != 0;
  // The host is late, and gives its part only then. A kernel that did not wait would read zeros.
  std::thread late([&] {
    if (!waits) return;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::copy(host.begin(), host.end(), from_host.data());
    std::atomic_ref(words[0]).store(kStep, std::memory_order_release);
  });
  kernels_of_device().merge(stream(), a);
  finish();
  late.join();
  std::vector<float> expected(n);
  for (size_t i = 0; i < n; ++i) {
    float sum = c.base ? base[i] : 0.0f;
    if (c.bias) sum += bias[i % c.dim];
    for (int s = 0; s < c.parts; ++s) sum += parts[s * n + i];
    expected[i] = waits ? sum + host[i] : sum;
  }
  const std::vector<float> actual = c.page_locked ? std::vector<float>(host_y.data(), host_y.data() + n)
                                    : c.in_place  ? device_base.get()
                                                  : device_y.get();
  std::string problem = same_bits("sum", expected, actual);
  if (problem.empty() && c.page_locked && words[2] != kStep) problem = "no signal";
  if (problem.empty() && arrivals.get()[0] != 0) problem = "arrivals are not 0 again";
  return problem;
}

const Check sums("merge: base, bias, parts and the host's sums in order, to the device or to the host", [] {
  const Case cases[] = {{1, 256, 3, true, true, false, true, false},   {3, 100, 1, true, false, true, true, false},
                        {2, 33, 16, false, true, true, false, true},   {1, 1, 0, true, false, true, false, false},
                        {4, 300, 2, true, true, true, false, true, 0}, {4, 300, 2, true, true, true, false, true, 5},
                        {1, 128, 0, true, false, false, false, true},  {17, 96, 8, true, false, false, true, false},
                        {70, 100, 1, true, false, true, true, false}};
  uint32_t seed = 1;
  for (const Case& c : cases) {
    const std::string problem = check_merge(c, seed += 10);
    if (!problem.empty()) return std::to_string(c.rows) + " rows of " + std::to_string(c.dim) + ": " + problem;
  }
  return std::string();
});

const Check programs("merge: signals once a launch, after all blocks, however often a program runs", [] {
  const int rows = 5, dim = 700;
  const DeviceArray<float> base(random_vector(size_t(rows) * dim, 1));
  const DeviceArray<uint32_t> arrivals(std::vector<uint32_t>(1)), step(std::vector<uint32_t>{0});
  HostArray<float> y(size_t(rows) * dim);
  HostArray<uint32_t> words(3);
  Merge a;
  a.base = base.data(), a.y = y.data(), a.rows = rows, a.dim = dim;
  a.signal = {&words[0], step.data(), &words[1]}, a.arrivals = arrivals.data();
  device().begin_recording();
  kernels_of_device().merge(stream(), a);
  const auto program = device().end_recording();
  for (uint32_t run = 1; run <= 3; ++run) {
    words[2] = run;
    device().upload(cuda::Queue::kCompute, step.data(), &words[2], sizeof(uint32_t));
    std::fill_n(y.data(), y.size(), 0.0f);
    device().launch(*program);
    finish();
    if (words[0] != run) return differs("signal of run", run, run, words[0]);
    const std::string problem = same_bits("sum", base.get(), std::vector<float>(y.data(), y.data() + y.size()));
    if (!problem.empty()) return problem;
  }
  return std::string();
});

const Check aborted("merge: waits no more once the step is aborted", [] {
  const DeviceArray<float> y(std::vector<float>(8, 1.0f));
  const DeviceArray<uint32_t> step(std::vector<uint32_t>{3});
  HostArray<float> host(8);
  HostArray<uint32_t> words(2);
  words[1] = 1;
  Merge a;
  a.base = y.data(), a.y = y.data(), a.host = host.data(), a.wait = {&words[0], step.data(), &words[1]}, a.rows = 1,
  a.dim = 8;
  kernels_of_device().merge(stream(), a);
  finish();
  return std::string();
});

}  // namespace
}  // namespace pi::checks
