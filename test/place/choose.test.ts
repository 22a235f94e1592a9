import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Hardware } from "../../formats/hardware.ts";
import { NEURON_BATCH, parsePlacement, type Placement } from "../../formats/placement.ts";
import { silentContext } from "../../io/progress.ts";
import { choosePlacement } from "../../place/choose.ts";
import type { LayerCosts, ModelCosts } from "../../place/costs.ts";
import { minimumNeurons, placementProblem, type GpuHardware } from "../../place/plan.ts";
import { predict } from "../../place/predict.ts";

const MACHINE: Hardware & GpuHardware = {
  name: "test machine",
  cpu: { bandwidth: 50e9 },
  gpu: { name: "test GPU", vramBytes: 48 * 2 ** 30, bandwidth: 1000e9, reservedBytes: 1 << 29 },
  link: { bandwidth: 25e9, syncSeconds: 20e-6 },
  source: "made up",
};

interface Shape {
  nLayers: number;
  nNeurons: number;
  /** Bytes of one neuron, and of each layer's attention, KV cache and predictor. */
  neuron: number;
  attention: number;
  kv: number;
  predictor: number;
}

/** Llama-2-70B in f16 with a predictor of rank 1000 or so. */
const LARGE: Shape = {
  nLayers: 80,
  nNeurons: 28_672,
  neuron: 3 * 8192 * 2,
  attention: 302e6,
  kv: 16.8e6,
  predictor: 74e6,
};
const SMALL: Shape = { nLayers: 3, nNeurons: 1000, neuron: 6144, attention: 4e6, kv: 1e6, predictor: 500_000 };

/** Costs of a model whose neurons fire with frequency (rank + 1)^-exponent, another exponent each layer. */
function costsOf(shape: Shape, exponent = (layer: number): number => 0.3 + (layer % 7) / 10): ModelCosts {
  const layers = Array.from({ length: shape.nLayers }, (_, layer): LayerCosts => {
    const frequency = Float64Array.from({ length: shape.nNeurons }, (__, i) => (i + 1) ** -exponent(layer));
    const { neuron, attention, kv, predictor } = shape;
    const order = Int32Array.from(frequency.keys());
    return {
      order,
      frequency,
      neuron,
      read: frequency.map((f) => f * neuron),
      attention,
      kv,
      kvRead: kv / 2,
      predictor,
    };
  });
  return { mode: "predictor", layers, head: 2e6, scratch: 1e6 };
}

const choose = (costs: ModelCosts, budget: number, hardware = MACHINE): Promise<Placement> =>
  choosePlacement(costs, hardware, budget, "greedy", silentContext);

/** What every placement must be. */
function expectLegal(placement: Placement, { nLayers, nNeurons }: Shape): void {
  const { memory, layers, vramBudget } = placement;
  const { total, ...parts } = memory;
  expect(total).toBe(Object.values(parts).reduce((a, b) => a + b));
  expect(total).toBeLessThanOrEqual(vramBudget);
  for (const { gpuNeurons, minimumNeurons: least } of layers) {
    if (gpuNeurons === 0) continue;
    expect(gpuNeurons).toBeGreaterThanOrEqual(least!);
    expect(gpuNeurons === nNeurons || gpuNeurons % NEURON_BATCH === 0).toBe(true);
  }
  expect(placement.bound).toBeGreaterThanOrEqual(placement.objective);
  expect(parsePlacement(JSON.stringify(placement), "x.pi", { nLayers, nNeurons })).toEqual(placement);
}

describe("C_l", () => {
  it("is the paper's ceil(T_sync / (M / BW_cpu - M / BW_gpu))", () => {
    const M = 3 * 4096 * 2;
    expect(minimumNeurons(M, MACHINE)).toBe(Math.ceil(20e-6 / (M / 50e9 - M / 1000e9)));
    expect(minimumNeurons(M, { ...MACHINE, link: { bandwidth: 1, syncSeconds: 0 } })).toBe(1);
  });

  it("does not exist where the GPU is no faster", () => {
    expect(minimumNeurons(1000, { ...MACHINE, cpu: { bandwidth: 2000e9 } })).toBeNull();
  });
});

describe("placementProblem", () => {
  it("offers no layer that is smaller than C_l, and no part that saves less than one synchronisation", () => {
    const costs = costsOf({ ...SMALL, neuron: 60, attention: 1000, predictor: 1000 });
    const { groups, items } = placementProblem({ ...costs, head: 0 }, MACHINE, 1e9);
    expect(groups.map(({ sizes }) => sizes)).toEqual([[0], [0], [0]]);
    expect(items.map(({ part }) => part)).toEqual(["neurons", "neurons", "neurons"]);
  });

  it("starts a layer with the batches that hold C_l neurons and ends it with all, the last batch smaller", () => {
    const { items, groups } = placementProblem(costsOf(SMALL), MACHINE, 1e9);
    const least = Math.ceil(minimumNeurons(SMALL.neuron, MACHINE)! / 64) * 64;
    const neurons = (items[0] as { neurons: number[] }).neurons;
    expect(neurons.slice(0, 3)).toEqual([0, least, least + 64]);
    expect(neurons.slice(-2)).toEqual([960, 1000]);
    expect(groups[0]!.sizes).toEqual(neurons.map((n) => n * SMALL.neuron));
  });
});

