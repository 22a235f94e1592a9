// Kernels on the GPU: of decoding in GB/s of weights, and as a share of what the device reads at best; products of
// prompts.
//   PI_DEVICE=cuda build/Release/pi_device_bench [megabytes of weights] [dim] [neurons]
// Without shapes those of models of 7 and 13 billion parameters; on the emulator tiny ones, whose speed means nothing.
// Weights are read from memory, not from L2: a pass goes through all of them before it comes back. Best of several
// passes, by the device's clock. The last line is JSON.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/main.h"
#include "cuda/device.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "cuda/workspace.h"

namespace pi::bench {
namespace {

using namespace pi::cuda;

struct Shape {
  int dim, neurons;
};

const char* type_name(DType type) { return type == DType::kF16 ? "f16" : type == DType::kQ8_0 ? "q8_0" : "q4_0"; }

constexpr int kPasses = 7, kParts = 16, kMostRows = 8;
constexpr int kTailPercent = 10;  // of the neurons, where what follows them is measured, too

// Device memory for as long as the program runs.
template <typename T>
T* device_array(Device& device, size_t n) {
  void* const memory = device.allocate(n * sizeof(T));
  if (!memory) throw std::runtime_error("the device has no " + std::to_string(n * sizeof(T)) + " bytes left");
  device.zero(Queue::kCompute, memory, n * sizeof(T));
  return static_cast<T*>(memory);
}

template <typename T>
T* device_array(Device& device, const std::vector<T>& from) {
  T* const memory = device_array<T>(device, from.size());
  void* const host = device.allocate_host(from.size() * sizeof(T));
  std::memcpy(host, from.data(), from.size() * sizeof(T));
  device.upload(Queue::kCompute, memory, host, from.size() * sizeof(T));
  device.synchronize(Queue::kCompute);
  device.free_host(host);
  return memory;
}

class Bench {
 public:
  Bench(Device& device, size_t megabytes) : device_(device), k_(device.kernels()), pool_bytes_(megabytes << 20) {
    stamps_ = static_cast<uint64_t*>(device.allocate_host(2 * sizeof(uint64_t)));
    fill_pool();
    std::vector<float> ones(size_t(kMostRows) * (1 << 16), 1.0f);
    x_ = device_array(device_, ones);
    quants_ = device_array(device_, std::vector<int8_t>(ones.size(), 1));
    stream_ = device_array<float>(device_, 2 * ones.size());
    arrivals_ = device_array<uint32_t>(device_, arrival_words(kMostRows, 1, 1 << 16) + 1);
    bandwidth_ = sweep();
    program_bytes_ = program_bytes();
  }

  void run(const Shape& shape) {
    for (DType type : {DType::kF16, DType::kQ4_0}) {
      for (int rows : {1, kMostRows}) project(shape, type, rows);
      for (int rows : {1, 2}) output(shape, type, rows);
      for (int percent : {5, kTailPercent, 100}) ffn(shape, type, percent, 1);
      ffn(shape, type, 100, kMostRows);
    }
  }
  // Products of prompts, in 10^12 floating-point operations a second.
  void run_prompts(const Shape& shape, int rows) {
    for (DType type : {DType::kF16, DType::kQ8_0, DType::kQ4_0}) {
      gemm("gemm", shape, type, rows, false);
      gemm("gemm, transposed", shape, type, rows, true);
    }
  }
  void print_json() const {
    const DeviceInfo& info = device_.info();
    std::printf("{\"device\":\"%s\",\"backend\":\"%s\",\"readGBs\":%.1f,\"programBytes\":%.0f,\"kernels\":[%s]}\n",
                info.name.c_str(), info.backend.c_str(), bandwidth_, program_bytes_, json_.c_str());
  }

 private:
  // Small finite numbers of every type: no bit of an exponent's upper half.
  void fill_pool() {
    pool_ = device_array<uint8_t>(device_, pool_bytes_);
    std::vector<uint8_t> some(std::min<size_t>(pool_bytes_, 4 << 20));
    std::mt19937 random(1);
    for (uint8_t& byte : some) byte = random() & 0x3b;
    void* const host = device_.allocate_host(some.size());
    std::memcpy(host, some.data(), some.size());
    for (size_t at = 0; at < pool_bytes_; at += some.size())
      device_.upload(Queue::kCompute, pool_ + at, host, std::min(some.size(), pool_bytes_ - at));
    device_.synchronize(Queue::kCompute);
    device_.free_host(host);
  }

