import { describe, expect, it } from "vitest";
import type { CpuWork, ReadCosts } from "../../formats/hardware.ts";
import type { Matrix } from "../../model/row-prices.ts";
import type { LayerCosts, ModelCosts } from "../../place/costs.ts";
import { priceOnCpu } from "../../place/cpu-price.ts";
import { DEFAULT_WORK } from "../../model/default-work.ts";
import { rowCost } from "../../model/measure-cpu.ts";
import { BANDWIDTH_ONLY, costsOfShare } from "./ideal-work.ts";

const N = 4;
const matrix = (rows: number, bytes: number, type: Matrix["type"] = "q8_0"): Matrix => ({ type, rows, bytes });

const LAYER: LayerCosts = {
  order: Int32Array.of(0, 1, 2, 3),
  frequency: Float64Array.of(1, 0.5, 0.1, 0),
  neuron: 3000,
  neuronRows: [matrix(1, 1000), matrix(1, 1000), matrix(1, 1000)],
  asked: Float64Array.of(1, 0.6, 0.2, 0.1),
  used: Float64Array.of(1, 0.5, 0.1, 0),
  attention: 0,
  projections: [matrix(10, 100), matrix(20, 200)],
  kv: 0,
  kvRead: 0,
  predictor: 50,
  predictorRows: [matrix(5, 10), matrix(32, 10)],
  device: { neuron: 3000, attention: 0, predictor: 50 },
};

const COSTS: ModelCosts = {
  mode: "predictor",
  layers: [LAYER],
  head: { bytes: 34_000, device: 34_000, matrix: matrix(1000, 34), shortlist: true },
  kv: { type: "f16", heads: 2, queries: 4, headDim: 8, tokens: 100 },
  dim: 64,
  norms: { parallelResidual: false, sharedNorm: false },
  scratch: 0,
  lookups: 0,
  tiedHead: false,
};

/** Rows in order reach all of the bandwidth, rows of all neurons half of it, picked ones a fifth. */
const SLOW: ReadCosts = {
  ...costsOfShare(1),
  rows: {
    ...costsOfShare(1).rows,
    q8_0: {
      project: { seconds: 1, share: 1 },
      dense: { seconds: 2, share: 0.5 },
      sparse: { seconds: 4, share: 0.2 },
    },
  },
};
const WORK: CpuWork = { ...BANDWIDTH_ONLY, memory: SLOW };
const priced = (change: Partial<ModelCosts>, work = WORK) =>
  priceOnCpu({ ...COSTS, ...change }, { bandwidth: 1000, work });

