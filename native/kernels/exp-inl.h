// The exponential that the kernels share; compiled once per instruction set, as kernels-inl.h is.

namespace pi::kernels::PI_ISA {
namespace {

// e^x to 2 ulp for |x| <= 87; range reduction and polynomial of Cephes' expf.
inline V exp(V x) {
  x = min(max(x, set1(-87.3f)), set1(88.3f));
  const V n = round(mul(x, set1(1.44269504088896341f)));
  V r = fma(n, set1(-0.693359375f), x);
  r = fma(n, set1(2.12194440e-4f), r);
  V p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  return mul(add(fma(p, mul(r, r), r), set1(1.0f)), pow2(n));
}

}  // namespace
}  // namespace pi::kernels::PI_ISA
