#include "engine/kernel_probe.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/aligned.h"
#include "engine/parallel.h"
#include "engine/probe.h"

namespace pi::engine {
namespace {

using kernels::Table;

// As the engine deals an FFN's neurons (engine/ffn.h).
constexpr int kShares = 16, kRun = 16;
// Neurons of one layer, and KV heads: what lies between two waits for all threads.
constexpr int kLayerNeurons = 4096, kLayerHeads = 32;
// Parts of a vocabulary that are searched on their own, as by the head's shortlist (engine/head.h).
constexpr int kChunks = 16;
constexpr int kLoops = 100;
// What a round reads, or picks rows from: a few milliseconds.
constexpr size_t kRoundBytes = size_t{64} << 20;
// Of a projection: what lies between two waits, too.
constexpr size_t kLoopBytes = size_t{4} << 20;

// A byte of which every type makes small finite values.
constexpr uint8_t kFill = 0x2b;

// Median seconds of a round.
double median_round(double seconds, const std::function<void()>& round) {
  using Clock = std::chrono::steady_clock;
  round();  // brings in what the rounds read
  std::vector<double> rounds;
  const auto start = Clock::now();
  for (auto now = start; rounds.size() < 3 || std::chrono::duration<double>(now - start).count() < seconds;) {
    const auto before = now;
    round();
    now = Clock::now();
    rounds.push_back(std::chrono::duration<double>(now - before).count());
  }
  std::nth_element(rounds.begin(), rounds.begin() + rounds.size() / 2, rounds.end());
  return rounds[rounds.size() / 2];
}

// A vector as the kernels read it, and room for what they write.
struct Vector {
  Buffer<float> x, y;
  Buffer<uint8_t> quants;

