/** Models as placement sees them, from shapes alone: whose weights nobody needs. */
import type { Activations } from "../formats/activations.ts";
import { tensorBytes } from "../formats/dtypes.ts";
import { provenance } from "../formats/provenance.ts";
import { defaultKvType, kvPositionBytes } from "../model/kv-type.ts";
import type { Matrix } from "../model/row-prices.ts";
import { hotFirst, type LayerCosts, type ModelCosts } from "../place/costs.ts";

export interface Shape {
  name: string;
  nLayers: number;
  nNeurons: number;
  dim: number;
  kvHeads: number;
  headDim: number;
}

/** With gates, and a vocabulary of 32,000. */
export const SHAPES = {
  demo: { name: "demo 4x1536", nLayers: 4, nNeurons: 1536, dim: 256, kvHeads: 4, headDim: 64 },
  "7b": { name: "7B 32x11008", nLayers: 32, nNeurons: 11_008, dim: 4096, kvHeads: 32, headDim: 128 },
  "13b": { name: "13B 40x13824", nLayers: 40, nNeurons: 13_824, dim: 5120, kvHeads: 40, headDim: 128 },
  "70b": { name: "70B 80x28672", nLayers: 80, nNeurons: 28_672, dim: 8192, kvHeads: 8, headDim: 128 },
} as const satisfies Record<string, Shape>;

const VOCABULARY = 32_000;
/** Counted tokens. */
const TOKENS = 100_000;
/** Counts as `pi profile` leaves them, the neurons of a layer in another order than their frequency's. */
export function countsOf({ nLayers, nNeurons }: Shape, of: (layer: number, i: number) => number): Activations {
  const layers = Array.from({ length: nLayers }, (_, layer) => {
    const count = new BigUint64Array(nNeurons);
    for (let i = 0; i < nNeurons; i++) count[(i * 7919) % nNeurons] = BigInt(Math.round(TOKENS * of(layer, i)));
    return { count, magnitude: count, contribution: count };
  });
  const origin = provenance("profile", {}, {});
  return { layers, nNeurons, tokens: TOKENS, heldoutTokens: 0, sampleRate: 0, corpora: [], provenance: origin };
}

export interface CostsOptions {
  dtype?: "f16" | "q4_0";
  /** Tokens of KV cache, half of which a token attends to. */
  context?: number;
  /** Predictors that find every active neuron and call no other; `dense` has none, and reads all. */
  mode?: "predictor" | "dense";
  /** A predictor's share of its FFN; PowerInfer's take 9 %. */
  predictor?: number;
}

/** What a model weighs; no scratch. Predictors are stored as the weights are. */
export function costsOf(shape: Shape, counts: Activations, options: CostsOptions = {}): ModelCosts {
  const { dtype = "f16", context = 4096, mode = "predictor", predictor = 0.09 } = options;
  const { nNeurons, dim, kvHeads, headDim } = shape;
  const rows = (n: number, cols: number): Matrix => ({ type: dtype, rows: n, bytes: tensorBytes(dtype, [cols]) });
  const kvType = defaultKvType(dtype);
  const kv = kvPositionBytes(kvType, { nKvHeads: kvHeads, headDim });
  const projections = [rows(dim, dim), rows(2 * kvHeads * headDim, dim), rows(dim, dim)];
  const rank = 32 * Math.round((predictor * 3 * nNeurons * dim) / (nNeurons + dim) / 32);
  const predictorRows = mode === "dense" ? [] : [rows(rank, dim), rows(nNeurons, rank)];
  const bytes = (matrices: Matrix[]) => matrices.reduce((sum, matrix) => sum + matrix.rows * matrix.bytes, 0);
  const neuron = 3 * rows(1, dim).bytes;
  const layers = counts.layers.map((_, layer): LayerCosts => {
    const { order, frequency } = hotFirst(counts, layer);
    const read = mode === "dense" ? frequency.map(() => 1) : frequency;
    return {
      order,
      frequency,
      asked: read,
      used: read,
      neuron,
      neuronRows: Array<Matrix>(3).fill(rows(1, dim)),
      attention: bytes(projections),
      projections,
      kv: context * kv,
      kvRead: (context / 2) * kv,
      predictor: bytes(predictorRows),
      predictorRows,
      device: { neuron, attention: bytes(projections), predictor: bytes(predictorRows) },
    };
  });
  const head = rows(VOCABULARY, dim);
  return {
    mode,
    layers,
    dim,
    norms: { parallelResidual: false, sharedNorm: false },
    scratch: 0,
    lookups: bytes([head]),
    tiedHead: false,
    head: { bytes: bytes([head]), device: bytes([head]), matrix: head, shortlist: false },
    kv: { type: kvType, heads: kvHeads, queries: dim / headDim / kvHeads, headDim, tokens: context / 2 },
  };
}

/** With four digits a number, for people. */
export const rounded = (row: object): object =>
  Object.fromEntries(
    Object.entries(row).map(([key, x]) => [key, typeof x === "number" ? Number(x.toPrecision(4)) : (x as unknown)]),
  );
