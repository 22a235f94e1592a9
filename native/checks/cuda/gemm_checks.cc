// Matrix products of prompts and the activation between them, against sums in f64.
#include <algorithm>

#include "checks/cuda/weights.h"
#include "cuda/workspace.h"

namespace pi::checks {
namespace {

// How weights are drawn: as they are; of 1e4; so small that scales and halves are subnormal.
enum class Fill { kUsual, kHuge, kTiny };
constexpr const char* kFillNames[] = {"usual", "huge", "tiny"};

// Rows in the host's layout, and what they mean.
struct Weights {
  std::vector<uint8_t> bytes;
  std::vector<double> values;
};

template <typename Block>
void fill_block(Fill fill, std::mt19937& random, uint8_t* bytes, double* values) {
  Block block;
  block.d = fill == Fill::kTiny ? static_cast<uint16_t>(1 + random() % 40)
                                : f32_to_f16(fill == Fill::kHuge ? 78.0f : 0.01f + random() % 100 * 1e-4f);
  if (random() % 2) block.d |= 0x8000;
  for (auto& q : block.q) q = static_cast<uint8_t>(random() % 8 ? random() : random() % 2 ? 0x80 : 0x7f);
  std::memcpy(bytes, &block, sizeof block);
  for (int i = 0; i < kQuantBlock; ++i) {
    int q;
    if constexpr (sizeof(Block) == sizeof(BlockQ8_0)) {
      q = block.q[i];
    } else {
      q = (i < 16 ? block.q[i] & 15 : block.q[i - 16] >> 4) - 8;
    }
    values[i] = double(f16_to_f32(block.d)) * q;
  }
}

Weights make_weights(DType type, int rows, int cols, Fill fill, uint32_t seed) {
  std::mt19937 random(seed);
  const size_t n = size_t(rows) * cols, size = block_bytes(type);
  Weights w{std::vector<uint8_t>(rows * row_bytes(type, cols)), std::vector<double>(n)};
  if (block_size(type) > 1) {
    for (size_t b = 0; b < n / kQuantBlock; ++b) {
      const auto fill_one = type == DType::kQ8_0 ? fill_block<BlockQ8_0> : fill_block<BlockQ4_0>;
      fill_one(fill, random, &w.bytes[b * size], &w.values[b * kQuantBlock]);
    }
    return w;
  }
  const float tiny = type == DType::kF16 ? 2e-6f : 1e-30f;
  const std::vector<float> x = random_vector(n, seed, fill == Fill::kHuge ? 1e4f : fill == Fill::kTiny ? tiny : 0.02f);
  for (size_t i = 0; i < n; ++i) {
    const uint16_t half = type == DType::kF16 ? f32_to_f16(x[i]) : f32_to_bf16(x[i]);
    std::memcpy(&w.bytes[i * size], size == 4 ? static_cast<const void*>(&x[i]) : &half, size);
    w.values[i] = type == DType::kF32 ? x[i] : type == DType::kF16 ? f16_to_f32(half) : bf16_to_f32(half);
  }
  return w;
}

// One product, its operands on both sides.
struct Product {
  DType type;
  bool transposed;
  int rows, cols;  // of the weights
  Weights host;
  DeviceWeights device;
  std::vector<float> bias;

  Product(DType type, bool transposed, int rows, int cols, Fill fill)
      : type(type),
        transposed(transposed),
        rows(rows),
        cols(cols),
        host(make_weights(type, rows, cols, fill, rows * 7 + cols)),
        device(type, rows, cols, host.bytes.data()),
        bias(random_vector(outer(), 5)) {}

  int outer() const { return transposed ? cols : rows; }
  int inner() const { return transposed ? rows : cols; }
  double weight(int column, int k) const {
    return host.values[transposed ? size_t(k) * cols + column : size_t(column) * cols + k];
  }