  Vector(const Table& k, size_t cols, size_t outputs)
      : x(cols, 0.5f), y(outputs), quants(kernels::quantized_bytes(cols)) {
    k.quantize(x.data(), static_cast<int>(cols), quants.data());
  }
  kernels::Activations activations() const { return {x.data(), x.size(), quants.data(), 1}; }
};

// What all probes have in common.
struct Bench {
  const Table& k;
  Executor on;
  Buffer<uint8_t>& weights;
  double seconds;
};

double probe_project(const KernelProbe& p, const Bench& b) {
  const size_t row = row_bytes(p.type, p.cols);
  const int rows = static_cast<int>(std::min<size_t>(b.weights.size() / row, INT32_MAX)),
            loop = std::max<int>(1, kLoopBytes / row);
  const int loops = std::max(1, rows / loop), round_loops = std::min<int>(loops, kRoundBytes / kLoopBytes);
  const int n = std::min(loop, rows);
  Vector v(b.k, p.cols, n);
  Buffer<int32_t> counts(n);  // of signs
  const auto multiply = [&](const kernels::Matrix& w, int begin, int end) {
    if (p.type == DType::kBit) {
      b.k.count_signs({w, begin, end, v.quants.data(), counts.data()});
    } else {
      b.k.dot_rows({w, nullptr, begin, end, v.activations(), v.y.data(), size_t(n)});
    }
  };
  int next = 0;
  return median_round(b.seconds,
                      [&] {
                        for (int i = 0; i < round_loops; ++i, next = (next + 1) % loops) {
                          const kernels::Matrix w{&b.weights[size_t(next) * n * row], p.type, row, p.cols};
                          b.on.ranges(n, 16, [&](int begin, int end) { multiply(w, begin, end); });
                        }
                      }) /
         (double(n) * round_loops);
}

// Lists of neurons of one share of one layer: list c of `every` holds those that round c reads. Every round reads
// others, so that one does not find in a cache what another left there.
using Lists = std::vector<std::vector<int32_t>>;
Lists deal_neurons(int n, int share, int every, std::mt19937& random) {
  std::uniform_int_distribution<int> one_of(0, every - 1);
  Lists lists(every);
  for (int i = 0; i < n; ++i) {
    if (i / kRun % kShares == share) lists[one_of(random)].push_back(i);
  }
  return lists;
}

double probe_neurons(const KernelProbe& p, const Bench& b) {
  const size_t row = row_bytes(p.type, p.cols);
  const int neurons = static_cast<int>(std::min<size_t>(b.weights.size() / (3 * row), INT32_MAX));
  const int layers = std::max(1, neurons / kLayerNeurons), n = std::min(neurons, kLayerNeurons);
  const size_t matrix = n * row;
  const int round_layers = std::clamp<int>(kRoundBytes / (3 * matrix), 1, layers);
  std::mt19937 random(1);
  std::vector<Lists> lists;
  for (int share = 0; share < kShares; ++share) lists.push_back(deal_neurons(n, share, p.every, random));
  Vector v(b.k, p.cols, size_t(kShares) * p.cols);
  Buffer<float> values(n + kShares * kRun, 0.5f);
  const auto part = [&](int layer, int i) {
    return kernels::Matrix{&b.weights[(3 * size_t(layer) + i) * matrix], p.type, row, p.cols};
  };
  const auto compute = [&](int layer, int share, int turn) {
    const std::vector<int32_t>& list = lists[share][turn];
    const int count = static_cast<int>(list.size());
    float* const out = &values[size_t(share) * (n / kShares)];
    for (int i = 0; i < 2 && p.every > 1; ++i) {
      b.k.dot_rows({part(layer, i), list.data(), 0, count, v.activations(), out, 0, part(layer, i + 1).data});
    }
    b.k.axpy_rows({part(layer, 2), list.data(), 0, count, out, 0, 1, &v.y[size_t(share) * p.cols], 0});
  };
  // As Ffn::dense_rows.
  const auto dots_in_order = [&](int layer, int begin, int end) {
    b.k.dot_rows({part(layer, 0), nullptr, begin, end, v.activations(), values.data(), size_t(n), part(layer, 1).data});
    b.k.dot_rows({part(layer, 1), nullptr, begin, end, v.activations(), values.data(), size_t(n)});
  };
  int layer = 0, turn = 0;
  const double round = median_round(b.seconds, [&] {
    for (int i = 0; i < round_layers; ++i) {
      if (p.every == 1) b.on.ranges(n, 64, [&](int begin, int end) { dots_in_order(layer, begin, end); });
      b.on.each(kShares, [&](int share) { compute(layer, share, turn); });
      if (++layer == layers) layer = 0, turn = (turn + 1) % p.every;
    }
  });
  return round * p.every / (3.0 * n * round_layers);
}

double probe_attention(const KernelProbe& p, const Bench& b) {
  const size_t tile = kernels::kv_tile_bytes(p.kv, p.cols), side = tile * kLayerHeads;
  const int blocks = (p.positions + kernels::kKvBlockTokens - 1) / kernels::kKvBlockTokens;
  const int layers = static_cast<int>(std::min<size_t>(b.weights.size() / (2 * side * blocks), 1 << 16));
  const int round_layers = std::clamp<int>(kRoundBytes / (2 * side * blocks), 1, layers);
  const size_t block_bytes = 2 * side * layers;
  std::vector<int32_t> table(blocks);
  for (int i = 0; i < blocks; ++i) table[i] = i;
  const size_t dim = size_t(p.cols) * p.queries * kLayerHeads;
  Buffer<float> q(dim, 0.01f), out(dim), angles(p.cols, 0.5f);
  const Buffer<float> stored(p.cols);  // zeros: finite, whatever the next probe takes them for
  const auto attend = [&](int layer, int head) {
    std::vector<kernels::Query> queries;
    for (int i = 0; i < p.queries; ++i) {
      const size_t at = (size_t(head) * p.queries + i) * p.cols;
      queries.push_back({&q[at], &out[at], p.positions});
    }
    b.k.rope(&out[size_t(head) * p.queries * p.cols], p.queries, p.cols, angles.data(), angles.data());
    uint8_t* const keys = &b.weights[layer * 2 * side + head * tile];
    uint8_t* const last = keys + block_bytes * (blocks - 1);
    for (size_t line = 0; line < tile; line += 64) __builtin_prefetch(last + line, 1, 3);
    b.k.store_kv(p.kv, stored.data(), stored.data(), p.cols, (p.positions - 1) % kernels::kKvBlockTokens, last,
                 last + side);
    b.k.attention({queries.data(), p.queries, p.cols, keys, keys + side, block_bytes, p.kv, table.data(), 0.1f,
                   head + 1 < kLayerHeads ? keys + tile : nullptr});
  };
  int layer = 0;
  return median_round(b.seconds,
                      [&] {
                        for (int i = 0; i < round_layers; ++i, layer = (layer + 1) % layers) {
                          b.on.ranges(kLayerHeads, 1, [&](int begin, int end) {
                            for (int head = begin; head < end; ++head) attend(layer, head);
                          });
                        }
                      }) /
         (double(round_layers) * kLayerHeads);
}

// As read_bandwidth, by pieces of the size of a loop.
double probe_read(const Bench& b) {
  const size_t piece = std::min(kLoopBytes, b.weights.size() / 4096 * 4096), pieces = b.weights.size() / piece;
  const size_t round_pieces = std::min(pieces, kRoundBytes / piece);
  size_t next = 0;
  std::atomic<uint64_t> sink{0};
  return median_round(b.seconds,
                      [&] {
                        for (size_t i = 0; i < round_pieces; ++i, next = (next + 1) % pieces) {
                          b.on.ranges(static_cast<int>(piece / 4096), 1, [&](int begin, int end) {
                            sink +=
                                sum_lines(&b.weights[next * piece + size_t(begin) * 4096], size_t(end - begin) * 4096);
                          });
                        }
                      }) /
         (double(piece) * round_pieces);
}

// As Engine::step and Ffn: two norms, three vectors rounded, two sums into the stream, and one of the parts that the
// FFN's shares began with zeros, each on some thread.
double probe_stream(const KernelProbe& p, const Bench& b) {
  const Table& k = b.k;
  Vector v(k, p.cols, p.cols);
  const Buffer<float> weight(p.cols, 1.0f);
  Buffer<float> parts(size_t(kShares) * p.cols);
  const auto part = [&](int share) { return &parts[size_t(share) * p.cols]; };
  return median_round(b.seconds,
                      [&] {
                        for (int loop = 0; loop < kLoops; ++loop) {
                          for (int i = 0; i < 2; ++i) k.rms_norm(v.x.data(), weight.data(), 1e-5f, p.cols, v.y.data());
                          for (int i = 0; i < 3; ++i) k.quantize(v.x.data(), p.cols, v.quants.data());
                          b.on.each(kShares, [&](int share) { std::fill_n(part(share), p.cols, 0.0f); });
                          std::fill(v.y.begin(), v.y.end(), 0.0f);
                          for (int share = 0; share < kShares; ++share) k.add(part(share), v.y.data(), p.cols);
                          for (int i = 0; i < 2; ++i) k.add(v.x.data(), v.y.data(), p.cols);
                        }
                      }) /
         kLoops / p.cols;
}

// As Ffn::sparse_share between its products: a list of one neuron in ten by its score, and of those the half that
// fires.
double probe_scan(const KernelProbe& p, const Bench& b) {
  const int n = p.cols / kShares;
  Buffer<float> scores(p.cols), gates(p.cols);
  std::mt19937 random(1);
  std::uniform_real_distribution<float> uniform(0, 1);
  for (float& score : scores) score = uniform(random);
  Buffer<int32_t> lists(p.cols);
  auto scan = [&](int share) {
    const float* const score = &scores[size_t(share) * n];
    float* const gate = &gates[size_t(share) * n];
    int32_t* const list = &lists[size_t(share) * n];
    int count = 0, active = 0;
    for (int i = 0; i < n; ++i) {
      list[count] = i;
      count += score[i] >= 0.9f ? 1 : 0;
    }
    for (int i = 0; i < count; ++i) gate[i] = score[list[i]] - 0.95f;
    b.k.activate(kernels::Unary::kRelu, 0, gate, count);
    for (int i = 0; i < count; ++i) {
      const float value = gate[i];
      list[active] = list[i];
      gate[active] = value;
      active += value != 0.0f ? 1 : 0;
    }
  };
  return median_round(b.seconds,
                      [&] {
                        for (int loop = 0; loop < kLoops; ++loop) b.on.each(kShares, scan);
                      }) /
         kLoops / p.cols;
}

Buffer<float> make_logits(int n) {
  Buffer<float> logits(n);
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0, 3);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// As choose() in engine/sampler.cc.
double probe_vocabulary(const KernelProbe& p, const Bench& b) {
  const Buffer<float> logits = make_logits(p.cols);
  double sink = 0;
  const double round = median_round(b.seconds, [&] {
    const float token = *std::max_element(logits.begin(), logits.end()),
                high = *std::max_element(logits.begin(), logits.end());
    sink += token + b.k.sum_exp(logits.data(), high, p.cols);
  });
  return sink == 0 ? 0 : round / p.cols;
}

// As Head::choose.
double probe_rank(const KernelProbe& p, const Bench& b) {
  const Buffer<float> logits = make_logits(p.cols);
  struct Chunk {
    float high;
    double sum;
    int count;
  };
  std::array<Chunk, kChunks> chunks;
  Buffer<int32_t> tokens(p.cols);
  const int size = p.cols / kChunks;
  const double round = median_round(b.seconds, [&] {
    b.on.each(kChunks, [&](int i) {
      const float* const own = &logits[size_t(i) * size];
      const float high = b.k.highest(own, size);
      chunks[i] = {high, b.k.sum_exp(own, high, size), 0};
    });
    float high = chunks[0].high;
    for (const Chunk& c : chunks) high = std::max(high, c.high);
    double sum = 0;
    for (const Chunk& c : chunks) sum += c.sum * std::exp(c.high - high);
    const float least = high + static_cast<float>(std::log(0.5 * sum / p.cols));
    b.on.each(kChunks, [&](int i) {
      int count = 0;
      for (int token = i * size; token < (i + 1) * size; ++token) {
        tokens[i * size + count] = token;
        count += logits[token] >= least ? 1 : 0;
      }
      chunks[i].count = count;
    });
    int count = 0;
    for (int i = 0; i < kChunks; ++i) {
      std::copy_n(&tokens[size_t(i) * size], chunks[i].count, &tokens[count]);
      count += chunks[i].count;
    }
  });
  return round / p.cols;
}

void check_probe(const KernelProbe& p, size_t bytes) {
  using Kind = KernelProbe::Kind;
  const bool rows = p.kind == Kind::kProject || p.kind == Kind::kNeurons, attention = p.kind == Kind::kAttention;
  const bool sized =
      p.kind == Kind::kRead || p.kind == Kind::kLoop || (p.cols >= 32 && p.cols <= 1 << 20 && p.cols % 32 == 0);
  const bool typed = p.type != DType::kI32 && (p.type != DType::kBit || p.kind == Kind::kProject);
  const bool shaped = p.every > 0 && typed && (!attention || (p.positions > 0 && p.queries > 0));
  size_t least = 0;
  if (sized && rows) least = (p.kind == Kind::kNeurons ? 3 * kShares * kRun : 1) * row_bytes(p.type, p.cols);
  if (sized && shaped && attention)
    least = 2 * kernels::kv_tile_bytes(p.kv, p.cols) * kLayerHeads * (p.positions / kernels::kKvBlockTokens + 1);
  if (sized && shaped && bytes >= std::max<size_t>(least, 4096)) return;
  throw std::invalid_argument("kernel probe: expected columns in whole blocks of 32 and bytes for " +
                              std::to_string(kShares) + " runs of neurons, got " + std::to_string(p.cols) +
                              " columns, " + std::to_string(bytes) + " bytes, every " + std::to_string(p.every) + ", " +
                              std::to_string(p.positions) + " positions, " + std::to_string(p.queries) + " queries");
}

double probe_loop(const Bench& b) {
  return median_round(b.seconds,
                      [&] {
                        for (int i = 0; i < kLoops; ++i) b.on.each(4 * b.on.threads(), [](int) {});
                      }) /
         kLoops;
}

double run_probe(const KernelProbe& p, const Bench& b) {
  using Kind = KernelProbe::Kind;
  switch (p.kind) {
    case Kind::kRead:
      return probe_read(b);
    case Kind::kLoop:
      return probe_loop(b);
    case Kind::kProject:
      return probe_project(p, b);
    case Kind::kNeurons:
      return probe_neurons(p, b);
    case Kind::kAttention:
      return probe_attention(p, b);
    case Kind::kStream:
      return probe_stream(p, b);
    case Kind::kScan:
      return probe_scan(p, b);
    case Kind::kVocabulary:
      return probe_vocabulary(p, b);
    case Kind::kRank:
      return probe_rank(p, b);
  }
  return 0;
}

}  // namespace

std::vector<double> probe_kernels(std::span<const KernelProbe> probes, size_t bytes, int threads, double seconds) {
  if (threads < 1 || !(seconds >= 0)) {
    throw std::invalid_argument("kernel probe: expected 1 thread or more and no negative time, got " +
                                std::to_string(threads) + " threads, " + std::to_string(seconds) + " seconds");
  }
  for (const KernelProbe& probe : probes) check_probe(probe, bytes);
  ThreadPool pool(threads);
  Buffer<uint8_t> weights(bytes, kFill);
  const Bench bench{kernels::active(), Executor{&pool}, weights, seconds};
  std::vector<double> found;
  for (const KernelProbe& probe : probes) found.push_back(run_probe(probe, bench));
  return found;
}

}  // namespace pi::engine
