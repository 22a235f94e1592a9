import fc from "fast-check";
import { expect, test } from "vitest";
import { RecallCurve } from "../../train-predictor/curve.ts";

const N = 6;

/** What a threshold gives, counted naively. */
function measured(scores: number[][], contributions: number[][], threshold: number) {
  const cells = scores.flatMap((row, r) =>
    row.map((score, i) => ({ on: score >= threshold, c: contributions[r]![i]! })),
  );
  const count = (keep: (cell: { on: boolean; c: number }) => boolean) => cells.filter(keep).length;
  const active = count(({ c }) => c > 0);
  const hit = count(({ on, c }) => on && c > 0);
  const shares = contributions.map((row, r) => {
    const total = row.reduce((a, b) => a + b, 0);
    const kept = row.reduce((sum, c, i) => sum + (scores[r]![i]! >= threshold ? c : 0), 0);
    return total > 0 ? kept / total : 1;
  });
  return {
    recall: active > 0 ? hit / active : 1,
    weightedRecall: shares.reduce((a, b) => a + b, 0) / shares.length,
    precision: count(({ on }) => on) > 0 ? hit / count(({ on }) => on) : 1,
    trueSparsity: 1 - active / cells.length,
    predictedSparsity: 1 - count(({ on }) => on) / cells.length,
  };
}

const row = <T>(item: fc.Arbitrary<T>) => fc.array(item, { minLength: N, maxLength: N });
const score = fc.float({ min: -20, max: 20, noNaN: true }).map(Math.fround);
const contribution = fc.oneof(fc.constant(0), fc.integer({ min: 1, max: 255 }));
const layer = fc.array(fc.tuple(row(score), row(contribution)), { minLength: 1, maxLength: 12 });

function curveOf(rows: [number[], number[]][]): RecallCurve {
  const curve = new RecallCurve(N);
  const half = Math.ceil(rows.length / 2);
  for (const batch of [rows.slice(0, half), rows.slice(half)]) {
    curve.add(Float32Array.from(batch.flatMap(([s]) => s)), Uint8Array.from(batch.flatMap(([, c]) => c)));
  }
  return curve;
}

test("a point is what its threshold really gives, and reaches the recall it was asked for", () => {
  fc.assert(
    fc.property(layer, fc.double({ min: 0, max: 1, noNaN: true }), (rows, wanted) => {
      const { threshold, ...point } = curveOf(rows).at(wanted);
      const truth = measured(
        rows.map(([s]) => s),
        rows.map(([, c]) => c),
        threshold,
      );
      for (const [key, value] of Object.entries(truth)) expect(point[key as keyof typeof truth]).toBeCloseTo(value, 9);
      expect(point.weightedRecall).toBeGreaterThanOrEqual(wanted - 1e-8);
    }),
  );
});

test("no higher threshold would do, up to the width of a bin", () => {
  fc.assert(
    fc.property(layer, fc.double({ min: 0.01, max: 1, noNaN: true }), (rows, wanted) => {
      const { threshold, predictedSparsity } = curveOf(rows).at(wanted);
      if (predictedSparsity === 1) return;
      const higher = threshold + Math.max(Math.abs(threshold) / 64, 1e-30);
      const truth = measured(
        rows.map(([s]) => s),
        rows.map(([, c]) => c),
        higher,
      );
      expect(truth.weightedRecall).toBeLessThan(wanted);
    }),
  );
});

test("rows without an active neuron need nothing", () => {
  const point = curveOf([
    [
      [1, 2, 3, 4, 5, 6],
      [0, 0, 0, 0, 0, 0],
    ],
  ]).at(1);
  expect(point).toMatchObject({ recall: 1, weightedRecall: 1, precision: 1, trueSparsity: 1, predictedSparsity: 1 });
  expect(Number.isFinite(Math.fround(point.threshold))).toBe(true);
});

test("many points at once are those asked for one by one", () => {
  fc.assert(
    fc.property(layer, fc.array(fc.double({ min: 0, max: 1, noNaN: true })), (rows, recalls) => {
      const curve = curveOf(rows);
      const ascending = recalls.toSorted((a, b) => a - b);
      expect(curve.points(ascending)).toEqual(ascending.map((recall) => curve.at(recall)));
    }),
  );
});
