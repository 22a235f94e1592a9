// How fast this machine runs the loops of decoding: the same kernels on the same pool, over weights made up for it.
// What `pi place` prices a token with.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "base/types.h"
#include "kernels/kernels.h"

namespace pi::engine {

struct KernelProbe {
  enum class Kind {
    kRead,     // lines in order, summed: what readBandwidth does, in the same memory; seconds a byte
    kLoop,     // a parallel loop of nothing: threads that wait for one another; seconds a loop
    kProject,  // rows of a matrix in order, times one vector, or of sign bits, compared with it; seconds a row
    kNeurons,  // gate, up and down rows of all neurons, or of one in `every`, an FFN's shares at a time; seconds a row
    kAttention,   // `queries` heads that share a KV head, over `positions`; seconds a KV head
    kStream,      // what the calling thread does alone to a layer's stream: norms, rounding, sums; seconds an element
    kScan,        // which of a layer's neurons to read, by their scores, and which of those fire; seconds a neuron
    kVocabulary,  // greedy choice and its probability; seconds a logit
    kRank,        // the head's shortlist chosen from its sketch; seconds a logit
  };
  Kind kind = Kind::kLoop;
  DType type = DType::kF32;
  int cols = 0;   // of a row; of a head with kAttention; of all there is with kStream, kScan, kVocabulary and kRank
  int every = 1;  // kNeurons: 1 is dense
  int positions = 0, queries = 1;
  kernels::KvType kv = kernels::KvType::kF16;
};

// Seconds per unit of each probe's kind: the median of three rounds or as many as `seconds` allow. All read the
// same `bytes`, a round some of them and the next round others: how much memory is in use decides how fast it is read.
// Throws std::invalid_argument on nonsense and std::bad_alloc when the bytes do not fit.
std::vector<double> probe_kernels(std::span<const KernelProbe> probes, size_t bytes, int threads, double seconds);

}  // namespace pi::engine
