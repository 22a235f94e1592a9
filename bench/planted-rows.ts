/** Training rows of a ReLU layer whose gate has a low rank, of any size; made in seconds, by sparse products. */

/** Rank of the gate, and inputs that each of its directions looks at. */
const RANK = 32;
const LOOKS = 16;

/** Directions that a neuron's gate mixes, and how far it must be pushed to fire: about one in ten does. */
const MIXES = 4;
const PUSH = 1.28 * Math.sqrt(MIXES);

/** f16 [rows, dim] inputs, u8 [rows, nNeurons] contributions as in samples. */
export function plantedRows(dim: number, nNeurons: number, rows: number) {
  const random = uniform(1);
  const normal = () => Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
  const pick = (count: number, below: number) => Int32Array.from({ length: count }, () => Math.floor(random() * below));
  const looks = pick(RANK * LOOKS, dim);
  const mixes = pick(nNeurons * MIXES, RANK);
  const signs = Float64Array.from({ length: nNeurons * MIXES }, () => (random() < 0.5 ? -1 : 1));
  const hidden = new Uint16Array(rows * dim);
  const contributions = new Uint8Array(rows * nNeurons);
  const input = new Float64Array(dim);
  for (let r = 0; r < rows; r++) {
    for (let i = 0; i < dim; i++) {
      input[i] = normal();
      hidden[r * dim + i] = toHalf(input[i]!);
    }
    const signal = Float64Array.from({ length: RANK }, (_, k) => {
      let sum = 0;
      for (let j = k * LOOKS; j < (k + 1) * LOOKS; j++) sum += input[looks[j]!]!;
      return sum / Math.sqrt(LOOKS);
    });
    for (let n = 0; n < nNeurons; n++) {
      let gate = -PUSH;
      for (let j = n * MIXES; j < (n + 1) * MIXES; j++) gate += signs[j]! * signal[mixes[j]!]!;
      if (gate > 0) contributions[r * nNeurons + n] = Math.min(255, Math.max(1, Math.round(60 * gate)));
    }
  }
  return { hidden, contributions };
}

/** mulberry32. */
function uniform(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let z = Math.imul(state ^ (state >>> 15), 1 | state);
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
    return ((z ^ (z >>> 14)) >>> 0) / 2 ** 32;
  };
}

const scratch = new DataView(new ArrayBuffer(4));

/** Bits of the f16 nearest to zero from `value`, which must be a normal f16 or flush to zero. */
function toHalf(value: number): number {
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  const exponent = ((bits >>> 23) & 0xff) - 112;
  return exponent <= 0 ? 0 : ((bits >>> 16) & 0x8000) | (exponent << 10) | ((bits >>> 13) & 0x3ff);
}
