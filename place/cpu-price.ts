import type { Cpu, CpuWork, ReadCosts, RowCost } from "../formats/hardware.ts";
import type { LayerCosts, Matrix, ModelCosts } from "./costs.ts";
import { DEFAULT_WORK } from "./default-work.ts";

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

/** As native/engine/head.h: of each 16 logits of the sketch one is computed exactly. */
const SHORTLIST = 1 / 16;
const SKETCH_BLOCK = { values: 32, bytes: 18 };

/** As native/engine/ffn.cc: neurons that a share of an FFN takes in a row. */
const SHARE_RUN = 16;

/** What rows cost in the memory that a model stays in. */
interface Reader {
  row(cost: RowCost, bytes: number): number;
  costs: ReadCosts;
}

/** Prices every part of a token, by what this CPU's loops take, or where nobody measured them by {@link DEFAULT_WORK}. */
export function priceOnCpu(costs: ModelCosts, cpu: Cpu): CpuPrices {
  const work = cpu.work ?? DEFAULT_WORK;
  const reader = readerFor(costs, cpu, work);
  const kv = kvSeconds(costs, reader);
  return {
    layers: costs.layers.map((layer) => ({
      attention: projectSeconds(layer.projections, reader) + kv,
      predictor: predictorSeconds(layer.predictorRows, reader),
      ...neuronSeconds(layer, costs, reader),
    })),
    head: headSeconds(costs, reader, work),
    fixed: fixedSeconds(costs, work),
  };
}

/** The last-level cache for a model of which a token reads no more than it holds, else main memory. */
function readerFor(costs: ModelCosts, cpu: Cpu, { cache, memory }: CpuWork): Reader {
  const cached = cache !== null && bytesRead(costs) <= cache.bytes;
  const { bandwidth } = cached ? cache : cpu;
  return {
    row: ({ seconds, share }, bytes) => seconds + bytes / (share * bandwidth),
    costs: cached ? cache : memory,
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

function projectSeconds(matrices: readonly Matrix[], { costs, row }: Reader): number {
  return matrices.reduce((sum, { type, rows, bytes }) => sum + rows * row(costs.rows[type].project, bytes), 0);
}

/** Kinds of one matrix read it in order. fc1 is a matrix read in order; of fc2 an FFN's shares read runs of rows from all over, each as one long row. */
function predictorSeconds([fc1, fc2]: readonly Matrix[], reader: Reader): number {
  if (!fc1 || !fc2) return projectSeconds(fc1 ? [fc1] : [], reader);
  const { costs, row } = reader;
  const { project, sparse } = costs.rows[fc2.type];
  const runs = fc2.rows / SHARE_RUN;
  return projectSeconds([fc1], reader) + runs * row(sparse, SHARE_RUN * fc2.bytes) + fc2.rows * project.seconds;
}

function kvSeconds({ kv }: ModelCosts, { costs }: Reader): number {
  const cost = costs.attention[kv.type];
  return kv.heads * (cost.headSeconds + kv.tokens * kv.headDim * (cost.readSeconds + kv.queries * cost.querySeconds));
}

/**
 * Rows picked from all over take longer than rows in order, but never longer than all rows: hot neurons lie side by side.
 * In mode exact the first row is read of every neuron.
 */
function neuronSeconds({ neuronRows, asked, used }: LayerCosts, { mode }: ModelCosts, { costs, row }: Reader) {
  const dense = neuronRows.map(({ type, bytes }) => row(costs.rows[type].dense, bytes));
  const sparse = neuronRows.map(({ type, bytes }) => row(costs.rows[type].sparse, bytes));
  const neuron = dense.reduce((sum, seconds) => sum + seconds, 0);
  if (mode === "dense") return { neuron, neurons: asked.map(() => neuron) };
  const expected = (p: number, part: number): number => Math.min(dense[part]!, p * sparse[part]!);
  const neurons = asked.map((p, i) => {
    const first = mode === "exact" ? dense[0]! : expected(p, 0);
    return dense.reduce((sum, _, part) => (part === 0 ? sum : sum + expected(used[i]!, part)), first);
  });
  return { neuron, neurons };
}

function headSeconds({ head }: ModelCosts, { costs, row }: Reader, { rankSeconds }: CpuWork): number {
  const { type, rows, bytes } = head.matrix;
  if (!head.shortlist) return rows * row(costs.rows[type].project, bytes);
  const sketch = (bytes / (SKETCH_BLOCK.values + 2)) * SKETCH_BLOCK.bytes;
  const exact = row(costs.rows[type].sparse, bytes);
  return rows * (row(costs.rows.q4_0.project, sketch) + rankSeconds + SHORTLIST * exact);
}

/** Parallel loops of a layer: q, k and v; attention; o; the FFN; and the predictor's first half. */
function fixedSeconds({ mode, layers, dim, head }: ModelCosts, work: CpuWork): number {
  const loops = mode === "predictor" ? 5 : 4;
  const scanned = mode === "dense" ? 0 : layers[0]!.frequency.length;
  const layer = loops * work.loopSeconds + dim * work.streamSeconds + scanned * work.scanSeconds;
  return work.tokenSeconds + layers.length * layer + head.matrix.rows * work.vocabularySeconds;
}
