import fc from "fast-check";
import { describe, expect, it } from "vitest";
import type { Hardware } from "../../formats/hardware.ts";
import { NEURON_BATCH, parsePlacement, type Placement } from "../../formats/placement.ts";
import { silentContext } from "../../io/progress.ts";
import { DEFAULT_LAUNCH_SECONDS } from "../../model/gpu-kernels.ts";
import type { Matrix } from "../../model/row-prices.ts";
import { choosePlacement, type Count } from "../../place/choose.ts";
import type { LayerCosts, ModelCosts } from "../../place/costs.ts";
import { placementChain, SIDES } from "../../place/chain.ts";
import { everything, memoryOf, minimumNeurons, nothing, ramOf } from "../../place/plan.ts";
import { predict } from "../../place/predict.ts";
import { priceToken, tokenSeconds, type GpuHardware, type PlacedLayer, type Split } from "../../place/price.ts";
import { solveChain } from "../../place/solve-chain.ts";
import { BANDWIDTH_ONLY, costsOfShare } from "./ideal-work.ts";

const MACHINE: Hardware & GpuHardware = {
  name: "test machine",
  cpu: { bandwidth: 50e9, work: BANDWIDTH_ONLY },
  gpu: { name: "test GPU", vramBytes: 48 * 2 ** 30, bandwidth: 1000e9, reservedBytes: 1 << 29, launchSeconds: 0 },
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
    return {
      order: Int32Array.from(frequency.keys()),
      frequency,
      neuron,
      neuronRows: [row(neuron)],
      asked: frequency,
      used: frequency,
      attention,
      projections: [row(attention)],
      kv,
      kvRead: 0,
      predictor,
      predictorRows: [row(predictor), { ...row(0), rows: 0 }],
      device: { neuron, attention, predictor },
    };
  });
  return {
    mode: "predictor",
    layers,
    head: { bytes: 2e6, device: 2e6, matrix: row(2e6), shortlist: false },
    kv: { type: "f16", heads: 0, queries: 1, headDim: 64, tokens: 0 },
    dim: 64,
    norms: { parallelResidual: false, sharedNorm: false },
    scratch: 1e6,
    lookups: 0,
    tiedHead: false,
  };
}

const row = (bytes: number): Matrix => ({ type: "f16", rows: 1, bytes });

const choose = (costs: ModelCosts, budget: number, hardware = MACHINE): Promise<Placement> =>
  choosePlacement(costs, hardware, { vram: budget }, "greedy", silentContext);

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
  it("is the paper's ceil(T_sync / (M / BW_cpu - M / BW_gpu)) where bandwidth is all that counts", () => {
    const costs = costsOf(SMALL);
    const { neuron } = priceToken(costs, MACHINE).layers[0]!;
    const M = SMALL.neuron;
    expect(minimumNeurons(neuron, MACHINE.link)).toBe(Math.ceil(20e-6 / (M / 50e9 - M / 1000e9)));
    expect(minimumNeurons(neuron, { syncSeconds: 0 })).toBe(1);
  });

  it("falls where the CPU is slower than its bandwidth", () => {
    const half = { ...BANDWIDTH_ONLY, memory: costsOfShare(0.5) };
    const slow = priceToken(costsOf(SMALL), { ...MACHINE, cpu: { bandwidth: 50e9, work: half } }).layers[0]!.neuron;
    const M = SMALL.neuron;
    expect(minimumNeurons(slow, MACHINE.link)).toBe(Math.ceil(20e-6 / (M / 25e9 - M / 1000e9)));
  });

  it("does not exist where the GPU is no faster", () => {
    expect(minimumNeurons({ cpu: 1e-9, gpu: 1e-9 }, MACHINE.link)).toBeNull();
  });
});

const chainOf = (costs: ModelCosts, hardware = MACHINE) => placementChain(costs, priceToken(costs, hardware));

