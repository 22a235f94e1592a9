// How AXPY reads blocks where the instruction set has no better way of its own (AVX-512 has); compiled once per
// instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {

// Reads blocks as f32; made once before a loop.
template <typename Block>
struct FloatReader {
  // The 32 quants of a block, without its scale.
  void quants(const Block& block, V* q) const { unpack(block, q); }
  // The scales of kGroup blocks, times a.
  void scales(const Block* w, float a, float* out) const {
    for (int k = 0; k < kLanes / 4; ++k) out[k] = f16(w[k].d) * a;
  }
};

}  // namespace pi::kernels::PI_ISA