describe("choosePlacement", () => {
  it("keeps within any budget, counts all memory and never gains less from more", async () => {
    const costs = costsOf(SMALL);
    const budget = fc.double({ min: 0, max: 1.1, noNaN: true }).map((x) => 5.4e8 + Math.floor(x * 5e7));
    await fc.assert(
      fc.asyncProperty(budget, budget, async (a, b) => {
        const [less, more] = [await choose(costs, Math.min(a, b)), await choose(costs, Math.max(a, b))];
        expectLegal(less, SMALL);
        expectLegal(more, SMALL);
        expect(more.objective).toBeGreaterThanOrEqual(less.objective * (1 - 1e-8));
      }),
      { numRuns: 60 },
    );
  });

  it("puts nothing on the GPU under a budget of 0, and everything under one that holds it", async () => {
    const none = await choose(costsOf(SMALL), 0);
    expectLegal(none, SMALL);
    expect(none).toMatchObject({ gpuShare: 0, head: false, objective: 0, gap: 0, memory: { total: 0, context: 0 } });
    expect(none.predicted.tokensPerSecond).toBe(none.predicted.cpuOnlyTokensPerSecond);

    const all = await choose(costsOf(SMALL), 40 * 2 ** 30);
    expectLegal(all, SMALL);
    expect(all).toMatchObject({ gpuShare: 1, head: true });
    for (const layer of all.layers) {
      expect(layer).toMatchObject({ gpuNeurons: SMALL.nNeurons, attention: true, predictor: true });
    }
    const bytes = SMALL.nNeurons * SMALL.neuron + SMALL.attention + SMALL.kv + SMALL.predictor;
    expect(all.memory.total).toBe(3 * bytes + 2e6 + 1e6 + (1 << 29));
  });

  it("places a 70B model past 4 GiB to a proven optimum", async () => {
    const costs = costsOf(LARGE);
    const placement = await choose(costs, 24 * 2 ** 30);
    expectLegal(placement, LARGE);
    expect(placement.gap).toBeLessThan(1e-6);
    expect(placement.memory.total).toBeGreaterThan(24 * 2 ** 30 - 64 * LARGE.neuron);
    expect(placement.predicted.tokensPerSecond).toBeGreaterThan(placement.predicted.cpuOnlyTokensPerSecond);
  });

  it("has HiGHS check small problems, and reports both objectives", async () => {
    const costs = costsOf(SMALL);
    const checked = await choosePlacement(costs, MACHINE, 5.6e8, "auto", silentContext);
    expect(checked.referee!.objective).toBeCloseTo(checked.objective, 9);
    const theirs = await choosePlacement(costs, MACHINE, 5.6e8, "ilp", silentContext);
    expect(theirs.solver).toBe("ilp");
    expect(theirs.objective).toBeCloseTo(checked.objective, 9);
    expectLegal(theirs, SMALL);
  });

  it("leaves all with the CPU, with a warning, where no part is worth the GPU", async () => {
    const warnings: string[] = [];
    const slow = { ...MACHINE, cpu: { bandwidth: 2000e9 } };
    const context = { ...silentContext, warn: (text: string) => warnings.push(text) };
    const placement = await choosePlacement(costsOf(SMALL), slow, 1e9, "auto", context);
    expect(placement).toMatchObject({ gpuShare: 0, head: false, memory: { total: 0 } });
    expect(placement.layers[0]!.minimumNeurons).toBeNull();
    expect(warnings).toEqual([expect.stringContaining("stays with the CPU")]);
  });
});

describe("predict", () => {
  it("adds up bytes over bandwidth; the halves of an FFN overlap, every hand-over costs a synchronisation", () => {
    const costs = costsOf({ ...SMALL, nLayers: 1 }, () => 0);
    const { attention, kvRead } = costs.layers[0]!;
    const split = { layers: [{ gpuNeurons: 250, attention: true, predictor: false }], head: false };
    const { tokensPerSecond, gpuShare, impactShares } = predict(split, costs, MACHINE);
    const cpuFfn = (750 * SMALL.neuron) / 50e9;
    const gpuFfn = (250 * SMALL.neuron) / 1000e9 + 20e-6;
    const others = (attention + kvRead) / 1000e9 + 20e-6 + SMALL.predictor / 50e9 + costs.head / 50e9;
    expect(1 / tokensPerSecond).toBeCloseTo(Math.max(cpuFfn, gpuFfn) + others, 12);
    expect(gpuShare).toBeCloseTo(0.25, 9);
    expect(impactShares[0]).toBeCloseTo(0.25, 9);
  });
});
