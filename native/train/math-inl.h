// Compiled once per instruction set: PI_ISA names the namespace that kernels/simd-<isa>.h has filled. Only plain loops
// and that vocabulary here, as in kernels/kernels-inl.h.

namespace pi::train::PI_ISA {
namespace {

using namespace kernels::PI_ISA;

void tile(int k, const float* a, const float* b, float* c, int stride) {
  V acc[kTileRows][2];
  for (auto& row : acc) row[0] = row[1] = zero();
  for (int p = 0; p < k; ++p, a += kTileRows, b += 2 * kLanes) {
    const V left = load(b), right = load(b + kLanes);
    for (int i = 0; i < kTileRows; ++i) {
      const V x = set1(a[i]);
      acc[i][0] = fma(x, left, acc[i][0]);
      acc[i][1] = fma(x, right, acc[i][1]);
    }
  }
  for (int i = 0; i < kTileRows; ++i, c += stride) {
    store(c, add(load(c), acc[i][0]));
    store(c + kLanes, add(load(c + kLanes), acc[i][1]));
  }
}

// log(1 + e) for e in [0, 1] to 2e-7: 2 atanh(z), z = e / (2 + e) <= 1/3.
inline V log1p(V e) {
  const V z = div(e, add(set1(2.0f), e));
  const V square = mul(z, z);
  V p = set1(2.0f / 13);
  for (int n = 11; n > 0; n -= 2) p = fma(p, square, set1(2.0f / static_cast<float>(n)));
  return mul(p, z);
}

constexpr int kLossBlock = 64;

// One block of LossRow. With sign -1 for an active and +1 for an idle neuron and z = sign * score, the loss is
// log(1 + e^z) and its gradient sign / (1 + e^-z).
inline float loss_block(const LossRow& o, const uint8_t* contributions, float* scores) {
  float contribution[kLossBlock];
  for (int i = 0; i < kLossBlock; ++i) contribution[i] = contributions[i];
  const V one = set1(1.0f);
  V losses = zero();
  for (int i = 0; i < kLossBlock; i += kLanes) {
    const V c = load(contribution + i), active = min(c, one);
    const V sign = fma(active, set1(-2.0f), one);
    const V weight = fma(c, set1(o.per_contribution), fma(active, set1(o.active - o.idle), set1(o.idle)));
    const V z = mul(sign, load(scores + i)), minus_z = sub(zero(), z);
    losses = fma(weight, add(max(z, zero()), log1p(exp(min(z, minus_z)))), losses);
    store(scores + i, div(mul(mul(sign, weight), set1(o.gradient_scale)), add(one, exp(minus_z))));
  }
  return sum(losses);
}

double loss(const LossRow& o) {
  double total = 0;
  int start = 0;
  for (; start + kLossBlock <= o.n; start += kLossBlock) {
    total += loss_block(o, o.contributions + start, o.scores + start);
  }
  if (start == o.n) return total;
  // The rest is padded with idle neurons whose score is so low that they lose nothing.
  uint8_t contributions[kLossBlock] = {};
  float scores[kLossBlock];
  for (int i = 0; i < kLossBlock; ++i) {
    contributions[i] = start + i < o.n ? o.contributions[start + i] : 0;
    scores[i] = start + i < o.n ? o.scores[start + i] : -1e3f;
  }
  total += loss_block(o, contributions, scores);
  for (int i = start; i < o.n; ++i) o.scores[i] = scores[i - start];
  return total;
}

void adam(const AdamStep& o) {
  const float decay = 1.0f - o.learning_rate * o.weight_decay;
  for (int64_t i = 0; i < o.n; ++i) {
    const float g = o.gradient[i];
    const float mean = kBeta1 * o.mean[i] + (1.0f - kBeta1) * g;
    const float square = kBeta2 * o.square[i] + (1.0f - kBeta2) * g * g;
    o.mean[i] = mean;
    o.square[i] = square;
    const float step = mean * o.mean_correction / (__builtin_sqrtf(square * o.square_correction) + kAdamEps);
    o.weights[i] = o.weights[i] * decay - o.learning_rate * step;
  }
}

const Math kMath = {kName, kLanes, tile, loss, adam};

}  // namespace
}  // namespace pi::train::PI_ISA
