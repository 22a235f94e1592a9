// Trains one layer's activation predictor: score = fc2 · relu(fc1 · x + b1) + b2, by AdamW on weighted cross-entropy.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/thread_pool.h"
#include "train/gemm.h"

namespace pi::train {

struct TrainerOptions {
  int dim, n_neurons, rank;
  uint64_t seed;
  float weight_decay;
  // Share of an active neuron's weight in the loss that follows its contribution, in [0, 1].
  float contribution_weight;
  // A row's strongest neurons that hold this share of its contribution are its active ones, in (0, 1]; 1: all that
  // fire.
  float label_share;
  int threads;
};

// Rows of one layer: the FFN's normed inputs and what each neuron contributed (0 idle, else 1-255).
struct Samples {
  const uint16_t* hidden;        // f16 [rows, dim]
  const uint8_t* contributions;  // [rows, n_neurons]
};

// A view of the parameters, in the order they are stored in: matrices row-major.
template <typename T>
struct Weights {
  std::span<T> fc1;       // [rank, dim]
  std::span<T> fc1_bias;  // [rank]
  std::span<T> fc2;       // [n_neurons, rank]
  std::span<T> fc2_bias;  // [n_neurons]
};

// Results depend on the seed, the data and the instruction set, not on the number of threads. Not thread-safe.
class PredictorTrainer {
 public:
  explicit PredictorTrainer(const TrainerOptions& options);

  // One update per `batch` rows of `order`, which indexes samples. Returns the mean loss per row and neuron.
  double epoch(const Samples& samples, std::span<const int32_t> order, int batch, float learning_rate);

  // out [rows, n_neurons] = scores of the samples named by `rows`.
  void scores(const uint16_t* hidden, std::span<const int32_t> rows, float* out);

  const TrainerOptions& options() const { return options_; }
  Weights<float> weights() { return view(weights_); }
  // Starts AdamW afresh: its moments belong to the old weights.
  void set_weights(const Weights<const float>& weights);

  // Everything that further training depends on: parameters, then AdamW's two moments, and the updates made.
  struct State {
    std::array<std::span<float>, 3> values;
    int64_t steps;
  };
  State state() { return {{weights_, mean_, square_}, steps_}; }
  void set_steps(int64_t steps) { steps_ = steps; }

 private:
  Weights<float> view(std::vector<float>& flat) const;
  void load_rows(const uint16_t* hidden, std::span<const int32_t> rows);
  void forward(int rows, float* scores);
  double loss(const Samples& samples, std::span<const int32_t> rows);
  const uint8_t* labels(const Samples& samples, std::span<const int32_t> rows, int r);
  void backward(int rows);
  void update(float learning_rate);
  void column_sums(const float* matrix, int rows, int cols, float* out);

  TrainerOptions options_;
  ThreadPool pool_;
  Gemm gemm_;
  // All parameters in one array, so that the update is one loop; likewise their gradient and AdamW's two moments.
  std::vector<float> weights_, gradient_, mean_, square_;
  int64_t steps_ = 0;
  // Of one batch: inputs [rows, dim], hidden units and their gradient [rows, rank], scores (then their gradients)
  // [rows, n_neurons].
  std::vector<float> input_, units_, unit_gradient_, scores_;
  std::vector<uint8_t> labels_;
  std::vector<int> active_;
  std::vector<double> losses_;
};

}  // namespace pi::train
