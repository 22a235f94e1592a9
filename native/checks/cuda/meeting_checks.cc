// Rows, words and quants that cross between host and device.
#include <atomic>
#include <bit>
#include <chrono>
#include <cstring>
#include <thread>
#include <tuple>

#include "checks/check.h"
#include "checks/cuda/device.h"
#include "kernels/kernels.h"

namespace pi::checks {
namespace {

using namespace pi::cuda;

// Quants and scales of a row as the CPU's scalar kernel makes them.
void quantize_row(const float* x, int cols, int8_t* quants, float* scales) {
  const kernels::Table& k = *kernels::available().front();
  std::vector<uint8_t> packed(kernels::quantized_bytes(cols));
  k.quantize(x, cols, packed.data());
  const int blocks = k.lanes / 4;
  for (int b = 0; b < cols / 32; ++b) {
    const uint8_t* const group = packed.data() + b / blocks * 64 * blocks;
    std::memcpy(quants + b * 32, group + b % blocks * 16, 16);
    std::memcpy(quants + b * 32 + 16, group + 16 * blocks + b % blocks * 16, 16);
    std::memcpy(&scales[b], group + 48 * blocks + b % blocks * 16, 4);
  }
}

std::string expect_quants(const std::vector<float>& x, int rows, int cols, const std::vector<int8_t>& quants,
                          const std::vector<float>& scales) {
  std::vector<int8_t> q(cols);
  std::vector<float> d(cols / 32);
  for (int t = 0; t < rows; ++t) {
    quantize_row(&x[size_t(t) * cols], cols, q.data(), d.data());
    for (int j = 0; j < cols; ++j) {
      if (q[j] != quants[size_t(t) * cols + j]) {
        return "row " + std::to_string(t) + ", column " + std::to_string(j) + ": expected " + std::to_string(q[j]) +
               ", got " + std::to_string(quants[size_t(t) * cols + j]);
      }
    }
    if (std::memcmp(d.data(), &scales[size_t(t) * (cols / 32)], d.size() * 4) != 0)
      return "row " + std::to_string(t) + ": other scales";
  }
  return "";
}

std::vector<float> awkward_rows(int rows, int cols) {
  std::vector<float> x = random_vector(size_t(rows) * cols, 3, 5.0f);
  for (int j = 0; j < 32; ++j) x[j] = 0;
  x.back() = 1e30f;
  // Halves, which round to even: the block's largest is 127.
  for (int j = 0; cols >= 64 && j < 32; ++j) x[32 + j] = j == 0 ? 127.0f : 0.5f + static_cast<float>(j - 16);
  return x;
}

std::string check_quantize(int rows, int cols) {
  const std::vector<float> x = awkward_rows(rows, cols);
  const DeviceArray<float> in(x), scales(x.size() / 32);
  const DeviceArray<int8_t> quants(x.size());
  kernels_of_device().quantize(stream(), {{in.data(), quants.data(), scales.data(), cols}, rows});
  return expect_quants(x, rows, cols, quants.get(), scales.get());
}

const Check quantize("device: quantize, bit for bit as the CPU", [] {
  for (const auto& [rows, cols] : {std::pair{1, 32}, {3, 96}, {2, 1024}, {1, 1056}, {5, 2080}}) {
    const std::string wrong = check_quantize(rows, cols);
    if (!wrong.empty()) return std::to_string(rows) + " x " + std::to_string(cols) + ": " + wrong;
  }
  return std::string();
});

// ------------------------------------------------------------------------------------------------------------ meetings

// The words of a meeting, and the step that both sides count from.
struct Meet {
  explicit Meet(uint32_t step) : flag(1), abort(1), step(std::vector<uint32_t>{step}) { flag[0] = step - 1; }
  Meeting meeting() { return {flag.data(), step.data(), abort.data()}; }
  uint32_t seen() { return std::atomic_ref<uint32_t>(flag[0]).load(std::memory_order_acquire); }
  void answer(uint32_t number) { std::atomic_ref<uint32_t>(flag[0]).store(number, std::memory_order_release); }
  HostArray<uint32_t> flag, abort;
  DeviceArray<uint32_t> step;
};

// The launch is in its queue before the host has anything to give.
std::string check_receive(int rows, int cols, bool quantised) {
  const std::vector<float> x = cols >= 32 ? awkward_rows(rows, cols) : random_vector(size_t(rows) * cols, 4);
  Meet meet(0xffffffffu);  // the next one is 0
  HostArray<float> host(x.size());
  const DeviceArray<float> out(x.size()), scales(x.size() / 32 + 1);
  const DeviceArray<int8_t> quants(x.size());
  DeviceRows to{out.data(), quantised ? quants.data() : nullptr, quantised ? scales.data() : nullptr, cols};
  kernels_of_device().receive(stream(), {meet.meeting(), host.data(), to, rows});
  const auto end = device().event();
  device().record(Queue::kCompute, *end);
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  if (device().done(*end)) return "did not wait";
  std::memcpy(host.data(), x.data(), x.size() * sizeof(float));
  meet.answer(rows % 2 == 0 ? 0 : 0xffffffffu);  // this step's number, or a later one
  if (out.get() != x) return "other values";
  return quantised ? expect_quants(x, rows, cols, quants.get(), scales.get()) : "";
}

const Check receive("device: receive waits for the host, and quantises", [] {
  for (const auto& [rows, cols, quantised] : {std::tuple{1, 7, false},
                                              {3, 21, false},
                                              {2, 4096, false},
                                              {1, 32, true},
                                              {2, 1056, true},
                                              {5, 96, true},
                                              {66, 1056, true}}) {
    const std::string wrong = check_receive(rows, cols, quantised);
    if (!wrong.empty()) return std::to_string(rows) + " x " + std::to_string(cols) + ": " + wrong;
  }
  return std::string();
});

const Check aborted("device: nobody waits any more after abort", [] {
  Meet meet(5);
  HostArray<float> host(32);
  const DeviceArray<float> out(32);
  kernels_of_device().receive(stream(), {meet.meeting(), host.data(), {out.data(), nullptr, nullptr, 32}, 1});
  meet.answer(4);
  std::atomic_ref<uint32_t>(meet.abort[0]).store(1);
  finish();
  return std::string();
});

std::string check_publish(int words, bool signalled) {
  std::vector<uint32_t> from(std::max(words, 1));
  for (int i = 0; i < words; ++i) from[i] = 0x9e3779b9u * static_cast<uint32_t>(i + 1);
  const DeviceArray<uint32_t> memory(from);
  HostArray<uint32_t> host(words + 1);
  host[words] = 77;
  Meet meet(9);
  kernels_of_device().publish(stream(), {memory.data(), host.data(), words, signalled ? meet.meeting() : Meeting{}});
  if (signalled) {
    while (meet.seen() != 9) std::this_thread::yield();
  } else {
    finish();
  }
  for (int i = 0; i < words; ++i) {
    if (host[i] != from[i]) return "word " + std::to_string(i) + " of " + std::to_string(words) + " differs";
  }
  finish();
  if (!signalled && meet.seen() != 8) return "signalled nobody";
  return host[words] == 77 ? "" : "wrote beyond " + std::to_string(words) + " words";
}

const Check publish("device: what is published is whole when it is signalled", [] {
  for (const int words : {0, 1, 3, 4, 1023, 4096, 16384, 16387, 70001}) {
    for (const bool signalled : {true, false}) {
      const std::string wrong = check_publish(words, signalled);
      if (!wrong.empty()) return wrong;
    }
  }
  return std::string();
});

// Publish, the host's answer and receive as a program, launched three times with steps that count on.
const Check program("device: a recorded meeting, launched thrice", [] {
  constexpr int kCols = 160;
  Meet given(0), taken(0);
  HostArray<uint32_t> number(1);
  HostArray<float> row(kCols), answer(kCols);
  const DeviceArray<float> x(std::vector<float>(kCols, 1.0f));
  Meeting wait = taken.meeting();
  wait.step = given.step.data();
  device().begin_recording();
  kernels_of_device().publish(stream(), {x.data(), row.data(), kCols, given.meeting()});
  kernels_of_device().receive(stream(), {wait, answer.data(), {x.data(), nullptr, nullptr, kCols}, 1});
  const auto program = device().end_recording();
  for (uint32_t step = 1; step <= 3; ++step) {
    number[0] = step;
    device().upload(Queue::kCompute, given.step.data(), number.data(), 4);
    device().launch(*program);
    while (given.seen() != step) std::this_thread::yield();
    for (int i = 0; i < kCols; ++i) answer[i] = 2 * row[i] + static_cast<float>(i);
    taken.answer(step);
    finish();
  }
  const std::vector<float> out = x.get();
  for (int i = 0; i < kCols; ++i) {
    if (out[i] != 8.0f + 7.0f * static_cast<float>(i))
      return "element " + std::to_string(i) + ": got " + std::to_string(out[i]);
  }
  return std::string();
});

const Check clock("device: the clock goes on, in nanoseconds", [] {
  HostArray<uint64_t> times(2);
  kernels_of_device().stamp(stream(), {&times[0]});
  finish();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  kernels_of_device().stamp(stream(), {&times[1]});
  finish();
  const uint64_t passed = times[1] - times[0];
  return passed >= 15'000'000 ? std::string() : "after 20 ms: " + std::to_string(passed) + " ns";
});

const Check sweep("device: sweep adds up every word", [] {
  for (const size_t n : {size_t{4}, size_t{4092}, size_t{4096}, size_t{20004}}) {
    std::vector<uint32_t> words(n);
    uint32_t sum = 5;
    for (size_t i = 0; i < n; ++i) sum += words[i] = 0x9e3779b9u * static_cast<uint32_t>(i + 1);
    const DeviceArray<uint32_t> memory(words), out(std::vector<uint32_t>{5});
    kernels_of_device().sweep(stream(), {memory.data(), n, out.data()});
    if (out.get()[0] != sum)
      return std::to_string(n) + " words: expected " + std::to_string(sum) + ", got " + std::to_string(out.get()[0]);
  }
  return std::string();
});

// -------------------------------------------------------------------------------------------------------------- layout

// What a packed row means, element by element, read as cuda/layout.h says.
double packed_value(DType type, size_t cols, const uint8_t* row, size_t j) {
  if (type == DType::kQ8_0 || type == DType::kQ4_0) {
    uint16_t scale;
    std::memcpy(&scale, row + scales_offset(type, cols) + j / 32 * 2, 2);
    const size_t in_block = j % 32;
    const uint8_t byte = row[type == DType::kQ8_0 ? j : j / 32 * 16 + in_block % 16];
    const int quant = type == DType::kQ8_0 ? static_cast<int8_t>(byte) : (in_block < 16 ? byte & 15 : byte >> 4) - 8;
    return double(f16_to_f32(scale)) * quant;
  }
  if (type == DType::kBit) return row[j / 8] >> (j % 8) & 1;
  uint32_t word = 0;
  std::memcpy(&word, row + j * block_bytes(type), block_bytes(type));
  if (type == DType::kF32) return std::bit_cast<float>(word);
  if (type == DType::kI32) return static_cast<int32_t>(word);
  return type == DType::kF16 ? f16_to_f32(static_cast<uint16_t>(word)) : bf16_to_f32(static_cast<uint16_t>(word));
}

// The same of a row as the host has it.
double host_value(DType type, const uint8_t* row, size_t j) {
  const size_t in_block = j % 32;
  if (type == DType::kQ8_0) {
    const BlockQ8_0& block = reinterpret_cast<const BlockQ8_0*>(row)[j / 32];
    return double(f16_to_f32(block.d)) * block.q[in_block];
  }
  if (type == DType::kQ4_0) {
    const BlockQ4_0& block = reinterpret_cast<const BlockQ4_0*>(row)[j / 32];
    return double(f16_to_f32(block.d)) * ((in_block < 16 ? block.q[in_block] & 15 : block.q[in_block - 16] >> 4) - 8);
  }
  return packed_value(type, 0, row, j);
}

const Check layout("device: packed rows mean what they did, and their padding is zero", [] {
  std::mt19937 random(11);
  for (const DType type :
       {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0, DType::kI32, DType::kBit}) {
    for (const size_t blocks : {1, 2, 3, 8, 33}) {
      const size_t cols = blocks * block_size(type), bytes = row_bytes(type, cols);
      std::vector<uint8_t> host(bytes), packed(device_row_bytes(type, cols), 0xee);
      for (uint8_t& byte : host) byte = static_cast<uint8_t>(random() % 120);  // no exponent of infinity or NaN
      pack_row(type, cols, host.data(), packed.data());
      for (size_t j = 0; j < cols; ++j) {
        if (packed_value(type, cols, packed.data(), j) != host_value(type, host.data(), j)) {
          return "type " + std::to_string(static_cast<int>(type)) + ", element " + std::to_string(j) + " of " +
                 std::to_string(cols);
        }
      }
      for (size_t i = bytes; i < packed.size(); ++i) {
        if (packed[i] != 0) return "type " + std::to_string(static_cast<int>(type)) + ": padding that is not zero";
      }
    }
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
