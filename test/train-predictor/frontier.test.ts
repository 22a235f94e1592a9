import { expect, test } from "vitest";
import type { PredictorKind } from "../../formats/predictors.ts";
import type { OperatingPoint } from "../../train-predictor/curve.ts";
import { choosable, frontier, type Candidate } from "../../train-predictor/frontier.ts";

/** `costs` in seconds per point, by weighted recall; bytes say the opposite, and nothing. */
function candidate(kind: PredictorKind, costs: Record<number, number>, allowed = true): Candidate {
  const rates = { threshold: 0, recall: 0, precision: 0, trueSparsity: 0, predictedSparsity: 0 };
  const points = Object.keys(costs)
    .map(Number)
    .sort((a, b) => a - b)
    .map((weightedRecall): OperatingPoint => Object.assign({ weightedRecall }, rates));
  const finished = { kind, rank: 0, bytes: 0, points, tensors: {} };
  const cost = ({ weightedRecall }: OperatingPoint) => {
    return { bytes: -costs[weightedRecall]!, seconds: costs[weightedRecall]! };
  };
  return { key: kind, recall: 0.995, finished, allowed, cost };
}

const list = (candidates: Candidate[]) => {
  const { points, owner } = frontier(candidates);
  return points.map((point) => [owner(point).finished.kind, point.weightedRecall, owner(point).cost(point).seconds]);
};

test("keeps what no other point beats, ascending", () => {
  const exact = candidate("exact", { 1: 100 });
  const sign = candidate("sign", { 0.9: 30, 0.95: 95, 1: 140 });
  const mlp = candidate("mlp", { 0.9: 40, 0.95: 50, 0.99: 60, 1: 120 });
  expect(list([exact, sign, mlp])).toEqual([
    ["sign", 0.9, 30],
    ["mlp", 0.95, 50],
    ["mlp", 0.99, 60],
    ["exact", 1, 100],
  ]);
});

test("of equals the simpler stays", () => {
  const sign = candidate("sign", { 0.9: 10, 1: 20 });
  const mlp = candidate("mlp", { 0.9: 10, 1: 20 });
  expect(list([sign, mlp]).map(([kind]) => kind)).toEqual(["sign", "sign"]);
});

test("agrees with trying all pairs, on random curves", () => {
  let state = 1;
  const random = () => (state = (state * 48271) % 2147483647) / 2147483647;
  for (let round = 0; round < 50; round++) {
    const kinds = ["exact", "sign", "lowbit", "svd"] as const;
    const candidates = kinds.map((kind) => {
      const costs: [number, number][] = Array.from({ length: 6 }, () => [
        Math.ceil(10 * random()) / 10,
        Math.ceil(20 * random()),
      ]);
      return candidate(kind, Object.fromEntries(costs) as Record<number, number>);
    });
    const all = candidates.flatMap((c) =>
      c.finished.points.map((p) => ({ recall: p.weightedRecall, seconds: c.cost(p).seconds })),
    );
    const beaten = (a: { recall: number; seconds: number }) =>
      all.some((b) => b.recall >= a.recall && b.seconds <= a.seconds && (b.recall > a.recall || b.seconds < a.seconds));
    const expected = [...new Set(all.filter((a) => !beaten(a)).map(({ recall }) => recall))].sort((a, b) => a - b);
    expect(frontier(candidates).points.map(({ weightedRecall }) => weightedRecall)).toEqual(expected);
  }
});

test("what is too large is left out, unless nothing else is there", () => {
  const [large, small] = [candidate("mlp", { 1: 1 }, false), candidate("exact", { 1: 2 })];
  expect(choosable([large, small])).toEqual([small]);
  expect(choosable([large])).toEqual([large]);
});
