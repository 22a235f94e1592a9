import { fromHalf, toHalf } from "./half.ts";

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
    const bits = Array.from({ length: dim }, () => toHalf(normal()));
    hidden.set(bits, r * dim);
    const x = bits.map(fromHalf);
    const z = inner.map((row) => dot(row, x) / Math.sqrt(dim));
    const acts = outer.map((row) => Math.max(dot(row, z) / Math.sqrt(rank) - 1.2, 0));
    const high = Math.max(...acts, Number.MIN_VALUE);
    acts.forEach((a, i) => (contributions[r * nNeurons + i] = a > 0 ? Math.max(1, Math.round((255 * a) / high)) : 0));
  }
  return { dim, nNeurons, rows, hidden, contributions };
}
