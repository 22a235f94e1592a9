// The sparse FFN of the GPU, from the list to the stream: what must not matter for its bits, and what the CPU computes.
#include <cmath>

#include "checks/cuda/ffn_layer.h"
#include "engine/ffn.h"

namespace pi::checks {
namespace {

using kernels::Unary;

const Check idle("ffn: which idle neurons are listed changes nothing, nor do masks of ones, nor another run", [] {
  for (DType type : kWeightTypes) {
    FfnLayer layer({.type = type, .dim = 160, .neurons = 300, .rows = 3, .listed = 1, .masked = false, .parts = 4}, 5);
    const std::vector<float> dense = layer.run();
    std::string problem = same_bits("again", dense, layer.run());
    layer.c.masked = true;  // all of whose bits are set
    if (problem.empty()) problem = same_bits("masks of ones", dense, layer.run());
    const std::vector<float> act = layer.act.get();
    std::vector<int32_t> firing;
    for (int i = 0; i < layer.c.neurons; ++i) {
      bool fires = false;
      for (int t = 0; t < 3; ++t) fires = fires || act[i * 3 + t] != 0;
      if (fires) firing.push_back(i);
      for (int t = 0; t < 3; ++t) layer.masks[t][i] = act[i * 3 + t] != 0;
    }
    layer.set_list(firing);
    if (problem.empty()) problem = same_bits("active neurons only", dense, layer.run());
    layer.set_masks();
    if (problem.empty()) problem = same_bits("each row's active neurons only", dense, layer.run());
    if (!problem.empty()) return std::string(type_name(type)) + ", " + problem;
  }
  return std::string();
});

const Check alone("ffn: a row's bits do not depend on the rows beside it", [] {
  for (DType type : kWeightTypes) {
    FfnLayer all({.type = type, .dim = 1120, .neurons = 40, .rows = 11, .listed = 1}, 6);
    const std::vector<float> together = all.run();
    for (int t = 0; t < 11; ++t) {
      const std::vector<float> x(all.x.x.begin() + t * 1120, all.x.x.begin() + (t + 1) * 1120);
      FfnLayer one({.type = type, .dim = 1120, .neurons = 40, .listed = 1}, 6);
      const Rows row(type, 1, 1120, x);
      one.x.device_x.set(x), one.x.device_quants.set(row.device_quants.get()),
          one.x.device_scales.set(row.device_scales.get());
      one.masks = {all.masks[t]};
      one.set_masks();
      const std::string problem =
          same_bits(std::string(type_name(type)) + ", row " + std::to_string(t),
                    std::vector<float>(together.begin() + t * 1120, together.begin() + (t + 1) * 1120), one.run());
      if (!problem.empty()) return problem;
    }
  }
  return std::string();
});

MatrixView view_of(const HostWeights& w) {
  MatrixView out;
  static_cast<kernels::Matrix&>(out) = {w.bytes.data(), w.type, row_bytes(w.type, w.cols), w.cols};
  out.rows = w.rows;
  return out;
}

const Check cpu("ffn: what the CPU's FFN computes", [] {
  for (DType type : kWeightTypes) {
    for (Activation activation : {Activation::kRelu, Activation::kDRelu, Activation::kFatRelu}) {
      FfnLayer layer({.type = type,
                      .dim = 288,
                      .neurons = 200,
                      .rows = 2,
                      .both = activation == Activation::kDRelu,
                      .listed = 1,
                      .masked = false},
                     9);
      layer.c.f = activation == Activation::kFatRelu ? Unary::kFatRelu : Unary::kRelu;
      ModelConfig config;
      config.dim = 288, config.n_neurons = 200, config.activation = activation,
      config.fatrelu_threshold = kFatThreshold;
      LayerWeights weights;
      weights.gate = view_of(layer.gate), weights.up = view_of(layer.up), weights.down_t = view_of(layer.down);
      weights.gate_bias = layer.gate_bias.data(), weights.up_bias = layer.up_bias.data();
      std::vector<float> expected(2 * 288);
      std::vector<SparseRow> rows{{layer.x.x.data(), expected.data(), false, {}, {}},
                                  {layer.x.x.data() + 288, expected.data() + 288, false, {}, {}}};
      Ffn(config, kernels::active()).sparse(weights, 0, rows, Executor{});
      const std::vector<float> actual = layer.run();
      double squares = 0, errors = 0;
      for (size_t i = 0; i < actual.size(); ++i)
        squares += double(expected[i]) * expected[i], errors += std::pow(double(actual[i]) - expected[i], 2);
      // Sums of 288 and 200 products, each rounded once, relative to the output's norm.
      if (!(errors <= squares * 1e-10) || squares == 0)
        return differs(std::string(type_name(type)) + ": relative error of activation", size_t(activation), 0,
                       std::sqrt(errors / squares));
    }
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
