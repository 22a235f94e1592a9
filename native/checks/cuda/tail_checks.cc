// What follows in the same launch has the bits of a launch of its own.
#include <atomic>
#include <chrono>
#include <thread>

#include "checks/cuda/weights.h"
#include "cuda/workspace.h"

namespace pi::checks {
namespace {

// A norm of rows of x, to the device in f32 and 8 bits, and to the host.
struct NormAfter {
  int rows, dim;
  DeviceArray<float> weight, bias, out, scales;
  DeviceArray<int8_t> quants;
  DeviceArray<uint32_t> arrivals, step;
  HostArray<float> host;
  HostArray<uint32_t> words;  // the flag, abort
  bool layer_norm;

  NormAfter(int rows, int dim, bool layer_norm)
      : rows(rows),
        dim(dim),
        weight(random_vector(dim, 71)),
        bias(random_vector(dim, 72)),
        out(size_t(rows) * dim),
        scales(size_t(rows) * dim / kQuantBlock + 1),
        quants(size_t(rows) * dim),
        arrivals(std::vector<uint32_t>(1 + cuda::arrival_words(rows, 1, dim))),
        step(std::vector<uint32_t>{9}),
        host(size_t(rows) * dim),
        words(2),
        layer_norm(layer_norm) {}

  cuda::Norm of(const float* x) {
    cuda::DeviceRows to{out.data(), nullptr, nullptr, dim};
    if (dim % kQuantBlock == 0) to.quants = quants.data(), to.scales = scales.data();
    const float* const shift = layer_norm ? bias.data() : nullptr;
    return {
        x, weight.data(), shift, 1e-5f, to, rows, host.data(), {&words[0], step.data(), &words[1]}, arrivals.data()};
  }

  // Empty if both left the same, and told the host.
  std::string compare(const NormAfter& apart) {
    const std::vector<float> got = out.get(), expected = apart.out.get();
    std::string problem = same_bits("norm", expected, got);
    if (problem.empty())
      problem = same_bits("host's copy", expected, std::vector<float>(host.data(), host.data() + host.size()));
    if (problem.empty() && dim % kQuantBlock == 0) {
      problem = same_bits("quants", apart.quants.get(), quants.get());
      std::vector<float> a = apart.scales.get(), b = scales.get();
      a.pop_back(), b.pop_back();
      if (problem.empty()) problem = same_bits("scales", a, b);
    }
    if (problem.empty() && words[0] != 9) problem = "no signal";
    for (const uint32_t word : arrivals.get()) {
      if (problem.empty() && word != 0) problem = "arrivals are not 0 again";
    }
    return problem;
  }
};

const int kRows[] = {1, 2, 3, 9};

const Check projections("project: a norm of what comes out", [] {
  for (const DType type : {DType::kF32, DType::kF16, DType::kQ4_0}) {
    for (const int rows : kRows) {
      for (const int dim : {96, 103, 1152}) {
        const HostWeights w(type, dim, 64, 1);
        const DeviceWeights device_w = w.to_device();
        const Rows x(type, rows, 64, 2);
        const std::vector<float> before = random_vector(size_t(rows) * dim, 3);
        const DeviceArray<float> y(before), y_apart(before);
        NormAfter norm(rows, dim, dim == 103), apart(rows, dim, dim == 103);
        kernels_of_device().project(stream(),
                                    {{{device_w.view, nullptr, y_apart.data()}}, x.view(), rows, true, false, {}});
        kernels_of_device().norm(stream(), apart.of(y_apart.data()));
        kernels_of_device().project(
            stream(), {{{device_w.view, nullptr, y.data()}}, x.view(), rows, true, false, norm.of(y.data())});
        std::string problem = same_bits("y", y_apart.get(), y.get());
        if (problem.empty()) problem = norm.compare(apart);
        if (!problem.empty())
          return std::string(type_name(type)) + ", " + std::to_string(rows) + " rows of " + std::to_string(dim) + ": " +
                 problem;
      }
    }
  }
  return std::string();
});

// A layer's end: parts of 50 neurons, what the host is late with, and the next layer's norm.
std::string check_end(DType type, int rows, int dim, bool to_host) {
  constexpr int kNeurons = 50, kParts = 4;
  const HostWeights w(type, kNeurons, dim, 5);
  const DeviceWeights down = w.to_device();
  const DeviceArray<float> act(random_vector(size_t(kNeurons) * rows, 6)), base(random_vector(size_t(rows) * dim, 7)),
      bias(random_vector(dim, 8));
  const DeviceArray<uint32_t> arrivals(std::vector<uint32_t>(2 + cuda::arrival_words(rows, 1, dim))),
      step(std::vector<uint32_t>{9});
  std::vector<float> y[2];
  NormAfter apart(rows, dim, false), together(rows, dim, false);
  for (const bool fused : {false, true}) {
    const DeviceArray<float> parts(size_t(kParts) * rows * dim), device_y(size_t(rows) * dim);
    const DeviceArray<uint32_t> active(std::vector<uint32_t>{0xffffffffu, 0x3ffffu, 0});
    HostArray<float> host(size_t(rows) * dim), host_y(size_t(rows) * dim);
    HostArray<uint32_t> words(3);
    cuda::Merge merge;
    merge.base = base.data(), merge.bias = bias.data(), merge.parts = parts.data(), merge.n_parts = kParts;
    merge.wait = {&words[0], step.data(), &words[1]}, merge.host = host.data();
    merge.y = to_host ? host_y.data() : device_y.data(), merge.rows = rows, merge.dim = dim,
    merge.arrivals = arrivals.data();
    if (to_host) merge.signal = {&words[2], step.data(), &words[1]};
    const cuda::Norm norm = (fused ? together : apart).of(merge.y);
    if (fused && !to_host) merge.norm = norm;
    std::thread late([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<float>(i % 7);
      std::atomic_ref(words[0]).store(9, std::memory_order_release);
    });
    kernels_of_device().down(stream(), {down.view, active.data(), act.data(), kNeurons, rows, kParts, parts.data(),
                                        fused ? merge : cuda::Merge{}, arrivals.data() + 1});
    if (!fused) kernels_of_device().merge(stream(), merge);
    if (!fused || to_host) kernels_of_device().norm(stream(), norm);
    finish();
    late.join();
    y[fused] = to_host ? std::vector<float>(host_y.data(), host_y.data() + host_y.size()) : device_y.get();
    if (to_host && words[2] != 9) return "no signal";
  }
  for (const uint32_t word : arrivals.get()) {
    if (word != 0) return "arrivals are not 0 again";
  }
  const std::string problem = same_bits("y", y[0], y[1]);
  return problem.empty() ? together.compare(apart) : problem;
}

const Check ends("down: merge, the host's part and a norm follow", [] {
  for (const DType type : kWeightTypes) {
    for (const int rows : kRows) {
      for (const int dim : {32, 288, 1152}) {
        for (const bool to_host : {false, true}) {
          const std::string problem = check_end(type, rows, dim, to_host);
          if (!problem.empty())
            return std::string(type_name(type)) + ", " + std::to_string(rows) + " rows of " + std::to_string(dim) +
                   ": " + problem;
        }
      }
    }
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
