// Kernel microbenchmarks: every instruction set and block type alone on one thread, best of several passes.
//   build/Release/pi_kernel_bench [megabytes of weights] [columns]
// Decoding kernels in GB/s of weights: all rows in order, every tenth row by an index list, AXPY likewise; with few
// megabytes they run from cache, with many from memory. Prefill in G operations/s, at 512 tokens.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "base/aligned.h"
#include "kernels/kernels.h"

namespace pi::bench {
namespace {

using kernels::Table;

// Best of ten timed calls, in seconds.
double best(const std::function<void()>& work) {
  double least = 1e9;
  for (int i = 0; i < 10; ++i) {
    const auto start = std::chrono::steady_clock::now();
    work();
    least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return least;
}

struct Bench {
  const Table& k;
  DType type;
  const char* name;
  int rows, cols;
  Buffer<uint8_t> bytes;
  std::vector<int32_t> tenth;
  Buffer<float> x, y;
  Buffer<uint8_t> quants;

  Bench(const Table& table, DType t, const char* type_name, size_t megabytes, int columns)
      : k(table), type(t), name(type_name), cols(columns) {
    const size_t row = row_bytes(type, cols);
    rows = static_cast<int>((megabytes << 20) / row / 64 * 64);
    bytes.resize(rows * row);
    std::mt19937 random(1);
    // Small finite values of every type: no bit of an exponent's upper half.
    for (uint8_t& b : bytes) b = random() & 0x3b;
    std::uniform_int_distribution<int> one_in_ten(0, 9);
    for (int i = 0; i < rows; ++i) {
      if (one_in_ten(random) == 0) tenth.push_back(i);
    }
    x.assign(size_t(512) * std::max(cols, rows), 0.5f);
    y.resize(std::max<size_t>(rows, size_t(512) * 64 * 2));
    quants.resize(kernels::quantized_bytes(cols));
    k.quantize(x.data(), cols, quants.data());
  }

  kernels::Matrix matrix() const { return {bytes.data(), type, row_bytes(type, cols), cols}; }
  double gb(int n, double seconds) const { return n * double(row_bytes(type, cols)) / seconds / 1e9; }

  double dot(const int32_t* list, int n) {
    return gb(n, best([&] {
                k.dot_rows({matrix(), list, 0, n, {x.data(), size_t(cols), quants.data(), 1}, y.data(), 0});
              }));
  }
  double axpy(const int32_t* list, int n) {
    return gb(n, best([&] { k.axpy_rows({matrix(), list, 0, n, x.data(), 0, 1, y.data(), 0}); }));
  }
  double prefill(bool transposed) {
    constexpr int kTokens = 512, kRows = 512;
    const int inner = transposed ? kRows : cols, outer = transposed ? cols : kRows, tile = k.tile_tokens;
    const size_t tile_bytes = kernels::packed_bytes(inner, tile);
    Buffer<uint8_t> packed(kTokens / tile * tile_bytes);
    for (int t = 0; t < kTokens; t += tile) {
      k.pack_tokens(
          {x.data(), size_t(inner), tile, inner, !transposed && block_size(type) > 1, &packed[t / tile * tile_bytes]});
    }
    Buffer<float> out(size_t(kTokens) * outer);
    Buffer<uint8_t> panels(size_t(outer + kernels::kGemmPanel - 1) / kernels::kGemmPanel * k.panel_bytes);
    const double seconds = best([&] {
      for (int i = 0; transposed && block_size(type) > 1 && i < inner; i += 32)
        k.pack_columns({matrix(), i, i + 32, inner, panels.data()});
      for (int row = 0; row < outer; row += kernels::kGemmPanel) {
        k.gemm({matrix(), transposed, kRows, row, std::min(row + kernels::kGemmPanel, outer), packed.data(), tile_bytes,
                kTokens, panels.data(), &out[size_t(row) * tile], size_t(outer) * tile});
      }
    });
    return 2.0 * kTokens * kRows * cols / seconds / 1e9;
  }

  void run() {
    const int few = static_cast<int>(tenth.size());
    std::printf("%-7s %-5s  %6.1f  %6.1f  %6.1f  %6.1f  %7.0f  %7.0f\n", k.name, name, dot(nullptr, rows),
                dot(tenth.data(), few), axpy(nullptr, rows), axpy(tenth.data(), few), prefill(false), prefill(true));
    std::fflush(stdout);
  }
};

}  // namespace
}  // namespace pi::bench

int main(int argc, char** argv) {
  const size_t megabytes = argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 8;
  const int cols = argc > 2 ? std::atoi(argv[2]) : 2048;
  std::printf("%zu MiB, %d columns\n%-7s %-5s  %6s  %6s  %6s  %6s  %7s  %7s\n", megabytes, cols, "isa", "type", "dot",
              "1/10", "axpy", "1/10", "prefill", "down");
  const std::pair<pi::DType, const char*> types[] = {{pi::DType::kF32, "f32"},
                                                     {pi::DType::kF16, "f16"},
                                                     {pi::DType::kBF16, "bf16"},
                                                     {pi::DType::kQ8_0, "q8_0"},
                                                     {pi::DType::kQ4_0, "q4_0"}};
  for (const auto* table : pi::kernels::available()) {
    if (argc > 3 && std::string(argv[3]) != table->name) continue;
    for (const auto& [type, name] : types) pi::bench::Bench(*table, type, name, megabytes, cols).run();
  }
}
