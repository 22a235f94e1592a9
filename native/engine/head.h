// The output head, whole or by a shortlist: all logits from a sketch of it in four bits, then exact ones for the tokens
// that the sketch finds likely. A row's logits do not depend on threads, nor on the rows beside it.
#pragma once

#include <cstdint>

#include "base/aligned.h"
#include "engine/parallel.h"
#include "engine/weights.h"
#include "kernels/kernels.h"

namespace pi {

// Keeps its buffers between calls; one call at a time.
class Head {
 public:
  Head(const MatrixView& weights, VectorView bias, const kernels::Table& table) : w_(weights), bias_(bias), k_(table) {}

  // True where a shortlist saves something: a q8_0 head of some size. A sketch of wider types would not be much
  // smaller, one of four bits is the head itself.
  bool has_shortlist() const { return w_.type == DType::kQ8_0 && w_.rows >= 16 * kChunks; }

  // logits [rows, vocab] of x [rows, dim]: exact for tokens that are at least half as likely, by the sketch, as all
  // would be if they were alike (kLeast); the others' are the sketch's. The divergence that this leaves is about half
  // the variance of the sketch's errors times what those others hold together (docs/log.md).
  // @returns bytes of weights read
  size_t shortlist(const float* x, int rows, float* logits, const Executor& on);

  size_t allocated_bytes() const {
    return sketch_.size() * sizeof(BlockQ4_0) + quants_.size() + tokens_.size() * sizeof(int32_t) +
           exact_.size() * sizeof(float);
  }

  // Least probability of tokens that get an exact logit, times the vocabulary.
  static constexpr double kLeast = 0.5;

 private:
  // Parts of the vocabulary that are summed and searched by one thread each, whatever the threads are.
  static constexpr int kChunks = 16;

  void build(const Executor& on);
  int choose(const float* logits, const Executor& on);
  void rescore(int count, const kernels::Activations& x, float* logits, const Executor& on);

  const MatrixView& w_;
  VectorView bias_;
  const kernels::Table& k_;
  Buffer<BlockQ4_0> sketch_;  // [vocab, dim / 32], made when first used
  Buffer<uint8_t> quants_;    // [rows]
  Buffer<int32_t> tokens_;    // [vocab]: a row's shortlist
  Buffer<float> exact_;       // its logits
};

}  // namespace pi
