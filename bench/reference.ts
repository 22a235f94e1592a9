/**
 * A plain forward pass in f32, for experiments on small models: every matrix product can be replaced. ReLU models with
 * one norm before the attention and one before the FFN; about a billion multiplications a second.
 */
import { check } from "../formats/errors.ts";
import { readSafetensors, readTensorBytes } from "../io/safetensors-file.ts";
import type { ModelConfig } from "../model/config.ts";
import { readModelFile } from "../model/model-file.ts";
import { native } from "../native/index.ts";

/** y [n, rows] = x [n, cols] · Wᵀ for the matrix `name` (without `.weight`), bias included. */
export type Product = (name: string, x: Float32Array) => Float32Array;

export class Reference {
  readonly config: ModelConfig;
  readonly tensors: Map<string, Float32Array>;

  constructor(config: ModelConfig, tensors: Map<string, Float32Array>) {
    this.config = config;
    this.tensors = tensors;
  }

  /** All tensors of the converted model in `dir`, decoded. */
  static async open(dir: string): Promise<Reference> {
    const { path, config, tensors } = await readModelFile(dir);
    check(config.activation.kind === "relu" && !config.parallelResidual && !config.ropeScaling, "E_FORMAT", () => {
      return `${path}: expected a ReLU model with sequential residuals and plain positions`;
    });
    const file = await readSafetensors(path);
    const decoded = new Map<string, Float32Array>();
    for (const [name, { dtype, shape }] of tensors) {
      const cols = shape.at(-1)!;
      const rows = shape.length === 1 ? 1 : shape[0]!;
      decoded.set(name, await native().dequantize(await readTensorBytes(file, name), dtype, rows, cols));
    }
    return new Reference(config, decoded);
  }

  weights(name: string): Float32Array {
    return this.tensors.get(`${name}.weight`)!;
  }

  readonly product: Product = (name, x) => {
    const cols = name.endsWith("attn.o") ? this.config.nHeads * this.config.headDim : this.config.dim;
    const weights = this.weights(name === "head" && this.config.tiedHead ? "embed" : name);
    return addBias(matmul(x, weights, cols), this.tensors.get(`${name}.bias`));
  };

  /** What the head sees: normed hidden states [n, dim] of a sequence that starts at position 0. */
  hidden(tokens: Int32Array, product: Product = this.product): Float32Array {
    const { dim, nLayers, position } = this.config;
    const h = gather(this.weights("embed"), tokens, dim);
    if (position === "learned") add(h, this.weights("pos_embed").subarray(0, h.length));
    for (let layer = 0; layer < nLayers; layer++) {
      const at = `layers.${layer}`;
      add(h, product(`${at}.attn.o`, this.#attention(at, this.#norm(`${at}.attn_norm`, h), product)));
      add(h, this.#ffn(at, this.#norm(`${at}.ffn_norm`, h), product));
    }
    return this.#norm("norm", h);
  }

  #norm(name: string, h: Float32Array): Float32Array {
    const { dim, norm, normEps } = this.config;
    const [weight, bias] = [this.weights(name), this.tensors.get(`${name}.bias`)];
    const out = new Float32Array(h.length);
    for (let r = 0; r < h.length; r += dim) {
      let [mean, squares] = [0, 0];
      for (let j = 0; j < dim; j++) mean += h[r + j]! / dim;
      if (norm === "rms") mean = 0;
      for (let j = 0; j < dim; j++) squares += (h[r + j]! - mean) ** 2;
      const scale = 1 / Math.sqrt(squares / dim + normEps);
      for (let j = 0; j < dim; j++) out[r + j] = (h[r + j]! - mean) * scale * weight[j]! + (bias?.[j] ?? 0);
    }
    return out;
  }

  #attention(at: string, x: Float32Array, product: Product): Float32Array {
    const { nHeads, nKvHeads, headDim, position, dim } = this.config;
    const [q, k, v] = ["q", "k", "v"].map((part) => product(`${at}.attn.${part}`, x)) as Float32Array[];
    const n = x.length / dim;
    if (position === "rope") for (const y of [q!, k!]) this.#rotate(y, y.length / n);
    const out = new Float32Array(n * nHeads * headDim);
    const scores = new Float64Array(n);
    for (let head = 0; head < nHeads; head++) {
      const kvHead = Math.floor((head * nKvHeads) / nHeads);
      const kv = (row: number) => (row * nKvHeads + kvHead) * headDim;
      for (let row = 0; row < n; row++) {
        const own = (row * nHeads + head) * headDim;
        let largest = -Infinity;
        for (let past = 0; past <= row; past++) {
          let score = 0;
          for (let j = 0; j < headDim; j++) score += q![own + j]! * k![kv(past) + j]!;
          scores[past] = score / Math.sqrt(headDim);
          largest = Math.max(largest, scores[past]!);
        }
        let sum = 0;
        for (let past = 0; past <= row; past++) sum += scores[past] = Math.exp(scores[past]! - largest);
        for (let past = 0; past <= row; past++) {
          const share = scores[past]! / sum;
          for (let j = 0; j < headDim; j++) out[own + j]! += share * v![kv(past) + j]!;
        }
      }
    }
    return out;
  }

  /** Half-split rotary embedding, in place. y [n, width], row r is position r. */
  #rotate(y: Float32Array, width: number): void {
    const { headDim, ropeTheta } = this.config;
    const half = headDim / 2;
    for (let start = 0; start < y.length; start += headDim) {
      const at = Math.floor(start / width);
      for (let j = 0; j < half; j++) {
        const angle = at * ropeTheta ** (-j / half);
        const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
        const [a, b] = [y[start + j]!, y[start + j + half]!];
        y[start + j] = a * cos - b * sin;
        y[start + j + half] = b * cos + a * sin;
      }
    }
  }