describe("priceOnCpu", () => {
  it("prices rows in order by their own cost and their bytes", () => {
    const { attention, predictor } = priced({}).layers[0]!;
    expect(attention).toBeCloseTo(10 * (1 + 0.1) + 20 * (1 + 0.2), 12);
    expect(predictor).toBeCloseTo(5 * (1 + 0.01) + 32 * (1 + 0.01), 12);
  });

  it("prices rows of signs as measured, or as rows in four bits where they were not", () => {
    const signs = [{ ...LAYER, predictorRows: [matrix(32, 10, "bit")] }];
    const four = { ...SLOW.rows, q4_0: { ...SLOW.rows.q4_0, project: { seconds: 7, share: 1 } } };
    const predictor = (memory: ReadCosts): number =>
      priced({ layers: signs }, { ...WORK, memory }).layers[0]!.predictor;
    expect(predictor({ ...SLOW, rows: four })).toBeCloseTo(32 * 7.01, 9);
    expect(predictor({ ...SLOW, rows: four, signs: { seconds: 2, share: 0.5 } })).toBeCloseTo(32 * 2.02, 9);
  });

  it("prices picked rows by how often they are read, and never above all rows", () => {
    const dense = 2 + 2;
    const sparse = 4 + 5;
    const row = (p: number): number => Math.min(dense, p * sparse);
    const { neuron, neurons } = priced({}).layers[0]!;
    expect(neuron).toBeCloseTo(3 * dense, 12);
    for (let i = 0; i < N; i++) expect(neurons[i]).toBeCloseTo(row(LAYER.asked[i]!) + 2 * row(LAYER.used[i]!), 12);
    const exact = priced({ mode: "exact" }).layers[0]!;
    for (let i = 0; i < N; i++) expect(exact.neurons[i]).toBeCloseTo(1 + 1 + 2 * row(LAYER.used[i]!), 12);
    expect([...priced({ mode: "dense" }).layers[0]!.neurons]).toEqual(Array(N).fill(neuron));
  });

  it("prices the head by its sketch and one exact row in ten, or whole", () => {
    const whole = priced({ head: { ...COSTS.head, shortlist: false } });
    expect(whole.head).toBeCloseTo(1000 * (1 + 0.034), 9);
    // 32 values of 18 bytes a block instead of 34; the sketch's own type costs bandwidth alone here.
    const listed = priced({}, { ...WORK, rankSeconds: 3 });
    expect(listed.head).toBeCloseTo(1000 * (0.018 + 3 + (4 + 0.034 / 0.2) / 10), 9);
  });

  it("prices keys and values by head, position and the query heads that share them", () => {
    const attention = { f16: { headSeconds: 5, readSeconds: 0.01, querySeconds: 0.001 } };
    const memory = { ...SLOW, attention: { ...SLOW.attention, ...attention } };
    const difference = priced({}, { ...WORK, memory }).layers[0]!.attention - priced({}).layers[0]!.attention;
    expect(difference).toBeCloseTo(2 * (5 + 100 * 8 * (0.01 + 4 * 0.001)), 9);
  });

  it("adds what every token, layer, loop and logit costs", () => {
    const fixed = { tokenSeconds: 1, loopSeconds: 10, streamSeconds: 100, scanSeconds: 5, vocabularySeconds: 1000 };
    const total = (change: Partial<ModelCosts>): number => priced(change, { ...WORK, ...fixed }).fixed;
    const rest = (layers: number): number => 1 + layers * 64 * 100 + 1000 * 1000;
    expect(total({})).toBe(rest(1) + 6 * 10 + N * 5);
    // One matrix of a predictor is one loop, and so are all gates of a layer without.
    const one = { ...LAYER, predictorRows: LAYER.predictorRows.slice(1) };
    const none = { ...LAYER, predictorRows: [] };
    expect(total({ layers: [one, none] })).toBe(rest(2) + 2 * (5 * 10 + N * 5));
    expect(total({ mode: "dense", layers: [none, none] })).toBe(rest(2) + 2 * 5 * 10);
  });

  it("reads a small model from the cache, as fast as that is", () => {
    const cache = { ...costsOfShare(1), bytes: 2 ** 20, bandwidth: 10_000 };
    const { attention } = priced({}, { ...WORK, cache }).layers[0]!;
    expect(attention).toBeCloseTo((10 * 100 + 20 * 200) / 10_000, 12);
    const small = { ...WORK, cache: { ...cache, bytes: 100 } };
    expect(priced({}, small)).toEqual(priced({}));
  });

  it("takes documented defaults where nothing was measured", () => {
    expect(priceOnCpu(COSTS, { bandwidth: 5e10 })).toEqual(priceOnCpu(COSTS, { bandwidth: 5e10, work: DEFAULT_WORK }));
  });
});

describe("rowCost", () => {
  it("is the line through two rows", () => {
    const { seconds, share } = rowCost({ bytes: 100, seconds: 3 }, { bytes: 1000, seconds: 12 }, 200);
    expect(seconds).toBeCloseTo(2, 12);
    expect(share).toBeCloseTo(1 / (0.01 * 200), 12);
  });

  it("counts bytes alone where noise makes the longer row cheaper, or the fixed cost negative", () => {
    expect(rowCost({ bytes: 100, seconds: 3 }, { bytes: 1000, seconds: 2 }, 200)).toEqual({ seconds: 0, share: 2.5 });
    expect(rowCost({ bytes: 100, seconds: 0.1 }, { bytes: 1000, seconds: 10 }, 200)).toEqual({
      seconds: 0,
      share: 0.5,
    });
  });
});
