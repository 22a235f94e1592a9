// Views of a model's tensors in the mapped files, by role.
#pragma once

#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/mapped_file.h"
#include "engine/config.h"
#include "kernels/kernels.h"

namespace pi {

// A weight matrix [rows, cols]; rows == 0 where the model has none.
struct MatrixView : kernels::Matrix {
  int rows = 0;
  explicit operator bool() const { return rows > 0; }
  MatrixView from(int first) const;
  // True when it is multiplied with quantised activations.
  bool blocks() const { return rows > 0 && block_size(type) > 1; }
};

// f32 [n]; null where the model has none.
using VectorView = const float*;

// y = x · Wᵀ + b: y [rows of x, w->rows].
struct Projection {
  const MatrixView* w;
  VectorView bias;
  float* y;
};

struct NormWeights {
  VectorView weight = nullptr, bias = nullptr;
};

// What predicts which neurons of a layer a token needs; its kind is told by the tensors that are there. None: the layer
// is computed exactly.
struct PredictorWeights {
  // Two matrices [rank, dim], [n_neurons, rank]: a trained MLP, or (linear: nothing between them) a truncated SVD.
  MatrixView fc1, fc2;
  VectorView fc1_bias = nullptr, fc2_bias = nullptr;
  bool linear = false;
  // A copy of the gate in fewer bits, [n_neurons, dim].
  MatrixView gate;
  VectorView gate_bias = nullptr;
  // The gate's sign bits [n_neurons, dim], and what makes a score of the signs that agree.
  MatrixView signs;
  VectorView signs_scale = nullptr, signs_bias = nullptr;

  explicit operator bool() const { return fc1 || gate || signs; }
  // True when it multiplies quantised inputs.
  bool blocks() const { return fc1.blocks() || gate.blocks(); }
  // What has a row for every neuron, and a bias for each (or null).
  const MatrixView& scorer() const { return signs ? signs : gate ? gate : fc2; }
  VectorView scorer_bias() const { return signs ? signs_bias : gate ? gate_bias : fc2_bias; }
  // Of the matrices: what a token reads.
  size_t bytes() const;
};

struct LayerWeights {
  NormWeights attn_norm, ffn_norm;
  MatrixView q, k, v, o;
  VectorView q_bias = nullptr, k_bias = nullptr, v_bias = nullptr, o_bias = nullptr;
  MatrixView gate, up, down_t;  // [n_neurons, dim]
  VectorView gate_bias = nullptr, up_bias = nullptr, down_bias = nullptr;
  PredictorWeights predictor;

  // The same with the FFN of neurons [first, n_neurons) alone, without what is not a neuron's: predictor and down bias.
  LayerWeights from(int first) const;
};

struct ModelWeights {
  MatrixView embed, pos_embed, head;
  VectorView head_bias = nullptr;
  NormWeights norm;
  std::vector<LayerWeights> layers;
};

// Looks every tensor of the split-weight layout up by name (docs/formats.md). Throws std::runtime_error naming the
// tensor when one is missing, has another shape than the config asks for, or lies outside its file.
ModelWeights bind_weights(const ModelConfig& config, const std::vector<MappedFile>& files,
                          const std::vector<TensorRef>& tensors);

// One predictor alone, its tensors named as after `layers.L.predictor.` and in memory. Throws likewise.
PredictorWeights bind_predictor(int64_t dim, int64_t n_neurons, std::span<const std::span<const uint8_t>> files,
                                const std::vector<TensorRef>& tensors);

}  // namespace pi
