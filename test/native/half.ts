/** Slow and obvious conversions of 16-bit floats, for tests. */

/** Value of f16 bits, by the definition. */
export function fromHalf(bits: number): number {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 0x3ff;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent === 0 ? fraction * 2 ** -24 : (1024 + fraction) * 2 ** (exponent - 25));
}

/** Finite magnitudes in order; their index is their bits. */
const MAGNITUDES = Float64Array.from({ length: 0x7c00 }, (_, bits) => fromHalf(bits));

/** Bits of the nearest f16, ties to the even one, by searching all of them. */
export function toHalf(x: number): number {
  if (Number.isNaN(x)) return 0x7e00;
  const sign = x < 0 || Object.is(x, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(x);
  if (magnitude >= 65520) return sign | 0x7c00;
  let low = 0;
  let high = MAGNITUDES.length; // MAGNITUDES[low] <= magnitude < MAGNITUDES[high], which may be 65536
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (MAGNITUDES[middle]! <= magnitude) low = middle;
    else high = middle;
  }
  const above = (MAGNITUDES[high] ?? 65536) - magnitude;
  const below = magnitude - MAGNITUDES[low]!;
  return sign | (below < above || (below === above && low % 2 === 0) ? low : high);
}

/** Value of bf16 bits: the upper half of an f32. */
export function fromBfloat(bits: number): number {
  return new Float32Array(new Uint32Array([(bits << 16) >>> 0]).buffer)[0]!;
}

/** Bits of the nearest bf16, ties to the even one. */
export function toBfloat(x: number): number {
  const bits = new Uint32Array(new Float32Array([x]).buffer)[0]!;
  const below = bits >>> 16;
  if (Number.isNaN(x)) return below | 0x40;
  const rest = bits & 0xffff;
  return rest > 0x8000 || (rest === 0x8000 && below % 2 === 1) ? below + 1 : below;
}
