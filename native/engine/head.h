// The output head, whole or by a shortlist: all logits from a sketch of it in four bits, then exact ones for the tokens
// that the sketch finds most likely. A row's logits do not depend on threads, nor on the rows beside it.
#pragma once

#include <cstdint>
#include <vector>

#include "base/aligned.h"
#include "engine/parallel.h"
#include "engine/weights.h"
#include "kernels/kernels.h"

namespace pi {

// Keeps its buffers between calls; one call at a time.
class Head {
 public:
  Head(const MatrixView& weights, VectorView bias, const kernels::Table& table) : w_(weights), bias_(bias), k_(table) {}

  // True where a shortlist saves something: a q8_0 head of some size. A sketch of wider types would not be much smaller,
  // one of four bits is the head itself.
  bool has_shortlist() const { return w_.type == DType::kQ8_0 && w_.rows >= 16 * kChunks; }

  // logits [rows, vocab] of x [rows, dim], of which one token in 16 is exact and the others are the sketch's.
  // @returns bytes of weights read
  size_t shortlist(const float* x, int rows, float* logits, const Executor& on);

  size_t allocated_bytes() const { return sketch_.size() * sizeof(BlockQ4_0) + quants_.size(); }

 private:
  // Tokens i with i % kChunks == c compete for the shortlist with one another: ids are often sorted by frequency.
  static constexpr int kChunks = 16;

  void build(const Executor& on);
  int kept() const { return w_.rows / (16 * kChunks); }  // of a chunk
  void rescore(int chunk, const kernels::Activations& x, float* logits) const;

  const MatrixView& w_;
  VectorView bias_;
  const kernels::Table& k_;
  Buffer<BlockQ4_0> sketch_;  // [vocab, dim / 32], made when first used
  Buffer<uint8_t> quants_;
};

}  // namespace pi