  // y of n rows of x; `before` is what y holds already where the product is added to it. As much workspace as is said.
  std::vector<float> run(const float* x, int n, bool with_bias, const std::vector<float>* before) const {
    const DeviceArray<float> from(std::vector<float>(x, x + size_t(n) * inner())), add(bias);
    const DeviceArray<float> y = before ? DeviceArray<float>(*before) : DeviceArray<float>(size_t(n) * outer());
    const DeviceArray<uint8_t> workspace(cuda::gemm_workspace(device.view, transposed, n));
    kernels_of_device().gemm(stream(), {.w = device.view,
                                        .transposed = transposed,
                                        .x = from.data(),
                                        .bias = with_bias ? add.data() : nullptr,
                                        .y = y.data(),
                                        .add = before != nullptr,
                                        .rows = n,
                                        .workspace = workspace.data()});
    return y.get();
  }
};

// Half an ulp of what x, and transposed blocks, are split to; sums in f32 that may truncate (tensor cores do): n ulps,
// however they are ordered (Higham, 2002). All of it within the promised 1e-4 of the rows' norms, too.
struct Tolerance {
  double split, sum;
  static Tolerance of(const Product& p) {
    const double split = p.type == DType::kF32 ? 0 : p.type == DType::kBF16 ? 0x1p-16 : 0x1p-20;
    return {split, (p.inner() + 8) * 0x1p-23};
  }
};

std::string compare(const Product& p, const std::vector<float>& x, int n, bool with_bias,
                    const std::vector<float>* before) {
  const std::vector<float> y = p.run(x.data(), n, with_bias, before);
  const Tolerance tolerance = Tolerance::of(p);
  for (int t = 0; t < n; ++t) {
    for (int i = 0; i < p.outer(); ++i) {
      double sum = 0, absolute = 0, x2 = 0, w2 = 0;
      for (int k = 0; k < p.inner(); ++k) {
        const double a = x[size_t(t) * p.inner() + k], w = p.weight(i, k);
        sum += a * w;
        absolute += std::abs(a * w);
        x2 += a * a;
        w2 += w * w;
      }
      const double rest = (with_bias ? p.bias[i] : 0.0) + (before ? (*before)[size_t(t) * p.outer() + i] : 0.0);
      const double most = std::min((tolerance.split + tolerance.sum) * absolute, 1e-4 * std::sqrt(x2 * w2)) +
                          0x1p-22 * (std::abs(rest) + 4) + 1e-37;
      const double got = y[size_t(t) * p.outer() + i];
      if (!(std::abs(got - (sum + rest)) <= most)) {
        return "row " + std::to_string(t) + " of " + std::to_string(n) + ", column " + std::to_string(i) + " of " +
               std::to_string(p.rows) + "x" + std::to_string(p.cols) + ", up to " + std::to_string(most) +
               ": expected " + std::to_string(sum + rest) + ", got " + std::to_string(got);
      }
    }
  }
  return "";
}

// Rows of usual, of large and of small numbers; each third element of a row a thousandth of the others; one row of
// zeros.
std::vector<float> make_rows(int n, int cols, float scale) {
  std::vector<float> x = random_vector(size_t(n) * cols, 17 + n, scale);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t row = i / cols;
    x[i] *= (row % 4 == 1 ? 1e4f : row % 4 == 2 ? 1e-6f : row == 3 ? 0 : 1) * (i % 3 ? 1 : 1e-3f);
  }
  return x;
}

std::string check_type(DType type, bool transposed) {
  struct Case {
    int rows, cols, n;
    Fill fill;
  };
  const Case cases[] = {{32, 32, 1, Fill::kUsual},     {96, 160, 7, Fill::kUsual},   {160, 96, 16, Fill::kHuge},
                        {160, 160, 33, Fill::kTiny},   {1, 32, 5, Fill::kUsual},     {7, 96, 33, Fill::kHuge},
                        {1000, 32, 33, Fill::kTiny},   {32, 992, 130, Fill::kHuge},  {1000, 96, 16, Fill::kHuge},
                        {1000, 96, 65, Fill::kUsual},  {96, 2080, 7, Fill::kUsual},  {2077, 96, 16, Fill::kUsual},
                        {96, 1056, 130, Fill::kUsual}, {1050, 96, 130, Fill::kUsual}};
  bool with_bias = false, add = false;
  for (Case c : cases) {
    if (block_size(type) == 1) c.cols += 8;  // a whole number of 8, but of no more
    const Product p(type, transposed, c.rows, c.cols, c.fill);
    const std::vector<float> x = make_rows(c.n, p.inner(), 1);
    const std::vector<float> before = random_vector(size_t(c.n) * p.outer(), 3);
    const std::string wrong = compare(p, x, c.n, with_bias, add ? &before : nullptr);
    if (!wrong.empty()) return std::string(kFillNames[int(c.fill)]) + ": " + wrong;
    add = with_bias != add;
    with_bias = !with_bias;
  }
  return "";
}

// Rows far beyond what a half holds, and far below.
std::string check_range() {
  for (DType type : kWeightTypes) {
    for (float scale : {1e25f, 1e-25f}) {
      const Product p(type, false, 40, 96, Fill::kUsual);
      const std::vector<float> x = make_rows(9, p.inner(), scale);
      const std::string wrong = compare(p, x, 9, false, nullptr);
      if (!wrong.empty()) return std::string(type_name(type)) + ": " + wrong;
    }
  }
  return "";
}

// The same bits, however the rows are cut into products: of one tile or several, segments in one block or in several.
std::string check_cuts(bool transposed, int outer, int rows, std::initializer_list<int> cuts) {
  for (DType type : kWeightTypes) {
    const Product p(type, transposed, transposed ? 1060 : outer, transposed ? outer : 1056, Fill::kUsual);
    const std::vector<float> x = make_rows(rows, p.inner(), 1), whole = p.run(x.data(), rows, true, nullptr);
    int first = 0;
    for (int n : cuts) {
      const std::vector<float> part = p.run(&x[size_t(first) * p.inner()], n, true, nullptr);
      if (std::memcmp(part.data(), &whole[size_t(first) * p.outer()], part.size() * sizeof(float)) != 0) {
        return std::string(type_name(type)) + ": rows " + std::to_string(first) + " on differ when " +
               std::to_string(n) + " are computed at once";
      }
      first += n;
    }
  }
  return "";
}

// What a bigger step needs is enough for a smaller one: an engine has one workspace.
std::string check_workspace() {
  for (int outer : {32, 256, 1024, 4096, 20000}) {
    const cuda::DeviceMatrix w{nullptr, DType::kF16, outer, 4096, cuda::device_row_bytes(DType::kF16, 4096)};
    size_t last = 0;
    for (int n = 0; n <= 600; ++n) {
      const size_t bytes = cuda::gemm_workspace(w, false, n);
      if (bytes < last || bytes % 256 != 0)
        return std::to_string(n) + " rows: " + std::to_string(bytes) + " after " + std::to_string(last);
      last = bytes;
    }
  }
  return "";
}

const std::vector<Check> types = [] {
  std::vector<Check> checks;
  for (DType type : kWeightTypes) {
    checks.emplace_back("gemm: x · Wᵀ of " + std::string(type_name(type)), [type] { return check_type(type, false); });
    checks.emplace_back("gemm: x · W of " + std::string(type_name(type)), [type] { return check_type(type, true); });
  }
  return checks;
}();
const Check range("gemm: rows far out of a half's range", check_range);
const Check cuts("gemm: x · Wᵀ does not depend on how rows are cut, bit for bit", [] {
  return check_cuts(false, 160, 130, {1, 7, 33, 65});
});
const Check transposed_cuts("gemm: x · W does not depend on how rows are cut, bit for bit", [] {
  return check_cuts(true, 160, 130, {1, 7, 33, 65});
});
// Few columns: segments side by side for more rows than a block has, and none for many more.
const Check narrow_cuts("gemm: few columns do not depend on how rows are cut either", [] {
  const std::string wrong = check_cuts(false, 32, 270, {130, 20});
  return wrong.empty() ? check_cuts(true, 32, 270, {130, 20}) : wrong;
});
const Check workspace("gemm: the workspace grows with the rows", check_workspace);

// --------------------------------------------------------------------------------------------------------- activations

// Against the CPU's own functions; exponentials differ in their last bits.
std::string check_activate(kernels::Unary f, bool gated, bool both, size_t n) {
  constexpr float kThreshold = 0.25f;
  std::vector<float> gate = random_vector(n, 1, 3.0f), up = random_vector(n, 2, 3.0f);
  const float special[] = {0.0f, -0.0f, kThreshold, 1e4f, -1e4f, 88.0f, -88.0f};
  for (size_t i = 0; i < n && i < std::size(special); ++i) gate[i] = up[n - 1 - i] = special[i];
  const DeviceArray<float> device_gate(gate), device_up(up);
  kernels_of_device().activate(stream(),
                               {f, both, kThreshold, gated ? device_gate.data() : nullptr, device_up.data(), n});
  const std::vector<float> actual = device_up.get();
  const kernels::Table& cpu = kernels::active();
  if (gated) cpu.activate(f, kThreshold, gate.data(), static_cast<int>(n));
  if (both || !gated) cpu.activate(f, kThreshold, up.data(), static_cast<int>(n));
  for (size_t i = 0; i < n; ++i) {
    const double expected = gated ? double(gate[i]) * up[i] : up[i];
    if (!(std::abs(actual[i] - expected) <= 4e-6 * std::abs(expected) + 1e-6))
      return differs("value", i, expected, actual[i]);
  }
  return "";
}

const Check activations("activate: every function, with and without a gate", [] {
  using enum kernels::Unary;
  for (kernels::Unary f : {kRelu, kRelu2, kFatRelu, kSilu, kGelu, kGeluTanh}) {
    for (size_t n : {1, 7, 1024, 2051}) {
      for (int how = 0; how < 3; ++how) {
        const std::string wrong = check_activate(f, how > 0, how == 2, n);
        if (!wrong.empty())
          return "function " + std::to_string(int(f)) + ", " + std::to_string(n) + " values: " + wrong;
      }
    }
  }
  return std::string();
});

}  // namespace
}  // namespace pi::checks