  // Seconds of what `work` launches, recorded as one program.
  double best(const std::function<void()>& work) {
    device_.begin_recording();
    k_.stamp(device_.stream(), {&stamps_[0]});
    work();
    k_.stamp(device_.stream(), {&stamps_[1]});
    const auto program = device_.end_recording();
    double least = 1e9;
    for (int pass = 0; pass < kPasses; ++pass) {
      device_.launch(*program);
      device_.synchronize(Queue::kCompute);
      least = std::min(least, double(stamps_[1] - stamps_[0]) * 1e-9);
    }
    return least;
  }

  // Of device memory that a program takes for each of its kernels, as far as the free memory shows it.
  double program_bytes() {
    constexpr int kKernels = 4096;
    const size_t before = device_.free_bytes();
    device_.begin_recording();
    for (int i = 0; i < kKernels; ++i) k_.norm(device_.stream(), norm(stream_, kQuantBlock, 1));
    const auto program = device_.end_recording();
    return (double(before) - double(device_.free_bytes())) / kKernels;
  }

  // GB/s at which all of the pool is read by loads that nothing waits for.
  double sweep() {
    uint32_t* const out = device_array<uint32_t>(device_, 1);
    const double seconds = best([&] {
      k_.sweep(device_.stream(), {reinterpret_cast<const uint32_t*>(pool_), pool_bytes_ / 16 * 4, out});
    });
    std::printf("%s (%s): reads %.0f GB/s\n\n%-22s %-5s %12s %4s %10s %10s %8s %6s\n", device_.info().name.c_str(),
                device_.info().backend.c_str(), pool_bytes_ / seconds / 1e9, "kernel", "type", "shape", "rows", "MB",
                "us", "GB/s", "share");
    return pool_bytes_ / seconds / 1e9;
  }

  void report(const char* kernel, const Shape& shape, DType type, int rows, double bytes, double seconds) {
    const char* const name = type_name(type);
    const double speed = bytes / seconds / 1e9;
    std::printf("%-22s %-5s %6d %5d %4d %10.2f %10.2f %8.1f %5.0f%%\n", kernel, name, shape.dim, shape.neurons, rows,
                bytes / 1e6, seconds * 1e6, speed, 100 * speed / bandwidth_);
    std::fflush(stdout);
    char line[256];
    std::snprintf(line, sizeof line,
                  "%s{\"kernel\":\"%s\",\"type\":\"%s\",\"dim\":%d,\"neurons\":%d,\"rows\":%d,\"bytes\":%.0f,\"us\":%."
                  "3f,\"GBs\":%.1f}",
                  json_.empty() ? "" : ",", kernel, name, shape.dim, shape.neurons, rows, bytes, seconds * 1e6, speed);
    json_ += line;
  }

  // Matrix `index` of those of this shape that lie one after the other in the pool.
  DeviceMatrix matrix(DType type, int rows, int cols, size_t index) const {
    const size_t bytes = device_row_bytes(type, cols);
    return {pool_ + index * bytes * rows, type, rows, cols, bytes};
  }
  // Sets of `n` matrices that fit.
  size_t sets(DType type, int rows, int cols, int n) const {
    const size_t count = pool_bytes_ / (device_row_bytes(type, cols) * rows * n);
    if (count == 0) throw std::runtime_error("more megabytes of weights are needed for one layer of this shape");
    return count;
  }
  DeviceRows input(int cols) const { return {x_, quants_, x_, cols}; }

  void project(const Shape& shape, DType type, int rows) {
    const size_t count = sets(type, shape.dim, shape.dim, 3);
    float* const y = device_array<float>(device_, size_t(3) * rows * shape.dim);
    const double seconds = best([&] {
      for (size_t set = 0; set < count; ++set) {
        Project a;
        for (int o = 0; o < 3; ++o)
          a.outputs[o] = {matrix(type, shape.dim, shape.dim, 3 * set + o), nullptr, y + size_t(o) * rows * shape.dim};
        a.x = input(shape.dim), a.rows = rows;
        k_.project(device_.stream(), a);
      }
    });
    device_.free(y);
    report("project (q, k, v)", shape, type, rows, 3.0 * shape.dim * device_row_bytes(type, shape.dim),
           seconds / count);
  }

