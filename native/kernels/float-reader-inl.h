// How AXPY reads blocks where the instruction set has no better way of its own (AVX-512 has); compiled once per
// instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {

// kGroup blocks as f32 without their scales, and the scales times `a`, each in all lanes.
template <typename Block>
struct FloatReader {
  void operator()(const Block* w, V a, V* q, V* s) const {
    for (int k = 0; k < kLanes / 4; ++k) {
      unpack(w[k], q + k * (kQuantBlock / kLanes));
      s[k] = mul(set1(f16(w[k].d)), a);
    }
  }
};

}  // namespace pi::kernels::PI_ISA