describe("placementChain", () => {
  it("offers no neurons of a layer that is smaller than C_l, nor any without the layer's predictor", () => {
    const [small] = chainOf(costsOf({ ...SMALL, neuron: 60, predictor: 0 })).layers;
    expect(small!.splits).toEqual([{ gpuNeurons: 0, predictor: false }]);
    const { splits } = chainOf(costsOf(SMALL)).layers[0]!;
    expect(splits.slice(1).every(({ predictor }) => predictor)).toBe(true);
    const exact = chainOf(costsOf({ ...SMALL, predictor: 0 })).layers[0]!;
    expect(exact.splits.some(({ predictor }) => predictor)).toBe(false);
    expect(exact.splits.at(-1)!.gpuNeurons).toBe(SMALL.nNeurons);
  });

  it("starts a layer with its predictor, goes on with C_l neurons and ends with all, the last batch smaller", () => {
    const { splits, sizes } = chainOf(costsOf(SMALL)).layers[0]!;
    const { neuron } = priceToken(costsOf(SMALL), MACHINE).layers[0]!;
    const least = Math.ceil(minimumNeurons(neuron, MACHINE.link)! / 64) * 64;
    expect(splits.slice(0, 4).map(({ gpuNeurons }) => gpuNeurons)).toEqual([0, 0, least, least + 64]);
    expect(splits.at(-1)).toEqual({ gpuNeurons: 1000, predictor: true });
    expect(sizes).toEqual(splits.map((s) => s.gpuNeurons * SMALL.neuron + (s.predictor ? SMALL.predictor : 0)));
  });

  it("adds up to what a token takes, whatever lies where", () => {
    const costs = costsOf(SMALL);
    const hardware = { ...MACHINE, gpu: { ...MACHINE.gpu, launchSeconds: 2e-6 } };
    const prices = priceToken(costs, hardware);
    const { layers, head, entry, rest } = chainOf(costs, hardware);
    for (let seed = 1; seed < 200; seed++) {
      const bit = (i: number) => ((seed * 2654435761) >>> i) & 1;
      const side = (i: number) => SIDES[bit(i)]!;
      const course = [side(3), side(5), side(7), side(9)];
      const options = layers.map(({ splits }, l) => (seed * (l + 3)) % splits.length);
      const split = {
        layers: layers.map(({ splits }, l) => ({ ...splits[options[l]!]!, attention: course[l] === 1 })),
        head: course[3] === 1,
      };
      if (memoryOf(split, costs, hardware.gpu).total === 0) continue;
      const sum = layers.reduce(
        (seconds, layer, l) => seconds + layer.seconds[course[l]!][course[l + 1]!][options[l]!]!,
        rest + head.seconds[course[3]!] + course[0]! * entry,
      );
      expect(tokenSeconds(split, prices)).toBeCloseTo(sum, 12);
    }
  });
});