  void gemm(const char* kernel, const Shape& shape, DType type, int rows, bool transposed) {
    const size_t count = std::min<size_t>(sets(type, shape.neurons, shape.dim, 1), 4);
    const DeviceMatrix w = matrix(type, shape.neurons, shape.dim, 0);
    float* const x = device_array(device_, std::vector<float>(size_t(rows) * std::max(shape.dim, shape.neurons), 1.0f));
    float* const y = device_array<float>(device_, size_t(rows) * std::max(shape.dim, shape.neurons));
    uint8_t* const workspace = device_array<uint8_t>(device_, gemm_workspace(w, transposed, rows));
    const double seconds = best([&] {
      for (size_t set = 0; set < count; ++set) {
        Gemm a;
        a.w = matrix(type, shape.neurons, shape.dim, set), a.transposed = transposed;
        a.x = x, a.y = y, a.rows = rows, a.workspace = workspace;
        k_.gemm(device_.stream(), a);
      }
    });
    for (void* memory : {static_cast<void*>(x), static_cast<void*>(y), static_cast<void*>(workspace)})
      device_.free(memory);
    const double teraflops = 2.0 * rows * shape.dim * shape.neurons * count / seconds / 1e12;
    std::printf("%-22s %-5s %6d %5d %4d %10.2f us, %.2f TFLOP/s\n", kernel, type_name(type), shape.dim, shape.neurons,
                rows, seconds / count * 1e6, teraflops);
    char line[256];
    std::snprintf(
        line, sizeof line,
        ",{\"kernel\":\"%s\",\"type\":\"%s\",\"dim\":%d,\"neurons\":%d,\"rows\":%d,\"us\":%.3f,\"TFLOPs\":%.4f}",
        kernel, type_name(type), shape.dim, shape.neurons, rows, seconds / count * 1e6, teraflops);
    json_ += line;
  }

  // Of rows of the stream, to the scratch behind them.
  Norm norm(float* stream, int dim, int rows) const {
    return {stream, x_,      nullptr, 1e-5f,    {stream_ + size_t(kMostRows) * dim, nullptr, nullptr, dim},
            rows,   nullptr, {},      arrivals_};
  }

  // An output projection and the norm of what it makes, in one launch and in two.
  void output(const Shape& shape, DType type, int rows) {
    const size_t count = sets(type, shape.dim, shape.dim, 1);
    for (const bool together : {true, false}) {
      const double seconds = best([&] {
        for (size_t set = 0; set < count; ++set) {
          Project a;
          a.outputs[0] = {matrix(type, shape.dim, shape.dim, set), nullptr, stream_};
          a.x = input(shape.dim), a.rows = rows, a.add = true;
          if (together) a.norm = norm(stream_, shape.dim, rows);
          k_.project(device_.stream(), a);
          if (!together) k_.norm(device_.stream(), norm(stream_, shape.dim, rows));
        }
      });
      report(together ? "o and norm" : "o, norm: two launches", shape, type, rows,
             1.0 * shape.dim * device_row_bytes(type, shape.dim), seconds / count);
    }
  }

