import { describe, expect, test } from "vitest";
import type { CpuWork, ReadCosts } from "../../formats/hardware.ts";
import { FfnPrices, neuronRows } from "../../train-predictor/ffn-prices.ts";
import { BANDWIDTH_ONLY, costsOfShare } from "../place/ideal-work.ts";

const SHAPE = { dim: 64, nNeurons: 100 };
const ROW = 68; // bytes of 64 values in q8_0
const POINT = { recall: 0.5, trueSparsity: 0.8, predictedSparsity: 0.7 };

const ideal = costsOfShare(1);
const COSTS: ReadCosts = {
  ...ideal,
  rows: {
    ...ideal.rows,
    q8_0: { project: { seconds: 1, share: 1 }, dense: { seconds: 2, share: 1 }, sparse: { seconds: 5, share: 0.5 } },
    f16: { ...ideal.rows.f16, project: { seconds: 0.5, share: 1 } },
  },
  signs: { seconds: 0.25, share: 1 },
};
const WORK: CpuWork = { ...BANDWIDTH_ONLY, memory: COSTS, loopSeconds: 1000 };
const BANDWIDTH = 1e4;

const pricesOf = (gate: boolean, work = WORK, modelBytes = 1e9) =>
  new FfnPrices(
    SHAPE,
    neuronRows(SHAPE.dim, { ...(gate && { gate: "q8_0" }), up: "q8_0", down: "q8_0" }),
    { bandwidth: BANDWIDTH, work },
    modelBytes,
  );
const FREE = { bytes: 0, seconds: 0 };

describe("a token in a layer's FFN", () => {
  test("computes all neurons, or those that are wanted, as often as they are", () => {
    const all = 2 + ROW / BANDWIDTH;
    const picked = 5 + ROW / (0.5 * BANDWIDTH);
    const dense = pricesOf(true).dense();
    expect(dense.bytes).toBe(100 * 3 * ROW);
    expect(dense.seconds).toBeCloseTo(100 * 3 * all, 9);
    // Three in ten are tested, of which one fires.
    const { bytes, seconds } = pricesOf(true).at(FREE, POINT);
    expect(bytes).toBeCloseTo(100 * (0.3 + 2 * 0.1) * ROW, 9);
    expect(seconds).toBeCloseTo(100 * (0.3 * picked + 2 * 0.1 * picked), 9);
    expect(pricesOf(false).at(FREE, POINT).seconds).toBeCloseTo(100 * (0.3 * picked + 0.1 * picked), 9);
    // Picking costs no more than reading all, and testing all is reading gates in their order.
    const many = { recall: 1, trueSparsity: 0.9, predictedSparsity: 0.1 };
    expect(pricesOf(true).at(FREE, many).seconds).toBeCloseTo(100 * (all + 2 * 0.1 * picked), 9);
    const every = { ...many, predictedSparsity: 0 };
    expect(pricesOf(true).at(FREE, every).seconds).toBeCloseTo(100 * (1 + ROW / BANDWIDTH + 2 * 0.1 * picked), 9);
  });

  test("reads the predictor's matrices in order, each in a loop of its own", () => {
    const seconds = (
      kind: "exact" | "sign" | "lowbit" | "svd",
      rank: number,
      types: Record<string, "q8_0" | "f16">,
    ) => {
      const tensors = Object.fromEntries(Object.entries(types).map(([name, dtype]) => [name, { dtype }]));
      return pricesOf(true).predictor({ kind, rank, bytes: 7, tensors });
    };
    expect(seconds("exact", 0, {})).toEqual({ bytes: 7, seconds: 1000 });
    const svd = seconds("svd", 32, { "v.weight": "f16", "u.weight": "q8_0", "u.bias": "f16" });
    expect(svd.seconds).toBeCloseTo(2000 + 32 * (0.5 + 128 / BANDWIDTH) + 100 * (1 + 34 / BANDWIDTH), 9);
    const lowbit = seconds("lowbit", 0, { "gate.weight": "q8_0", "gate.bias": "f16" });
    expect(lowbit.seconds).toBeCloseTo(1000 + 100 * (1 + ROW / BANDWIDTH), 9);
    const sign = pricesOf(true).predictor({
      kind: "sign",
      rank: 0,
      bytes: 7,
      tensors: { "signs.weight": { dtype: "bit" } },
    });
    expect(sign.seconds).toBeCloseTo(1000 + 100 * (0.25 + 8 / BANDWIDTH), 9);
  });

  test("is read from the cache where the model stays there", () => {
    const cache = { ...ideal, bytes: 1000, bandwidth: 10 * BANDWIDTH };
    const seconds = (modelBytes: number) => pricesOf(true, { ...WORK, cache }, modelBytes).dense().seconds;
    expect(seconds(1000)).toBeCloseTo((100 * 3 * ROW) / (10 * BANDWIDTH), 9);
    expect(seconds(1001)).toBeCloseTo(100 * 3 * (2 + ROW / BANDWIDTH), 9);
  });
});
