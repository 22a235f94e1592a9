#include "bench/planted_model.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "base/random.h"
#include "engine/kv_cache.h"
#include "quant/convert.h"

namespace pi::bench {
namespace {

constexpr double kSkew = 6.2;  // frequencies fall as e^(-kSkew place): the first quarter is four fifths

// Uniform of mean 0 and variance 1.
float noise(uint64_t& state) {
  return static_cast<float>((static_cast<double>(next_random(state) >> 40) * 0x1p-24 - 0.5) * std::sqrt(12.0));
}

uint64_t row_seed(uint64_t seed, int64_t row) {
  uint64_t state = seed * 0x100000001b3u + static_cast<uint64_t>(row);
  return next_random(state);
}

// What a normal number is above with probability p.
double above(double p) {
  double low = -9, high = 9;
  for (int i = 0; i < 60; ++i) {
    const double middle = (low + high) / 2;
    (0.5 * std::erfc(middle / std::sqrt(2.0)) > p ? low : high) = middle;
  }
  return low;
}

}  // namespace

double planted_frequency(double active, double place) {
  return std::min(0.98, active * kSkew / (1 - std::exp(-kSkew)) * std::exp(-kSkew * place));
}

PlantedModel::PlantedModel(const PlantedShape& shape, const std::string& folder, int threads) : shape_(shape) {
  ModelConfig& c = config_;
  c.dim = shape.dim, c.n_layers = shape.n_layers, c.n_heads = c.n_kv_heads = shape.n_heads,
  c.head_dim = shape.dim / shape.n_heads;
  c.n_neurons = shape.n_neurons, c.vocab = shape.vocab, c.max_positions = shape.positions;
  c.norm_eps = 1e-5f;
  for (int i = 0; i < c.head_dim / 2; ++i) c.rope_frequencies.push_back(std::pow(10000.0, -2.0 * i / c.head_dim));
  add_noise("embed.weight", c.vocab, c.dim, 1);
  for (int layer = 0; layer < c.n_layers; ++layer) add_layer(layer);
  const auto ones = [n = c.dim](int64_t, float* out) { std::fill_n(out, n, 1.0f); };
  add("norm.weight", {c.dim}, DType::kF32, ones);
  add_noise("head.weight", c.vocab, c.dim, 1 / std::sqrt(c.dim));
  path_ = folder + "/pi-planted-XXXXXX";
  ThreadPool pool(threads);
  try {
    write(pool);
  } catch (...) {
    std::remove(path_.c_str());
    throw;
  }
}

PlantedModel::~PlantedModel() { std::remove(path_.c_str()); }

EngineOptions PlantedModel::options() const {
  EngineOptions o;
  o.config = config_;
  o.files = {path_};
  o.tensors = tensors_;
  o.thresholds.assign(config_.n_layers, 0.0f);
  o.kv_blocks = (config_.max_positions + KvCache::kBlockTokens - 1) / KvCache::kBlockTokens;
  o.kv_type = block_size(shape_.type) > 1 ? kernels::KvType::kQ8 : kernels::KvType::kF16;
  return o;
}

void PlantedModel::add(const std::string& name, std::vector<int64_t> shape, DType type, Row row) {
  bytes_ = (bytes_ + 63) / 64 * 64;
  const size_t rows = shape.size() > 1 ? shape[0] : 1, cols = shape.back();
  tensors_.push_back({name, 0, type, std::move(shape), bytes_});
  rows_.push_back(std::move(row));
  bytes_ += rows * row_bytes(type, cols);
}

void PlantedModel::add_noise(const std::string& name, int64_t rows, int64_t cols, double scale) {
  add(name, {rows, cols}, shape_.type,
      [seed = ++seed_, cols, scale = static_cast<float>(scale)](int64_t row, float* out) {
        uint64_t state = row_seed(seed, row);
        for (int64_t i = 0; i < cols; ++i) out[i] = scale * noise(state);
      });
}

void PlantedModel::add_layer(int layer) {
  const std::string at = "layers." + std::to_string(layer) + ".";
  const int64_t dim = config_.dim;
  const auto ones = [dim](int64_t, float* out) { std::fill_n(out, dim, 1.0f); };
  for (const char* norm : {"attn_norm", "ffn_norm"}) add(at + norm + ".weight", {dim}, DType::kF32, ones);
  for (const char* matrix : {"attn.q", "attn.k", "attn.v", "attn.o"})
    add_noise(at + matrix + ".weight", dim, dim, 1 / std::sqrt(dim));
  add_ffn(at, ++seed_);
  ++seed_;
}

// Column j of the gate looks at direction j % rank of its inputs, with a sign of its own, and a neuron mixes the
// directions: the gate's rows are sums of `rank` rows, which the predictor has. Inputs are normed, so a gate without
// its bias is about normally distributed, with variance 1, and the bias says how often it opens.
void PlantedModel::add_ffn(const std::string& at, uint64_t seed) {
  const int64_t dim = config_.dim, n = config_.n_neurons, rank = shape_.rank;
  const auto sign = [seed](int64_t column) { return row_seed(seed, column) & 1 ? 1.0f : -1.0f; };
  const auto mixes = [seed, rank](int64_t neuron) {
    std::vector<float> out(rank);
    uint64_t state = row_seed(seed + 1, neuron);
    for (float& mix : out) mix = noise(state);
    return out;
  };
  add(at + "ffn.gate.weight", {n, dim}, shape_.type, [=](int64_t row, float* out) {
    const std::vector<float> mix = mixes(row);
    const float scale = 1 / std::sqrt(static_cast<float>(dim));
    for (int64_t j = 0; j < dim; ++j) out[j] = scale * sign(j) * mix[j % rank];
  });
  const Row bias = [n, active = shape_.active](int64_t, float* out) {
    for (int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(-above(planted_frequency(active, (i + 0.5) / n)));
  };
  add(at + "ffn.gate.bias", {n}, DType::kF32, bias);
  add_noise(at + "ffn.up.weight", n, dim, 1 / std::sqrt(dim));
  add_noise(at + "ffn.down_t.weight", n, dim, 1 / std::sqrt(dim));
  const DType type = block_size(shape_.type) > 1 ? shape_.type : DType::kF16;
  add(at + "predictor.v.weight", {rank, dim}, type, [=](int64_t row, float* out) {
    const float scale = std::sqrt(static_cast<float>(rank) / dim);
    for (int64_t j = 0; j < dim; ++j) out[j] = j % rank == row ? scale * sign(j) : 0.0f;
  });
  add(at + "predictor.u.weight", {n, rank}, type, [=](int64_t row, float* out) {
    const std::vector<float> mix = mixes(row);
    for (int64_t r = 0; r < rank; ++r) out[r] = mix[r] / std::sqrt(static_cast<float>(rank));
  });
  add(at + "predictor.u.bias", {n}, DType::kF32, bias);
}

// Some rows at a time, straight into the file.
void PlantedModel::write(ThreadPool& pool) {
  const auto refuse = [&](const char* what) {
    throw std::runtime_error(std::string(what) + " " + path_ + ": " + std::strerror(errno));
  };
  const int fd = ::mkstemp(path_.data());
  if (fd < 0) refuse("cannot write");
  const bool room = ::posix_fallocate(fd, 0, static_cast<off_t>(bytes_)) == 0;
  void* const memory = room ? ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
  ::close(fd);
  if (memory == MAP_FAILED) throw std::runtime_error("no room for " + std::to_string(bytes_) + " bytes in " + path_);
  struct Job {
    size_t tensor;
    int64_t begin, end;
  };
  std::vector<Job> jobs;
  for (size_t t = 0; t < tensors_.size(); ++t) {
    const int64_t rows = tensors_[t].shape.size() > 1 ? tensors_[t].shape[0] : 1;
    for (int64_t at = 0; at < rows; at += 64) jobs.push_back({t, at, std::min(at + 64, rows)});
  }
  pool.parallel_for(static_cast<int>(jobs.size()), [&](int index) {
    const Job& job = jobs[index];
    const TensorRef& tensor = tensors_[job.tensor];
    const size_t cols = tensor.shape.back(), n = job.end - job.begin;
    std::vector<float> values(n * cols);
    for (size_t i = 0; i < n; ++i) rows_[job.tensor](job.begin + i, &values[i * cols]);
    uint8_t* const out = static_cast<uint8_t*>(memory) + tensor.offset + job.begin * row_bytes(tensor.type, cols);
    quant::convert(reinterpret_cast<const uint8_t*>(values.data()), DType::kF32, out, tensor.type, n, cols, false,
                   quant::Scales::kPlain, 1);
  });
  ::munmap(memory, bytes_);
}

}  // namespace pi::bench
