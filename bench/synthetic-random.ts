/** Seeded normal noise, and the frequencies with which planted neurons fire. */
import { createHash } from "node:crypto";

/** The distribution function of the standard normal, summed over a grid from -REACH to REACH. */
const REACH = 6;
const STEP = 1 / 256;
const CUMULATIVE = cumulative();

function cumulative(): Float64Array {
  const sums = new Float64Array((2 * REACH) / STEP + 1);
  for (let i = 1; i < sums.length; i++) sums[i] = sums[i - 1]! + Math.exp(-(((i - 0.5) * STEP - REACH) ** 2) / 2);
  return sums.map((sum) => sum / sums.at(-1)!);
}

/** The value below which a standard normal falls with probability `p`, 0 < p < 1. */
export function normalQuantile(p: number): number {
  let low = 0;
  let high = CUMULATIVE.length - 1; // CUMULATIVE[low] <= p < CUMULATIVE[high]
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (CUMULATIVE[middle]! <= p) low = middle;
    else high = middle;
  }
  const [below, above] = [CUMULATIVE[low]!, CUMULATIVE[high]!];
  return (low + (p - below) / (above - below)) * STEP - REACH;
}

/** A standard normal is drawn as one of its 4096 quantiles: a shift and a look-up. */
const QUANTILES = Float32Array.from({ length: 4096 }, (_, i) => normalQuantile((i + 0.5) / 4096));

/** A stream of random numbers of its own for every (seed, name). */
export class Noise {
  #state: number;

  constructor(seed: number, name: string) {
    // Xorshift leaves every state but 0.
    this.#state = createHash("sha256").update(`${seed}:${name}`).digest().readInt32LE() | 1;
  }

  /** Normal numbers of standard deviation `scale` into `out[begin, end)`. */
  normal(out: Float32Array, begin: number, end: number, scale: number): void {
    let state = this.#state;
    for (let i = begin; i < end; i++) {
      state ^= state << 13;
      state ^= state >>> 17;
      state ^= state << 5;
      out[i] = scale * QUANTILES[state >>> 20]!;
    }
    this.#state = state;
  }

  /** The values of `values` in random order. */
  shuffle(values: Float64Array): Float64Array {
    const keys = new Float32Array(values.length);
    this.normal(keys, 0, keys.length, 1);
    const order = Array.from(keys.keys()).sort((a, b) => keys[a]! - keys[b]!);
    return Float64Array.from(order, (i) => values[i]!);
  }
}

/** What the hottest neurons are limited to. */
const HOTTEST = 0.98;

/** Activation frequencies of `n` neurons, hottest first: a power law of the rank with exponent `-skew`, whose mean is `active`. */
export function frequencies(n: number, active: number, skew: number): Float64Array {
  const at = (scale: number) =>
    Float64Array.from({ length: n }, (_, rank) => Math.min(HOTTEST, scale * (rank + 1) ** -skew));
  const mean = (values: Float64Array) => values.reduce((sum, value) => sum + value, 0) / n;
  let low = 0;
  let high = HOTTEST * n ** skew; // at(high) is HOTTEST throughout
  for (let i = 0; i < 50; i++) {
    const middle = (low + high) / 2;
    if (mean(at(middle)) < active) low = middle;
    else high = middle;
  }
  return at(high);
}
