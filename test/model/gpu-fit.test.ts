import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { activityCurve, type Activity } from "../../formats/activity.ts";
import {
  allOnGpu,
  fitSteps,
  leastSplit,
  placedOnGpu,
  splitOfSteps,
  stepsOf,
  type GpuSplit,
  type Known,
} from "../../model/gpu-fit.ts";
import { sumParts, type PartBytes } from "../../model/gpu-memory.ts";

const N = 1000;
const TOKENS = 10_000;
const CONTEXT = 5e5;
const HARDWARE = {
  cpu: { bandwidth: 50e9 },
  gpu: { name: "test GPU", vramBytes: 2 ** 34, bandwidth: 1000e9, reservedBytes: 0, launchSeconds: 1e-7 },
  link: { bandwidth: 25e9, syncSeconds: 1e-6 },
};

/** Layers whose neurons fire with frequency (rank + 1)^-skew. */
function known(skews: readonly number[], change: Partial<Known> = {}): Known {
  const layers = skews.map((skew) =>
    activityCurve(Float64Array.from({ length: N }, (_, i) => Math.round(TOKENS * (i + 1) ** -skew))),
  );
  const activity: Activity = { tokens: TOKENS, layers, model: layers[0]! };
  const bytes = { neuron: 6144, attention: 4e6, kv: 1e6, predictor: 500_000 };
  const parts: PartBytes = { layers: skews.map(() => bytes), head: 2e6, scratch: 1e6 };
  return { parts, nNeurons: N, activity, mode: "predictor", hardware: HARDWARE, ...change };
}

const SKEWS = [0.3, 0.9, 0.5];
const total = (parts: PartBytes) => (split: GpuSplit) => sumParts(split, parts, CONTEXT).total;

describe("stepsOf", () => {
  it("leads to the split, densest first, each layer's FFN in order and with its predictor", () => {
    const given = known(SKEWS);
    const split = allOnGpu(given.parts, N);
    const steps = stepsOf(split, given);
    expect(splitOfSteps(steps, SKEWS.length)).toEqual(split);
    for (let i = 1; i < steps.length; i++) {
      expect(steps[i]!.value / steps[i]!.size).toBeLessThanOrEqual(steps[i - 1]!.value / steps[i - 1]!.size);
    }
    for (const layer of SKEWS.keys()) {
      const neurons = steps.filter((step) => step.layer === layer && step.part === "ffn");
      expect(neurons.map((step) => step.neurons)).toEqual(neurons.map((step) => step.neurons).sort((a, b) => a - b));
      expect(neurons.every(({ predictor }) => predictor)).toBe(true);
    }
    const size = steps.reduce((sum, step) => sum + step.size, 0);
    expect(size + 1e6 + CONTEXT).toBe(total(given.parts)(split));
  });

  it("offers a predictor and the first neurons as one where these are worth more per byte", () => {
    const parts = { ...known(SKEWS).parts };
    // Reading so small a predictor elsewhere saves less than its kernels cost.
    parts.layers = Array.from(SKEWS, () => Object.assign({}, parts.layers[0], { predictor: 1000 }));
    const steps = stepsOf(allOnGpu(parts, N), known(SKEWS, { parts }));
    expect(steps.filter(({ part, neurons }) => part === "ffn" && neurons === 0)).toEqual([]);
  });

  it("knows what is read whatever fires: everything of dense models, gates without predictors", () => {
    const { predictor: _, ...others } = known(SKEWS).parts.layers[0]!;
    const noPredictors = [{ ...others, predictor: 0 }];
    const parts = { ...known(SKEWS).parts, layers: noPredictors };
    const last = (mode: Known["mode"]) => {
      const steps = stepsOf(allOnGpu(parts, N), known([0.9], { mode, parts }));
      const { size, value } = steps.findLast(({ part }) => part === "ffn")!;
      return value / size;
    };
    // Less two kernels: 0.2 µs of what a byte is read faster.
    expect(last("dense")).toBeCloseTo(1 - 2e-7 / (1 / 50e9 - 1 / 1000e9) / (N * 6144), 9);
    expect(last("exact")).toBeCloseTo((1 + (2 * 20) / TOKENS) / 3, 1);
  });

  it("charges an FFN an exchange where attention is not on the GPU, and attention none", () => {
    const given = known([0.9]);
    const value = (attention: boolean, part: "attention" | "ffn"): number =>
      stepsOf({ layers: [{ neurons: N, predictor: true, attention }], head: false }, given)
        .filter((step) => step.part === part)
        .reduce((sum, step) => sum + step.value, 0);
    const microsecond = 1e-6 / (1 / 50e9 - 1 / 1000e9);
    expect(value(true, "ffn") - value(false, "ffn")).toBeCloseTo(microsecond, 3);
    expect(value(true, "attention")).toBeCloseTo(4e6 + 1e6 / 2 - 0.3 * microsecond, 3);
  });
});