  #ffn(at: string, x: Float32Array, product: Product): Float32Array {
    const { dim, nNeurons, gated } = this.config;
    const act = product(`${at}.ffn.${gated ? "gate" : "up"}`, x);
    for (let i = 0; i < act.length; i++) act[i] = Math.max(0, act[i]!);
    if (gated) {
      const up = product(`${at}.ffn.up`, x);
      for (let i = 0; i < act.length; i++) act[i]! *= up[i]!;
    }
    const down = this.weights(`${at}.ffn.down_t`);
    const out = new Float32Array(x.length);
    for (let i = 0; i < act.length; i++) {
      const value = act[i]!;
      if (value === 0) continue;
      const [to, from] = [Math.floor(i / nNeurons) * dim, (i % nNeurons) * dim];
      for (let j = 0; j < dim; j++) out[to + j]! += value * down[from + j]!;
    }
    return addBias(out, this.tensors.get(`${at}.ffn.down.bias`));
  }
}

/** x [n, cols] · wᵀ, w [rows, cols]; four rows of w at a time. */
export function matmul(x: Float32Array, w: Float32Array, cols: number): Float32Array {
  const [n, rows] = [x.length / cols, w.length / cols];
  const out = new Float32Array(n * rows);
  for (let r = 0; r < n; r++) {
    const at = r * cols;
    let i = 0;
    for (; i + 4 <= rows; i += 4) {
      const from = i * cols;
      let [a, b, c, d] = [0, 0, 0, 0];
      for (let j = 0; j < cols; j++) {
        const value = x[at + j]!;
        a += value * w[from + j]!;
        b += value * w[from + cols + j]!;
        c += value * w[from + 2 * cols + j]!;
        d += value * w[from + 3 * cols + j]!;
      }
      const to = r * rows + i;
      out[to] = a;
      out[to + 1] = b;
      out[to + 2] = c;
      out[to + 3] = d;
    }
    for (; i < rows; i++) for (let j = 0; j < cols; j++) out[r * rows + i]! += x[at + j]! * w[i * cols + j]!;
  }
  return out;
}

function gather(table: Float32Array, rows: Int32Array, dim: number): Float32Array {
  const out = new Float32Array(rows.length * dim);
  rows.forEach((row, i) => out.set(table.subarray(row * dim, (row + 1) * dim), i * dim));
  return out;
}

function add(to: Float32Array, values: Float32Array): void {
  for (let i = 0; i < to.length; i++) to[i]! += values[i]!;
}

function addBias(y: Float32Array, bias: Float32Array | undefined): Float32Array {
  if (bias) for (let i = 0; i < y.length; i++) y[i]! += bias[i % bias.length]!;
  return y;
}
