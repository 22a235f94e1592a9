// The recorded programs of steps. A driver keeps what it launches in device memory, and that, too, is promised
// (GpuMemory): so only those are kept that were launched last.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>

#include "cuda/device.h"

namespace pi {

// What a recorded program's launches depend on.
struct ProgramKey {
  int rows;
  bool draws, apart;
  auto operator<=>(const ProgramKey&) const = default;
};

// Of the launches of a step: what goes from one memory to the other.
struct Traffic {
  uint64_t transfers = 0, bytes = 0;
};

struct Recorded {
  std::unique_ptr<cuda::Program> program;
  Traffic traffic;
  uint64_t launched = 0;  // when, for GpuPrograms
};

class GpuPrograms {
 public:
  static constexpr size_t kMost = 8;
  // Device memory that all of them may take. A layer is 16 operations at the most, with rows that want launches of
  // their own and projections of three types; 2 KiB each is an estimate, which pi_device_bench (`programBytes`) is
  // there to check.
  static constexpr size_t bytes(int n_layers) { return kMost * 16 * (size_t(n_layers) + 1) * 2048; }

  // Null: `record` it.
  const Recorded* find(const ProgramKey& key) {
    const auto found = programs_.find(key);
    if (found == programs_.end()) return nullptr;
    found->second.launched = ++launches_;
    return &found->second;
  }

  // Room for one more comes before it is recorded.
  void make_room() {
    if (programs_.size() < kMost) return;
    const auto older = [](const auto& a, const auto& b) { return a.second.launched < b.second.launched; };
    programs_.erase(std::min_element(programs_.begin(), programs_.end(), older));
  }
  const Recorded* keep(const ProgramKey& key, Recorded recorded) {
    recorded.launched = ++launches_;
    return &(programs_[key] = std::move(recorded));
  }

  void clear() { programs_.clear(); }

 private:
  std::map<ProgramKey, Recorded> programs_;
  uint64_t launches_ = 0;
};

}  // namespace pi
