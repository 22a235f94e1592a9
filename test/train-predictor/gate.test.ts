/** The gate with a model that exists on paper only: its divergence is a formula of the layers' misses. */
import { expect, test } from "vitest";
import { silentContext } from "../../io/progress.ts";
import { miss, type OperatingPoint } from "../../train-predictor/curve.ts";
import { passGate, type Layer, type Measure } from "../../train-predictor/gate.ts";

const POINTS: OperatingPoint[] = [...Array.from({ length: 200 }, (_, i) => 0.3 * 0.95 ** i), 0].map((missed, i) => ({
  weightedRecall: 1 - missed,
  predictedSparsity: 0.95 - 0.004 * i,
  trueSparsity: 0.96,
  threshold: -i,
  recall: 1 - missed,
  precision: 0.5,
}));

const layers = (count: number): Layer[] =>
  Array.from({ length: count }, () => ({
    points: POINTS,
    seconds: ({ predictedSparsity }) => 1 - predictedSparsity,
  }));

/** A model whose layer l adds weights[l] * miss^1.5 to the divergence, and the head `head`; the ratio follows it. */
function model(weights: readonly number[], head = 0) {
  let calls = 0;
  const measure: Measure = (points) => {
    calls++;
    const meanKl = head + points.reduce((sum, point, i) => sum + weights[i]! * miss(point) ** 1.5, 0);
    const weightedRecall = points.reduce((sum, point) => sum + point.weightedRecall, 0) / points.length;
    const ratio = { perplexityDense: 10, perplexity: 10 * (1 + meanKl), perplexityRatio: 1 + meanKl };
    return Promise.resolve({
      ...ratio,
      corpus: { sha256: "", tokens: 1 },
      meanKl,
      p99Kl: meanKl,
      top1Agreement: 1,
      weightedRecall,
    });
  };
  return { measure: () => measure, calls: () => calls };
}

const keep = <T>(given: readonly T[]) => Promise.resolve([...given]);
const missed = (points: readonly OperatingPoint[]) => points.reduce((sum, p) => sum + miss(p), 0) / points.length;

test("recall is held on average, and layers that matter little miss more", async () => {
  const { measure } = model([0.001, 0.001, 0.02]);
  const limits = { maxPerplexityRatio: 1.5, recall: 0.995 };
  const { points, quality } = await passGate(layers(3), limits, measure, keep, "m", silentContext);
  expect(quality.weightedRecall).toBeGreaterThanOrEqual(0.995);
  expect(missed(points)).toBeGreaterThan(0.9 * 0.005);
  expect(miss(points[2]!)).toBeLessThan(0.5 * miss(points[0]!));
});

test("the perplexity decides when it is the stricter limit, and little of it is left unused", async () => {
  const { measure } = model([3, 1]);
  const warnings: string[] = [];
  const context = { ...silentContext, warn: (text: string) => void warnings.push(text) };
  const limits = { maxPerplexityRatio: 1.0001, recall: 0.99 };
  const { quality } = await passGate(layers(2), limits, measure, keep, "m", context);
  expect(quality.perplexityRatio).toBeLessThanOrEqual(1.0001);
  expect(quality.perplexityRatio).toBeGreaterThan(1 + 0.0001 / 2);
  expect(warnings.length).toBeGreaterThan(0);
});

test("a perplexity that falls by mistake is as far from right as one that rises", async () => {
  const { measure } = model([-3, -1]);
  const limits = { maxPerplexityRatio: 1.0001, recall: 0.99 };
  const { quality } = await passGate(layers(2), limits, measure, keep, "m", silentContext);
  expect(quality.perplexityRatio).toBeGreaterThanOrEqual(1 / 1.0001);
  expect(quality.perplexityRatio).toBeLessThan(1);
});

test("what the head costs with every neuron predicted is not the predictors' doing", async () => {
  const { measure } = model([0.01, 0.01], 0.01);
  const warnings: string[] = [];
  const context = { ...silentContext, warn: (text: string) => void warnings.push(text) };
  const limits = { maxPerplexityRatio: 1.001, recall: 0.995 };
  const { quality } = await passGate(layers(2), limits, measure, keep, "m", context);
  expect(warnings[0]).toMatch(/perplexity ratio 1.01000 with no neuron missed/);
  expect(quality.perplexityRatio).toBeGreaterThan(1.01);
  expect(quality.perplexityRatio).toBeLessThanOrEqual(1.001 * 1.01);
});

test("a deep model is probed in groups", async () => {
  const { measure, calls } = model(Array.from({ length: 80 }, () => 0.001));
  const limits = { maxPerplexityRatio: 1.5, recall: 0.995 };
  await passGate(layers(80), limits, measure, keep, "m", silentContext);
  expect(calls()).toBeLessThan(30);
});

test("layers are sized anew before they are measured, and what cannot be held is refused", async () => {
  const asked: number[] = [];
  const resize = (given: readonly Layer[], points: readonly OperatingPoint[]) => {
    asked.push(points.length);
    return keep(given);
  };
  const { measure } = model([1, 1], 0);
  const never = { maxPerplexityRatio: 1, recall: 0.99 };
  const call = passGate(layers(2), never, measure, resize, "the model", silentContext);
  await expect(call).rejects.toThrow(/the model: expected a perplexity ratio within 1 of 1.00000 at 0.99, got/);
  expect(asked.length).toBeGreaterThan(2);
});