describe("solveChain", () => {
  /** Bytes of a split besides the runtime's context. */
  const bytesOf = (split: Split, costs: ModelCosts): number => {
    const { total, scratch, context } = memoryOf(split, costs, MACHINE.gpu);
    return total - scratch - context;
  };

  it("finds what trying everything finds, and bounds it", () => {
    const numbers = fc.record({
      neuron: fc.integer({ min: 100, max: 20_000 }),
      attention: fc.integer({ min: 1, max: 400 }).map((x) => 4000 * x),
      predictor: fc.integer({ min: 0, max: 100 }).map((x) => 4000 * x),
      sync: fc.double({ min: 0, max: 1e-4, noNaN: true }),
      launch: fc.double({ min: 0, max: 5e-6, noNaN: true }),
      share: fc.double({ min: 0, max: 1, noNaN: true }),
      skew: fc.double({ min: 0, max: 1, noNaN: true }),
    });
    fc.assert(
      fc.property(numbers, ({ sync, launch, share, skew, ...sizes }) => {
        const shape = { nLayers: 3, nNeurons: 200, kv: 4000, ...sizes };
        const costs = costsOf(shape, (layer) => skew * (1 + layer / 4));
        const hardware = {
          ...MACHINE,
          gpu: { ...MACHINE.gpu, launchSeconds: launch },
          link: { bandwidth: 25e9, syncSeconds: sync },
        };
        const prices = priceToken(costs, hardware);
        const chain = placementChain(costs, prices);
        const capacity = Math.floor(share * bytesOf(everything(costs), costs));
        const found = solveChain(chain, capacity);
        expect(bytesOf(found.split, costs)).toBeLessThanOrEqual(capacity);
        const none = tokenSeconds(nothing(3), prices);
        expect(none - tokenSeconds(found.split, prices)).toBeCloseTo(found.objective, 12);
        let best = 0;
        const layers = chain.layers.map(({ splits }) =>
          splits.flatMap((split) => [false, true].map((attention) => Object.assign({ attention }, split))),
        );
        const [a, b, c] = layers as [PlacedLayer[], PlacedLayer[], PlacedLayer[]];
        for (const head of [false, true]) {
          for (const x of a) {
            for (const y of b) {
              for (const z of c) {
                const split = { layers: [x, y, z], head };
                if (bytesOf(split, costs) > capacity) continue;
                // What everything saves besides is not the chain's to know.
                const rest = tokenSeconds(split, { ...prices, fixed: 0 });
                best = Math.max(best, tokenSeconds(nothing(3), { ...prices, fixed: 0 }) - rest);
              }
            }
          }
        }
        expect(found.bound).toBeGreaterThanOrEqual(best * (1 - 1e-9) - 1e-15);
        expect(found.objective).toBeGreaterThanOrEqual(best * (1 - 1e-6) - 1e-12);
      }),
      { numRuns: 60 },
    );
  });

  it("lets no layer have a few neurons that save less than their kernels take", () => {
    const costs = costsOf({ ...SMALL, predictor: 0 }, () => 2);
    const at = (launchSeconds: number) => {
      const prices = priceToken(costs, { ...MACHINE, gpu: { ...MACHINE.gpu, launchSeconds } });
      return solveChain(placementChain(costs, { ...prices, syncSeconds: 1e-7 }), 1e9).split;
    };
    expect(at(0).layers.every(({ gpuNeurons }) => gpuNeurons > 0)).toBe(true);
    const dear = at(2e-6);
    expect(dear.layers.every(({ gpuNeurons }) => gpuNeurons === 0)).toBe(true);
    expect(dear.layers.every(({ attention }) => attention)).toBe(true);
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

  it("keeps within the budget by the engine's count, too, whose allocations are rounded up", async () => {
    const costs = costsOf(SMALL);
    const up = (bytes: number): number => Math.ceil(bytes / 2 ** 20) * 2 ** 20;
    const count: Count = (split) => {
      const { total, ...parts } = memoryOf(split, costs, MACHINE.gpu);
      if (total === 0) return { total, ...parts };
      const rounded = { ...parts, weights: up(parts.weights), predictors: up(parts.predictors), kv: up(parts.kv) };
      return { ...rounded, total: Object.values(rounded).reduce((a, b) => a + b) };
    };
    for (const vram of [5.5e8, 5.6e8, 5.7e8]) {
      const plain = await choose(costs, vram);
      const placed = await choosePlacement(costs, MACHINE, { vram }, "greedy", silentContext, count);
      expectLegal(placed, SMALL);
      expect(placed.memory).toEqual(count(placed));
      expect(placed.objective).toBeLessThanOrEqual(plain.objective);
      expect(placed.objective).toBeGreaterThan(0.8 * plain.objective);
    }
  });

  it("places a 70B model past 4 GiB to a proven optimum", async () => {
    const costs = costsOf(LARGE);
    const placement = await choose(costs, 24 * 2 ** 30);
    expectLegal(placement, LARGE);
    expect(placement.gap).toBeLessThan(1e-4);
    expect(placement.memory.total).toBeGreaterThan(24 * 2 ** 30 - 64 * LARGE.neuron);
    expect(placement.predicted.tokensPerSecond).toBeGreaterThan(placement.predicted.cpuOnlyTokensPerSecond);
  });

  it("has HiGHS check small problems, and reports both objectives", async () => {
    const costs = costsOf(SMALL);
    const checked = await choosePlacement(costs, MACHINE, { vram: 5.6e8 }, "auto", silentContext);
    expect(checked.referee!.objective).toBeCloseTo(checked.objective, 9);
    const theirs = await choosePlacement(costs, MACHINE, { vram: 5.6e8 }, "ilp", silentContext);
    expect(theirs.solver).toBe("ilp");
    expect(theirs.objective).toBeCloseTo(checked.objective, 9);
    expectLegal(theirs, SMALL);
  });

  it("leaves all with the CPU, with a warning, where no part is worth the GPU", async () => {
    const warnings: string[] = [];
    const slow = { ...MACHINE, cpu: { bandwidth: 2000e9, work: BANDWIDTH_ONLY } };
    const context = { ...silentContext, warn: (text: string) => warnings.push(text) };
    const placement = await choosePlacement(costsOf(SMALL), slow, { vram: 1e9 }, "auto", context);
    expect(placement).toMatchObject({ gpuShare: 0, head: false, memory: { total: 0 } });
    expect(placement.layers[0]!.minimumNeurons).toBeNull();
    expect(warnings).toEqual([expect.stringContaining("stays with the CPU")]);
  });
});

describe("the RAM budget", () => {
  /** What the CPU keeps under these budgets. */
  const within = (ram: number, vram = 5.6e8) =>
    choosePlacement(costsOf(SMALL), MACHINE, { vram, ram }, "greedy", silentContext);

  it("changes nothing where what stays with the CPU fits anyway, and is written down", async () => {
    const free = await choose(costsOf(SMALL), 5.6e8);
    expect(free.ram).toEqual({ budget: null, total: expect.any(Number) as number });
    const { total } = free.ram!;
    expect(await within(total)).toEqual({ ...free, ram: { budget: total, total } });
    expect(ramOf(nothing(3), costsOf(SMALL))).toBe(
      3 * (SMALL.nNeurons * SMALL.neuron + SMALL.attention + SMALL.kv + SMALL.predictor) + 2e6 + 1e6,
    );
  });

  it("moves what saves no time, too, where it must, to a proven gap", async () => {
    // A slow link.
    const hardware = { ...MACHINE, link: { bandwidth: 25e9, syncSeconds: 1e-4 } };
    const costs = costsOf(SMALL);
    const ask = (ram?: number) => choosePlacement(costs, hardware, { vram: 5.6e8, ram }, "greedy", silentContext);
    const free = await ask();
    const ram = free.ram!.total - 2e6;
    const tight = await ask(ram);
    expect(tight.ram!.total).toBeLessThanOrEqual(ram);
    expect(tight.objective).toBeLessThan(free.objective);
    expect(tight.bound).toBeGreaterThanOrEqual(tight.objective);
    expect(tight.bound).toBeLessThanOrEqual(free.bound * (1 + 1e-9));
    expectLegal(tight, SMALL);
  });

  it("is met by a 70B model in 200 GiB of f32, counted exactly", async () => {
    const costs = costsOf({ ...LARGE, neuron: 2 * LARGE.neuron, attention: 604e6 });
    const all = ramOf(nothing(LARGE.nLayers), costs);
    expect(all).toBeGreaterThan(200 * 2 ** 30);
    const gpu = { ...MACHINE.gpu!, vramBytes: 2 ** 38 };
    const link = { bandwidth: 25e9, syncSeconds: 1e-2 };
    const ram = all - 100 * 2 ** 30;
    const budgets = { vram: 110 * 2 ** 30, ram };
    const placement = await choosePlacement(costs, { ...MACHINE, gpu, link }, budgets, "greedy", silentContext);
    const { total, ...parts } = placement.memory;
    expect(placement.ram!.total).toBeLessThanOrEqual(ram);
    expect(placement.ram!.total + parts.weights + parts.predictors + parts.kv).toBe(all);
    expect(Number.isSafeInteger(total)).toBe(true);
    expect(placement.gap).toBeLessThan(3e-3);
  });

  it("is refused with the numbers where nothing is enough", async () => {
    await expect(within(1e6)).rejects.toMatchObject({
      code: "E_BUDGET",
      message: expect.stringMatching(
        /^RAM budget: expected at least \d+ bytes for what stays with the CPU beside 560000000 bytes of GPU memory, got 1000000$/,
      ) as string,
    });
  });
});

describe("predict", () => {
  const SYNC = 20e-6;
  const seconds = (split: Split, costs: ModelCosts): number => 1 / predict(split, costs, MACHINE).tokensPerSecond;

  it("adds up the parts: the halves of an FFN overlap, and the host's begins and ends half a synchronisation away", () => {
    const costs = costsOf({ ...SMALL, nLayers: 1 }, () => 0);
    const { attention } = costs.layers[0]!;
    const split = { layers: [{ gpuNeurons: 250, attention: true, predictor: true }], head: false };
    const { gpuShare, impactShares } = predict(split, costs, MACHINE);
    const cpuFfn = (750 * SMALL.neuron) / 50e9;
    const others = attention / 1000e9 + SMALL.predictor / 1000e9 + costs.head.bytes / 50e9;
    // To the GPU's attention, and to the host's neurons, where the head is as well.
    expect(seconds(split, costs)).toBeCloseTo(cpuFfn + others + SYNC, 12);
    expect(gpuShare).toBeCloseTo(0.25, 9);
    expect(impactShares[0]).toBeCloseTo(0.25, 9);
    // Back to the GPU's head, and the token from there.
    const onGpu = { ...split, head: true };
    const moved = costs.head.bytes / 50e9 - costs.head.bytes / 1000e9;
    expect(seconds(onGpu, costs)).toBeCloseTo(cpuFfn + others - moved + 2 * SYNC, 12);
    // With nearly all of it the GPU is what the CPU waits for, which hides the way to the host and back.
    onGpu.layers[0]!.gpuNeurons = 997;
    const gpuFfn = (997 * SMALL.neuron) / 1000e9;
    expect(seconds(onGpu, costs)).toBeCloseTo(
      Math.max(gpuFfn, SYNC + (3 * SMALL.neuron) / 50e9) + others - moved + SYNC,
      12,
    );
    // With all of it nobody waits.
    onGpu.layers[0]!.gpuNeurons = 1000;
    expect(seconds(onGpu, costs)).toBeCloseTo((1000 * SMALL.neuron) / 1000e9 + others - moved + SYNC, 12);
  });

  it("lets a layer meet the host seldom where its cold neurons are seldom asked for", () => {
    const costs = costsOf({ ...SMALL, nLayers: 1 });
    const layer = costs.layers[0]!;
    layer.asked = layer.asked.map((p, i) => (i < 990 ? p : 1e-3));
    const split = { layers: [{ gpuNeurons: 990, attention: true, predictor: true }], head: true };
    const { work, waits } = priceToken(costs, MACHINE).layers[0]!;
    expect(waits[990]).toBeCloseTo(1 - 0.999 ** 10, 9);
    // In one token of a hundred the GPU waits for the host, which has then more to do than on average.
    const gpu = work[990]! / 20;
    const asked = SYNC + (work[1000]! - work[990]!) / waits[990]!;
    expect(asked).toBeGreaterThan(gpu);
    const others = layer.attention / 1000e9 + SMALL.predictor / 1000e9 + costs.head.bytes / 1000e9 + SYNC;
    const both = (1 - waits[990]!) * gpu + waits[990]! * asked;
    expect(seconds(split, costs)).toBeCloseTo(others + both, 12);
  });

  it("works without scores: the host begins at once where it has the input", () => {
    const costs = costsOf({ ...SMALL, nLayers: 1, predictor: 0 }, () => 0);
    const parts = (attention: boolean, head: boolean) =>
      costs.layers[0]!.attention / (attention ? 1000e9 : 50e9) + 2e6 / (head ? 1000e9 : 50e9);
    const ffn = (n: number) => [(n * SMALL.neuron) / 1000e9, ((1000 - n) * SMALL.neuron) / 50e9] as const;
    for (const n of [128, 960]) {
      const [gpu, cpu] = ffn(n);
      const of = (attention: boolean, head: boolean) =>
        seconds({ layers: [{ gpuNeurons: n, attention, predictor: false }], head }, costs) - parts(attention, head);
      expect(of(false, false)).toBeCloseTo(Math.max(SYNC + gpu, cpu), 12);
      expect(of(false, true)).toBeCloseTo(SYNC / 2 + Math.max(gpu, cpu) + SYNC / 2, 12);
      expect(of(true, false)).toBeCloseTo(SYNC / 2 + SYNC / 2 + Math.max(gpu, cpu), 12);
      expect(of(true, true)).toBeCloseTo(SYNC / 2 + Math.max(gpu, SYNC + cpu) + SYNC / 2, 12);
    }
  });

  it("lets the stream cross over only where it must", () => {
    const costs = costsOf(SMALL, () => 0);
    const split = (attention: boolean[], ffn: boolean[], head: boolean): Split => ({
      layers: attention.map((gpu, l) => ({
        attention: gpu,
        predictor: ffn[l]!,
        gpuNeurons: ffn[l]! ? SMALL.nNeurons : 0,
      })),
      head,
    });
    const on = (gpu: boolean, bytes: number): number => bytes / (gpu ? 1000e9 : 50e9);
    const parts = (attention: boolean[], ffn: boolean[], head: boolean): number =>
      attention.reduce((sum, gpu) => sum + on(gpu, SMALL.attention), on(head, 2e6)) +
      ffn.reduce((sum, gpu) => sum + on(gpu, SMALL.nNeurons * SMALL.neuron + SMALL.predictor), 0);
    // Half synchronisations: from each part to the next one that is on the other side, and back to the CPU for the token.
    const cases: [boolean[], boolean[], boolean, number][] = [
      [[false, false, false], [false, false, false], false, 0],
      [[true, true, true], [true, true, true], true, 2],
      [[true, true, true], [true, true, true], false, 2],
      [[true, false, true], [true, true, true], true, 4],
      [[false, false, false], [true, true, true], false, 6],
      [[false, false, false], [false, true, false], true, 4],
      [[true, true, false], [true, false, false], false, 2],
      [[true, true, true], [false, false, false], true, 8],
    ];
    for (const [attention, ffn, head, crossings] of cases) {
      const expected = parts(attention, ffn, head) + (crossings * SYNC) / 2;
      expect(seconds(split(attention, ffn, head), costs)).toBeCloseTo(expected, 12);
    }
  });

  it("takes the default for a kernel's time where the hardware does not say", () => {
    const { launchSeconds: _, ...gpu } = MACHINE.gpu;
    expect(priceToken(costsOf(SMALL), { ...MACHINE, gpu }).launchSeconds).toBe(DEFAULT_LAUNCH_SECONDS);
  });

  it("counts a launch for every kernel of what nobody computes meanwhile", () => {
    const costs = costsOf(SMALL, () => 0);
    const launching = { ...MACHINE, gpu: { ...MACHINE.gpu, launchSeconds: 3e-6 } };
    const all = everything(costs);
    const { kernels, launchSeconds, tokensPerSecond } = predict(all, costs, launching);
    expect(launchSeconds).toBeCloseTo(kernels * 3e-6, 15);
    expect(1 / tokensPerSecond).toBeCloseTo(seconds(all, costs) + launchSeconds, 12);
    expect(predict(nothing(3), costs, launching)).toMatchObject({ kernels: 0, launchSeconds: 0 });
  });
});
