// Training-free predictors: the gate projection by two thin matrices, fitted to the inputs that it really gets.
#pragma once

#include <cstdint>
#include <span>

#include "base/thread_pool.h"
#include "train/gemm.h"

namespace pi::train {

// moments [dim + 1, dim + 1] += sum over rows of [x; 1] [x; 1]ᵀ: second moments, sums, and the number of rows.
// `hidden` is f16 [rows, dim]. The result does not depend on the threads.
void add_moments(std::span<const uint16_t> hidden, int dim, std::span<double> moments, int threads);

struct LowRankOptions {
  int n_neurons, dim, rank;  // rank <= min(n_neurons, dim)
  uint64_t seed;
  int threads;
};

// gate [n_neurons, dim] ≈ u [n_neurons, rank] · v [rank, dim]: the truncated singular value decomposition in the metric
// of the inputs' covariance, every neuron's variance counting the same. That is, of all products of this rank (about)
// the one whose relative squared error on such inputs is least, once their mean is accounted for by a bias. By subspace
// iteration; deterministic, whatever the threads.
void low_rank(const LowRankOptions& options, std::span<const float> gate, std::span<const double> moments,
              std::span<float> u, std::span<float> v);

}  // namespace pi::train
