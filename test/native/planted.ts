/** Synthetic samples of a ReLU layer whose gate has low rank, so that a small predictor can find it. */
export interface Planted {
  dim: number;
  nNeurons: number;
  rows: number;
  /** f16 [rows, dim] */
  hidden: Uint16Array;
  /** u8 [rows, nNeurons], 0 idle, else 1-255 in proportion to the activation within the row. */
  contributions: Uint8Array;
}

/** Normal numbers from a seed (mulberry32 and Box-Muller). */
export function normals(seed: number): () => number {
  let state = seed;
  const uniform = () => {
    state = (state + 0x6d2b79f5) | 0;
    let z = Math.imul(state ^ (state >>> 15), 1 | state);
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** About one neuron in ten of every row is active; the gate's matrix has rank `rank`. */
export function planted(options: { dim: number; nNeurons: number; rank: number; rows: number; seed: number }): Planted {
  const { dim, nNeurons, rank, rows } = options;
  const normal = normals(options.seed);
  const matrix = (r: number, c: number) => Array.from({ length: r }, () => Array.from({ length: c }, normal));
  const dot = (a: readonly number[], b: readonly number[]) => a.reduce((sum, v, i) => sum + v * b[i]!, 0);
  const inner = matrix(rank, dim);
  const outer = matrix(nNeurons, rank);
  const hidden = new Uint16Array(rows * dim);
  const contributions = new Uint8Array(rows * nNeurons);
  for (let r = 0; r < rows; r++) {
    const bits = Array.from({ length: dim }, () => toF16(normal()));
    hidden.set(bits, r * dim);
    const x = bits.map(fromF16);
    const z = inner.map((row) => dot(row, x) / Math.sqrt(dim));
    const acts = outer.map((row) => Math.max(dot(row, z) / Math.sqrt(rank) - 1.2, 0));
    const high = Math.max(...acts, Number.MIN_VALUE);
    acts.forEach((a, i) => (contributions[r * nNeurons + i] = a > 0 ? Math.max(1, Math.round((255 * a) / high)) : 0));
  }
  return { dim, nNeurons, rows, hidden, contributions };
}

/** Value of f16 bits; finite values only. */
export function fromF16(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const magnitude = exponent === 0 ? fraction * 2 ** -24 : (1 + fraction / 1024) * 2 ** (exponent - 15);
  return bits & 0x8000 ? -magnitude : magnitude;
}

/** Bits of the f16 just below |x|, for |x| in the normal range. */
export function toF16(x: number): number {
  const magnitude = Math.min(Math.max(Math.abs(x), 2 ** -14), 65504);
  const exponent = Math.floor(Math.log2(magnitude));
  const fraction = Math.floor((magnitude / 2 ** exponent - 1) * 1024);
  return (x < 0 ? 0x8000 : 0) | ((exponent + 15) << 10) | fraction;
}