  // `percent` of the neurons, evenly spread, all of which fire; as many disjoint lists as there are.
  void ffn(const Shape& shape, DType type, int percent, int rows) {
    const int n = shape.neurons, lists = 100 / percent;
    std::vector<int32_t> neurons, counts(lists);
    for (int l = 0; l < lists; ++l) {
      for (int i = l; i < n; i += lists) neurons.push_back(i), ++counts[l];
    }
    neurons.resize(2 * neurons.size());  // a list has room for all neurons, wherever it begins
    int32_t* const device_lists = device_array(device_, neurons);
    int32_t* const device_counts = device_array(device_, counts);
    float* const open = device_array(device_, std::vector<float>(n, 1e6f));
    float* const act = device_array<float>(device_, size_t(n) * rows);
    uint32_t* const active = device_array<uint32_t>(device_, mask_words(n) + 1);
    float* const parts = device_array<float>(device_, size_t(kParts) * rows * shape.dim);
    const size_t layers = sets(type, n, shape.dim, 3);
    Merge merge;
    merge.base = merge.y = stream_, merge.parts = parts, merge.n_parts = kParts, merge.rows = rows,
    merge.dim = shape.dim;
    merge.arrivals = arrivals_, merge.norm = norm(stream_, shape.dim, rows);
    enum class Until { kNeurons, kDown, kEnd, kEndApart };
    const auto pass = [&](Until until) {
      const auto end = [&](const DeviceMatrix& down) {
        const Merge apart;
        if (until == Until::kNeurons) return;
        k_.down(device_.stream(),
                {down, active, act, n, rows, kParts, parts, until == Until::kEnd ? merge : apart, arrivals_ + 1});
        if (until != Until::kEndApart) return;
        Merge alone = merge;
        alone.norm = {};
        k_.merge(device_.stream(), alone);
        k_.norm(device_.stream(), merge.norm);
      };
      return best([&] {
               for (size_t layer = 0; layer < layers; ++layer) {
                 for (int l = 0, at = 0; l < lists; at += counts[l++]) {
                   Neurons a;
                   a.gate = matrix(type, n, shape.dim, 3 * layer), a.up = matrix(type, n, shape.dim, 3 * layer + 1);
                   a.gate_bias = open, a.list = device_lists + at, a.count = device_counts + l, a.n_neurons = n;
                   a.x = input(shape.dim), a.rows = rows, a.act = act, a.active = active;
                   k_.neurons(device_.stream(), a);
                   end(matrix(type, n, shape.dim, 3 * layer + 2));
                 }
               }
             }) /
             (double(layers) * lists);
    };
    const double row_bytes = double(device_row_bytes(type, shape.dim)) * n / lists;
    const std::string share = " of " + std::to_string(percent) + " %";
    report(("neurons" + share).c_str(), shape, type, rows, 2 * row_bytes, pass(Until::kNeurons));
    report(("neurons, down" + share).c_str(), shape, type, rows, 3 * row_bytes, pass(Until::kDown));
    if (percent == kTailPercent) {
      report("and end: one launch", shape, type, rows, 3 * row_bytes, pass(Until::kEnd));
      report("and end: three", shape, type, rows, 3 * row_bytes, pass(Until::kEndApart));
    }
    for (void* memory : {static_cast<void*>(device_lists), static_cast<void*>(device_counts), static_cast<void*>(open),
                         static_cast<void*>(act), static_cast<void*>(active), static_cast<void*>(parts)}) {
      device_.free(memory);
    }
  }

  Device& device_;
  const Kernels& k_;
  size_t pool_bytes_;
  uint8_t* pool_ = nullptr;
  uint64_t* stamps_ = nullptr;
  float* x_ = nullptr;
  int8_t* quants_ = nullptr;
  float* stream_ = nullptr;  // [2, kMostRows, a row's columns]
  uint32_t* arrivals_ = nullptr;
  double bandwidth_ = 0, program_bytes_ = 0;
  std::string json_;
};

int run(int argc, char** argv) {
  const Opened opened = open_device();
  if (!opened.device) throw std::runtime_error(opened.reason);
  const bool emulated = opened.device->info().backend == "emulated";
  const size_t megabytes = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : emulated ? 2 : 2048;
  std::vector<Shape> shapes{{4096, 11008}, {5120, 13824}};
  if (argc > 3) {
    shapes = {{std::atoi(argv[2]), std::atoi(argv[3])}};
  } else if (emulated) {
    shapes = {{256, 512}};
  }
  Bench bench(*opened.device, megabytes);
  for (const Shape& shape : shapes) {
    bench.run(shape);
    for (int rows : emulated ? std::vector<int>{16} : std::vector<int>{32, 128, 512}) bench.run_prompts(shape, rows);
  }
  bench.print_json();
  return 0;
}

}  // namespace
}  // namespace pi::bench

PI_BENCH_MAIN(pi::bench::run)
