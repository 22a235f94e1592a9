// Projections of decoding against their f64 twin.
#include "checks/cuda/weights.h"

namespace pi::checks {
namespace {

using cuda::Project;

struct Case {
  DType type;
  int rows, cols, tokens;
  bool saturate = false, bias = false, add = false, relu = false;
};

std::string name_of(const Case& c) {
  return std::string(type_name(c.type)) + " [" + std::to_string(c.rows) + ", " + std::to_string(c.cols) + "] of " +
         std::to_string(c.tokens);
}

// One output of a launch, its inputs and its twin.
struct Output {
  HostWeights w;
  DeviceWeights device_w;
  std::vector<float> bias, before;
  DeviceArray<float> device_bias, y;

  Output(const Case& c, uint32_t seed)
      : w(c.type, c.rows, c.cols, seed, c.saturate),
        device_w(w.to_device()),
        bias(random_vector(c.rows, seed + 1)),
        before(random_vector(size_t(c.rows) * c.tokens, seed + 2)),
        device_bias(bias),
        y(before) {}

  Project::Output view(const Case& c) { return {device_w.view, c.bias ? device_bias.data() : nullptr, y.data()}; }

  std::string compare(const Case& c, const Rows& x) {
    const std::vector<float> actual = y.get();
    for (int t = 0; t < c.tokens; ++t) {
      for (int i = 0; i < c.rows; ++i) {
        const size_t at = size_t(t) * c.rows + i;
        const Dot twin = dot(w, i, x, t);
        const double others = (c.bias ? bias[i] : 0.0) + (c.add ? before[at] : 0.0);
        double expected = twin.sum + others;
        if (c.relu) expected = std::max(expected, 0.0);
        if (!(std::fabs(actual[at] - expected) <= sum_tolerance(c.cols, twin.magnitude + std::fabs(others))))
          return differs(name_of(c), at, expected, actual[at]);
      }
    }
    return "";
  }
};

std::string run(const Case& c, uint32_t seed) {
  Output out(c, seed);
  const Rows x(c.type, c.tokens, c.cols, seed + 3, c.saturate);
  kernels_of_device().project(stream(), {{out.view(c)}, x.view(), c.tokens, c.add, c.relu, {}});
  return out.compare(c, x);
}

const Check shapes("project: every type, numbers of rows and columns that are no multiple of anything", [] {
  uint32_t seed = 1;
  for (DType type : kWeightTypes) {
    for (int cols : {32, 96, 256, 1152}) {
      for (int tokens : {1, 3, 8, 17}) {
        const std::string problem = run({type, cols == 96 ? 37 : 5, cols, tokens}, seed++);
        if (!problem.empty()) return problem;
      }
    }
  }
  for (DType type : {DType::kF32, DType::kF16, DType::kBF16}) {
    for (int cols : {1, 12, 103}) {
      const std::string problem = run({type, 1, cols, 2}, seed++);
      if (!problem.empty()) return problem;
    }
  }
  return std::string();
});

const Check saturating("project: numbers that fill bytes and blocks", [] {
  for (DType type : kWeightTypes) {
    const std::string problem = run({type, 9, 512, 2, true}, 7);
    if (!problem.empty()) return problem;
  }
  return std::string();
});

const Check tiles("project: rows longer than what is staged at once", [] {
  for (DType type : kWeightTypes) {
    const int cols = type == DType::kQ8_0 || type == DType::kQ4_0 ? 32768 + 96 : 8192 + 96;
    const std::string problem = run({type, 2, cols, 1}, 8);
    if (!problem.empty()) return problem;
  }
  return std::string();
});

const Check blocks("project: more rows than a block's warps take at once", [] {
  return run({DType::kF16, 8211, 8, 1}, 9);
});

const Check outputs("project: three outputs of two types, with bias, added to what is there, or cut at 0", [] {
  const int tokens = 3, cols = 160;
  for (int kind = 0; kind < 3; ++kind) {
    Case q{DType::kQ4_0, 40, cols, tokens, false, true, kind == 1, kind == 2}, k = q, v = q;
    k.type = DType::kQ8_0, k.rows = 3, k.bias = false;
    v.rows = 19;
    Output q_out(q, 10), k_out(k, 20), v_out(v, 30);
    const Rows x(DType::kQ4_0, tokens, cols, 40);
    kernels_of_device().project(stream(),
                                {{q_out.view(q), k_out.view(k), v_out.view(v)}, x.view(), tokens, q.add, q.relu, {}});
    for (auto& [out, c] : {std::pair<Output&, Case&>(q_out, q), {k_out, k}, {v_out, v}}) {
      const std::string problem = out.compare(c, x);
      if (!problem.empty()) return problem;
    }
  }
  return std::string();
});

const Check alone("project: a row's bits do not depend on the rows beside it", [] {
  for (DType type : kWeightTypes) {
    const int tokens = 13, rows = 11, cols = 1152;
    const HostWeights w(type, rows, cols, 50);
    const DeviceWeights device_w = w.to_device();
    const Rows x(type, tokens, cols, 51);
    const auto project = [&](int first, int n) {
      DeviceArray<float> y(size_t(n) * rows);
      const size_t at = size_t(first) * cols;
      const cuda::DeviceRows view{x.device_x.data() + at, x.device_quants.data() + at,
                                  x.device_scales.data() + at / kQuantBlock, cols};
      kernels_of_device().project(stream(), {{{device_w.view, nullptr, y.data()}}, view, n, false, false, {}});
      return y.get();
    };
    const std::vector<float> together = project(0, tokens);
    for (int t = 0; t < tokens; ++t) {
      for (int n : {1, 2, 3, 5}) {
        if (t + n > tokens || (n > 1 && t % 5 != 0)) continue;
        const std::vector<float> part(together.begin() + t * rows, together.begin() + (t + n) * rows);
        const std::string problem = same_bits(std::string(type_name(type)) + " row", part, project(t, n));
        if (!problem.empty()) return problem;
      }
    }
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
