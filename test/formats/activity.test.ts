import { describe, expect, test } from "vitest";
import { activityCurve, activityOf, parseActivity, type Activity, type ActivityCurve } from "../../formats/activity.ts";
import { provenance } from "../../formats/provenance.ts";
import { normals } from "../native/planted.ts";

const TOKENS = 1000;

/** Counts of some layers: a few hot neurons, many cold ones, some that never fire. */
function countsOf(nLayers: number, nNeurons: number): number[][] {
  const normal = normals(3);
  return Array.from({ length: nLayers }, () =>
    Array.from({ length: nNeurons }, () => Math.floor(TOKENS * Math.max(0, Math.min(1, normal() / 3)))),
  );
}

function activity(counts: number[][]): Activity {
  const layers = counts.map((row) => {
    const count = BigUint64Array.from(row, BigInt);
    return { count, magnitude: count, contribution: count };
  });
  const rest = { heldoutTokens: 0, sampleRate: 0, corpora: [], provenance: provenance("profile", {}, {}) };
  return activityOf({ layers, nNeurons: counts[0]!.length, tokens: TOKENS, ...rest });
}

/** What the curve says, the slow way. */
function expectCurve(curve: ActivityCurve, counts: number[]): void {
  const sorted = [...counts].sort((a, b) => b - a);
  const upTo = (rank: number) => sorted.slice(0, rank).reduce((sum, n) => sum + n, 0);
  expect(curve.activations).toEqual(curve.neurons.map(upTo));
  expect(curve.never).toBe(counts.filter((n) => n === 0).length);
  const total = upTo(counts.length);
  expect(upTo(curve.hot80)).toBeGreaterThanOrEqual(0.8 * total);
  if (total > 0) expect(upTo(curve.hot80 - 1)).toBeLessThan(0.8 * total);
}

describe("activity curves", () => {
  test.each([1, 2, 7, 40, 1000])("sum the counts of the hottest of %i neurons, by layer and of the model", (n) => {
    const counts = countsOf(3, n);
    const found = activity(counts);
    expect(found.tokens).toBe(TOKENS);
    found.layers.forEach((curve, layer) => expectCurve(curve, counts[layer]!));
    expectCurve(found.model, counts.flat());
    for (const { neurons } of [...found.layers, found.model]) expect(neurons).toEqual([...new Set(neurons)]);
    expect(found.model.neurons.at(-1)).toBe(3 * n);
  });

  test("have the same few points at any width, closest where neurons are hot", () => {
    const { neurons } = activityCurve(new Float64Array(28_672).fill(1));
    expect(neurons).toHaveLength(41);
    expect(neurons[1]!).toBeLessThan(28_672 / 1000);
    const steps = neurons.slice(1).map((rank, k) => rank - neurons[k]!);
    expect(steps).toEqual([...steps].sort((a, b) => a - b));
  });

  test("of neurons that never fire are flat", () => {
    expect(activityCurve(new Float64Array(3))).toEqual({
      neurons: [0, 1, 2, 3],
      activations: [0, 0, 0, 0],
      hot80: 0,
      never: 3,
    });
  });
});

describe("pi.activity", () => {
  const found = activity(countsOf(2, 50));
  const read = (text: string) => () => parseActivity(text, "x.pi", { nLayers: 2, nNeurons: 50 });

  test("is read as it was written", () => {
    expect(read(JSON.stringify(found))()).toEqual(found);
  });

  const layer = (change: Partial<ActivityCurve>) => ({
    ...found,
    layers: [found.layers[0], { ...found.layers[1], ...change }],
  });
  test.each([
    ["no JSON", "{", "x.pi: pi.activity: not JSON"],
    ["another number of layers", { ...found, layers: [] }, "layers: expected a list of 2, got a list of 0"],
    ["a model of another size", { ...found, model: found.layers[0] }, "model: expected as many ranks, from 0 to 100"],
    ["ranks without sums", layer({ activations: [0] }), "layer 1: expected as many ranks"],
    ["no list", layer({ neurons: 3 as never }), "neurons: expected a list of numbers, got 3"],
    ["half a neuron", layer({ neurons: [0, 0.5, 50], activations: [0, 1, 2] }), "as whole numbers"],
    ["ranks that go back", layer({ neurons: [0, 20, 10, 50], activations: [0, 9, 9, 9] }), "hot first"],
    ["sums that fall", layer({ neurons: [0, 20, 50], activations: [0, 9, 8] }), "hot first"],
    [
      "cold before hot",
      layer({ neurons: [0, 20, 50], activations: [0, 20, 80] }),
      "hot first, of at most 1 activations",
    ],
    [
      "more than every token",
      layer({ neurons: [0, 50], activations: [0, 51 * TOKENS] }),
      "of at most 1000 activations",
    ],
    ["more hot neurons than there are", layer({ hot80: 51 }), "hot80: expected a whole number from 0 to 50, got 51"],
  ])("is refused with %s", (_, value, message) => {
    const attempt = read(typeof value === "string" ? value : JSON.stringify(value));
    expect(attempt).toThrow(message);
    expect(attempt).toThrow(expect.objectContaining({ code: "E_FORMAT" }));
  });
});