describe("fitSteps", () => {
  it("keeps all that fits, never exceeds the budget and has predictors wherever neurons are", () => {
    const given = known(SKEWS);
    const all = allOnGpu(given.parts, N);
    const steps = stepsOf(all, given);
    const count = total(given.parts);
    const value = (split: GpuSplit): number => stepsOf(split, given).reduce((sum, step) => sum + step.value, 0);
    fc.assert(
      fc.property(
        fc.double({ min: 0, max: 1.1, noNaN: true }),
        fc.double({ min: 0, max: 1.1, noNaN: true }),
        (a, b) => {
          const budgets = [Math.min(a, b), Math.max(a, b)].map((share) => Math.floor(share * count(all)));
          const [less, more] = budgets.map((budget) => fitSteps(steps, SKEWS.length, budget, count));
          for (const [i, split] of [less!, more!].entries()) {
            expect(count(split)).toBeLessThanOrEqual(budgets[i]!);
            for (const { neurons, predictor } of split.layers) expect(neurons === 0 || predictor).toBe(true);
          }
          // Nearly: what fits best of large parts may be worth a little less in a larger budget.
          expect(value(more!)).toBeGreaterThanOrEqual(0.9 * value(less!));
          if (Math.max(a, b) >= 1) expect(more).toEqual(all);
        },
      ),
    );
  });

  it("is within a part of what any split of those steps could be worth", () => {
    const given = known(Array.from({ length: 32 }, (_, l) => 0.3 + (l % 7) / 10));
    const steps = stepsOf(allOnGpu(given.parts, N), given);
    const count = total(given.parts);
    for (const share of [0.1, 0.3, 0.5, 0.7, 0.9]) {
      const budget = Math.floor(share * count(allOnGpu(given.parts, N)));
      const split = fitSteps(steps, 32, budget, count);
      let free = budget - 1e6 - CONTEXT;
      const bound = steps.reduce((sum, { size, value }) => {
        const part = Math.min(size, free);
        free -= part;
        return sum + Math.max(0, (value * part) / size);
      }, 0);
      const value = stepsOf(split, given).reduce((sum, step) => sum + step.value, 0);
      // The largest part is attention.
      expect(value).toBeGreaterThan(bound - 4.5e6);
    }
  });

  it("drops the coldest neurons first, before any attention", () => {
    const given = known(SKEWS);
    const all = allOnGpu(given.parts, N);
    const count = total(given.parts);
    const split = fitSteps(stepsOf(all, given), 3, count(all) - 5e6, count);
    expect(split.layers.every(({ attention, predictor }) => attention && predictor)).toBe(true);
    expect(split.head).toBe(true);
    const [flat, steep, middle] = split.layers.map(({ neurons }) => neurons);
    expect(steep).toBeLessThan(middle!);
    expect(middle).toBeLessThanOrEqual(flat!);
  });

  it("fits 80 layers of 28,672 neurons by asking for few memories", () => {
    const given = known(Array.from({ length: 80 }, (_, l) => 0.3 + (l % 7) / 10));
    const steps = stepsOf(allOnGpu(given.parts, 28_672), { ...given, nNeurons: 28_672 });
    let asked = 0;
    const count = (split: GpuSplit): number => (asked++, total(given.parts)(split));
    fitSteps(steps, 80, 4e9, count);
    expect(steps.length).toBeGreaterThan(80 * 100);
    expect(asked).toBeLessThan(50);
  });

  it("does without counts in artifacts of earlier versions, and gives neurons their predictor", () => {
    const given = known(SKEWS, { activity: undefined });
    const count = total(given.parts);
    const layerOf = (gpuNeurons: number) => {
      return { gpuNeurons, minimumNeurons: 1, impactShare: 0.5, attention: false, predictor: false };
    };
    const placed = placedOnGpu({ layers: [320, 0, 640].map(layerOf), head: false }, given.parts);
    expect(placed.layers.map(({ predictor }) => predictor)).toEqual([true, false, true]);
    const split = fitSteps(stepsOf(placed, given), 3, count(placed) - 1e6, count);
    expect(count(split)).toBeLessThanOrEqual(count(placed) - 1e6);
    expect(split.layers[0]!.neurons).toBe(320);
    expect(split.layers[2]!.neurons).toBeLessThan(640);
  });

  it("puts nothing there where not even the least part fits, and knows what that takes", () => {
    const given = known(SKEWS);
    const steps = stepsOf(allOnGpu(given.parts, N), given);
    const least = sumParts(leastSplit(steps, 3), given.parts, CONTEXT);
    expect(least.total).toBe(CONTEXT + 1e6 + 500_000);
    const fitted = (budget: number) => fitSteps(steps, 3, budget, total(given.parts));
    expect(total(given.parts)(fitted(least.total - 1))).toBe(0);
    expect(total(given.parts)(fitted(least.total))).toBe(least.total);
  });
});
