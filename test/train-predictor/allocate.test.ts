import fc from "fast-check";
import { expect, test } from "vitest";
import { allocate, expectedLoss, type Candidates } from "../../train-predictor/allocate.ts";
import type { OperatingPoint } from "../../train-predictor/curve.ts";

const point = (weightedRecall: number, predictedSparsity: number): OperatingPoint => ({
  weightedRecall,
  predictedSparsity,
  threshold: 0,
  recall: weightedRecall,
  precision: 0.5,
  trueSparsity: 0.9,
});

/** A layer whose points cost more the less they miss; the last one misses nothing. */
const layer: fc.Arbitrary<Candidates> = fc
  .record({
    steps: fc.array(fc.tuple(fc.integer({ min: 1, max: 100 }), fc.integer({ min: 1, max: 100 })), {
      minLength: 1,
      maxLength: 4,
    }),
    sensitivity: fc.integer({ min: 1, max: 50 }),
  })
  .map(({ steps, sensitivity }) => {
    const misses = steps.reduce((sum, [less]) => sum + less, 0);
    let [missed, tested] = [misses, 0];
    const points = [point(1 - missed / 1000, 1)];
    for (const [less, more] of steps) {
      missed -= less;
      tested += more;
      points.push(point(1 - missed / 1000, 1 - tested / 1000));
    }
    return { points, sensitivity, seconds: ({ predictedSparsity }) => 1000 * (1 - predictedSparsity) };
  });

/** Every combination of points. */
function combinations(layers: readonly Candidates[]): OperatingPoint[][] {
  return layers.reduce<OperatingPoint[][]>(
    (all, { points }) => all.flatMap((chosen) => points.map((next) => [...chosen, next])),
    [[]],
  );
}

const bytesOf = (layers: readonly Candidates[], chosen: readonly OperatingPoint[]) =>
  chosen.reduce((sum, next, i) => sum + layers[i]!.seconds(next), 0);

const layers = fc.array(layer, { minLength: 1, maxLength: 4 });
const exponents = fc.constantFrom(1, 1.5, 2);

test("stays within the loss, and nothing that loses no more reads less", () => {
  fc.assert(
    fc.property(layers, exponents, fc.double({ min: 0, max: 10, noNaN: true }), (given, exponent, loss) => {
      const chosen = allocate(given, loss, exponent);
      const lost = expectedLoss(given, chosen, exponent);
      expect(lost).toBeLessThanOrEqual(loss + 1e-12);
      for (const other of combinations(given)) {
        if (expectedLoss(given, other, exponent) > lost * (1 + 1e-9)) continue;
        expect(bytesOf(given, chosen)).toBeLessThanOrEqual(bytesOf(given, other) + 1e-6);
      }
    }),
  );
});

test("a layer that matters more misses less, all else equal", () => {
  const points = Array.from({ length: 50 }, (_, i) => point(1 - 0.1 * 0.9 ** i, 0.9 - 0.01 * i));
  const make = (sensitivity: number): Candidates => ({
    points: [...points, point(1, 0)],
    sensitivity,
    seconds: ({ predictedSparsity }) => 1 - predictedSparsity,
  });
  const given = [make(1), make(20)];
  const uniform = expectedLoss(given, [points[20]!, points[20]!], 1);
  const [careless, careful] = allocate(given, uniform, 1);
  expect(careful!.weightedRecall).toBeGreaterThan(careless!.weightedRecall);
});
