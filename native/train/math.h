// The inner loops of predictor training, one table of them per instruction set (as kernels/kernels.h).
#pragma once

#include <cstdint>
#include <string_view>

namespace pi::train {

// Rows of A in one tile of a product; a tile has 2 * Math::lanes columns.
constexpr int kTileRows = 6;

// One row of weighted binary cross-entropy with logits over `n` neurons, label = contribution > 0. In place: scores
// become the loss's gradient by them. An idle neuron weighs `idle`, an active one active + per_contribution * its
// contribution.
struct LossRow {
  float* scores;
  const uint8_t* contributions;
  int n;
  float idle, active, per_contribution;
  float gradient_scale;
};

// One AdamW update (Loshchilov & Hutter 2019) of `n` parameters; corrections are 1 / (1 - beta^step).
struct AdamStep {
  float* weights;
  const float* gradient;
  float* mean;
  float* square;
  int64_t n;
  float learning_rate, weight_decay;
  float mean_correction, square_correction;
};

constexpr float kBeta1 = 0.9f, kBeta2 = 0.999f, kAdamEps = 1e-8f;

struct Math {
  const char* name;
  int lanes;
  // c [6, 2 * lanes] (row stride `stride`) += a · b, with a packed [k, 6] and b packed [k, 2 * lanes].
  void (*tile)(int k, const float* a, const float* b, float* c, int stride);
  // Sum of the row's weighted losses.
  double (*loss)(const LossRow&);
  void (*adam)(const AdamStep&);
};

// The table of an instruction set by its name in kernels::Table.
const Math& math_of(std::string_view isa);

// The table of the instruction set that kernels::active() chose.
const Math& math();

}  // namespace pi::train
