// Models of any shape whose neurons fire as seldom, and as unevenly, as is asked for: random weights in a file of their
// own, with predictors that know. What they say means nothing; what they cost is what a real model of the shape costs.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "engine/engine.h"

namespace pi::bench {

struct PlantedShape {
  DType type = DType::kF16;
  int dim = 0, n_layers = 0, n_heads = 0, n_neurons = 0, vocab = 0;
  int rank = 0;  // of the gate, and of the predictor that knows it
  double active =
      0;  // share of the neurons that fire for a token; a quarter of them, the first, make four fifths of it
  int positions = 0;
};

// How often the neuron at `place` (0 hottest, 1 coldest) fires, where `active` of all do.
double planted_frequency(double active, double place);

// The file lives as long as the object. A ReLU model with gates, in mode kPredictor: neurons hottest first, none of the
// predicted ones idle but for rounding.
class PlantedModel {
 public:
  // Throws std::runtime_error when `folder` has no room.
  PlantedModel(const PlantedShape& shape, const std::string& folder, int threads);
  ~PlantedModel();
  PlantedModel(const PlantedModel&) = delete;
  PlantedModel& operator=(const PlantedModel&) = delete;

  size_t bytes() const { return bytes_; }
  // Without a GPU; threads and the GPU are the caller's.
  EngineOptions options() const;

 private:
  // Writes row `row` of a tensor.
  using Row = std::function<void(int64_t row, float* out)>;

  void add(const std::string& name, std::vector<int64_t> shape, DType type, Row row);
  void add_noise(const std::string& name, int64_t rows, int64_t cols, double scale);
  void add_layer(int layer);
  void add_ffn(const std::string& at, uint64_t seed);
  void write(ThreadPool& pool);

  PlantedShape shape_;
  ModelConfig config_;
  std::string path_;
  size_t bytes_ = 0;
  std::vector<TensorRef> tensors_;
  std::vector<Row> rows_;
  uint64_t seed_ = 0;
};

}  // namespace pi::bench
