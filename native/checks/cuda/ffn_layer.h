// A layer's sparse FFN on the device, for checks of its kernels.
#pragma once

#include "checks/cuda/weights.h"

namespace pi::checks {

constexpr float kUntouched = 77.0f;  // where nothing was computed
constexpr float kFatThreshold = 0.2f;

struct FfnCase {
  DType type = DType::kF16;
  int dim = 96, neurons = 50, rows = 1;
  kernels::Unary f = kernels::Unary::kRelu;
  bool gated = true, both = false, bias = true;
  double listed = 0.6;  // share of neurons that are listed
  bool masked = true, saturate = false;
  double wanted = 0.7;
  int parts = 3;
};

// A layer's FFN on the device with everything a step of it reads and writes.
struct FfnLayer {
  FfnCase c;
  HostWeights gate, up, down;
  std::vector<int32_t> list;
  std::vector<float> gate_bias, up_bias;
  std::vector<std::vector<bool>> masks;
  Rows x;
  DeviceWeights device_gate, device_up, device_down;
  DeviceArray<float> device_gate_bias, device_up_bias, act, parts;
  DeviceArray<int32_t> device_list, count;
  DeviceArray<uint32_t> mask, active;
  DeviceArray<unsigned long long> counters;

  FfnLayer(const FfnCase& c, uint32_t seed)
      : c(c),
        gate(c.type, c.neurons, c.dim, seed, c.saturate),
        up(c.type, c.neurons, c.dim, seed + 1, c.saturate),
        down(c.type, c.neurons, c.dim, seed + 2, c.saturate),
        gate_bias(random_vector(c.neurons, seed + 4)),
        up_bias(random_vector(c.neurons, seed + 5)),
        x(c.type, c.rows, c.dim, seed + 6, c.saturate),
        device_gate(gate.to_device()),
        device_up(up.to_device()),
        device_down(down.to_device()),
        device_gate_bias(gate_bias),
        device_up_bias(up_bias),
        act(std::vector<float>(size_t(c.neurons) * c.rows, kUntouched)),
        parts(size_t(c.parts) * c.rows * c.dim),
        device_list(c.neurons),
        count(1),
        mask(size_t(c.rows) * cuda::mask_words(c.neurons)),
        active(std::vector<uint32_t>(cuda::mask_words(c.neurons) + 1)),
        counters(std::vector<unsigned long long>(2)) {
    std::mt19937 random(seed + 7);
    std::bernoulli_distribution listed(c.listed), wanted(c.wanted);
    for (int t = 0; t < c.rows; ++t) {
      masks.emplace_back(c.neurons);
      for (int i = 0; i < c.neurons; ++i) masks[t][i] = !c.masked || wanted(random);
    }
    for (int i = 0; i < c.neurons; ++i) {
      if (listed(random)) list.push_back(i);
    }
    set_masks();
    set_list(list);
  }
  void set_masks() {
    std::vector<uint32_t> words;
    for (const auto& row : masks) {
      for (uint32_t word : bit_words(row)) words.push_back(word);
    }
    mask.set(words);
  }
  void set_list(const std::vector<int32_t>& to) {
    list = to;
    std::vector<int32_t> padded = to;
    padded.resize(c.neurons, 1 << 30);  // never a neuron
    device_list.set(padded);
    count.set({static_cast<int32_t>(to.size())});
  }

  cuda::Neurons neurons_args() {
    cuda::Neurons a;
    if (c.gated) a.gate = device_gate.view;
    a.up = device_up.view;
    if (c.bias) a.gate_bias = device_gate_bias.data(), a.up_bias = device_up_bias.data();
    a.f = c.f, a.both = c.both, a.threshold = kFatThreshold;
    a.list = device_list.data(), a.count = count.data();
    a.mask = c.masked ? mask.data() : nullptr;
    a.n_neurons = c.neurons, a.x = x.view(), a.rows = c.rows, a.act = act.data(), a.active = active.data();
    a.counters = counters.data();
    return a;
  }
  void neurons() { kernels_of_device().neurons(stream(), neurons_args()); }
  void run_down() {
    kernels_of_device().down(
        stream(), {device_down.view, active.data(), act.data(), c.neurons, c.rows, c.parts, parts.data(), {}, nullptr});
  }
  // What the layer adds to the stream: everything, from the list on.
  std::vector<float> run() {
    neurons();
    run_down();
    DeviceArray<float> y(size_t(c.rows) * c.dim);
    cuda::Merge m;
    m.parts = parts.data(), m.n_parts = c.parts, m.y = y.data(), m.rows = c.rows, m.dim = c.dim;
    kernels_of_device().merge(stream(), m);
    return y.get();
  }
};

inline std::string name_of(const FfnCase& c) {
  return std::string(type_name(c.type)) + ", dim " + std::to_string(c.dim) + ", " + std::to_string(c.neurons) +
         " neurons, " + std::to_string(c.rows) + " rows";
}

}  // namespace pi::checks
