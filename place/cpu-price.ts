import type { Cpu, CpuWork } from "../formats/hardware.ts";
import { DEFAULT_WORK } from "../model/default-work.ts";
import { RowPrices, type Matrix } from "../model/row-prices.ts";
import { EXACT_SHARE, sketchBytes } from "../model/shortlist.ts";
import type { LayerCosts, ModelCosts } from "./costs.ts";

/** Seconds of a token by part, all on the CPU. */
export interface CpuPrices {
  layers: {
    attention: number;
    predictor: number;
    /** One neuron read whole, and what is expected of each, hottest first: never growing. */
    neuron: number;
    neurons: Float64Array;
  }[];
  head: number;
  fixed: number;
}

/** Prices every part of a token, by what this CPU's loops take, or where nobody measured them by {@link DEFAULT_WORK}. */
export function priceOnCpu(costs: ModelCosts, cpu: Cpu): CpuPrices {
  const work = cpu.work ?? DEFAULT_WORK;
  const prices = new RowPrices(cpu, bytesRead(costs));
  const kv = kvSeconds(costs, prices);
  return {
    layers: costs.layers.map((layer) => ({
      attention: inOrder(layer.projections, prices) + kv,
      // All of a predictor's matrices are read whole.
      predictor: inOrder(layer.predictorRows, prices),
      ...neuronSeconds(layer, costs, prices),
    })),
    head: headSeconds(costs, prices, work),
    fixed: fixedSeconds(costs, work),
  };
}

/** Bytes that a token is expected to read, the head counted whole. */
export function bytesRead({ layers, head }: ModelCosts): number {
  const neurons = ({ neuronRows: [first, ...others], asked, used }: LayerCosts): number => {
    const rest = others.reduce((sum, { bytes }) => sum + bytes, 0);
    return asked.reduce((sum, p, i) => sum + p * first!.bytes + used[i]! * rest, 0);
  };
  return layers.reduce(
    (sum, layer) => sum + layer.attention + layer.kvRead + layer.predictor + neurons(layer),
    head.bytes,
  );
}

const inOrder = (matrices: readonly Matrix[], prices: RowPrices): number =>
  matrices.reduce((sum, matrix) => sum + prices.inOrder(matrix), 0);

function kvSeconds({ kv }: ModelCosts, { costs }: RowPrices): number {
  const cost = costs.attention[kv.type];
  return kv.heads * (cost.headSeconds + kv.tokens * kv.headDim * (cost.readSeconds + kv.queries * cost.querySeconds));
}

/** In an exact layer the first rows are read of all neurons, in their order. */
function neuronSeconds(
  { neuronRows, predictorRows, asked, used }: LayerCosts,
  { mode }: ModelCosts,
  prices: RowPrices,
) {
  const all = neuronRows.map((row) => prices.ofAll(row));
  const neuron = all.reduce((sum, seconds) => sum + seconds, 0);
  if (mode === "dense") return { neuron, neurons: asked.map(() => neuron) };
  const [first, ...others] = neuronRows;
  const exact = mode === "exact" || predictorRows.length === 0;
  const neurons = asked.map((p, i) => {
    const test = exact ? prices.inOrder(first!) : prices.expected(first!, p);
    return others.reduce((sum, row) => sum + prices.expected(row, used[i]!), test);
  });
  return { neuron, neurons };
}

function headSeconds({ head }: ModelCosts, prices: RowPrices, { rankSeconds }: CpuWork): number {
  const { rows, bytes } = head.matrix;
  if (!head.shortlist) return prices.inOrder(head.matrix);
  const sketch: Matrix = { type: "q4_0", rows, bytes: sketchBytes(bytes) };
  return prices.inOrder(sketch) + rows * (rankSeconds + EXACT_SHARE * prices.picked(head.matrix));
}

/**
 * Parallel loops of a layer: q, k and v; attention; o; the FFN's gate (or, without one, up) of all neurons, where it is read
 * of all; a predictor's matrices, each in one of its own; what the neurons do after that.
 */
function fixedSeconds({ mode, layers, dim, head }: ModelCosts, work: CpuWork): number {
  const seconds = layers.reduce((sum, { predictorRows, frequency }) => {
    const loops = 4 + (predictorRows.length || 1);
    const scanned = mode === "dense" ? 0 : frequency.length;
    return sum + loops * work.loopSeconds + dim * work.streamSeconds + scanned * work.scanSeconds;
  }, 0);
  return work.tokenSeconds + seconds + head.matrix.rows * work.vocabularySeconds;
}
