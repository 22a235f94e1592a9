import { describe, expect, it } from "vitest";
import { silentContext } from "../../io/progress.ts";
import { choosePlacement } from "../../place/choose.ts";
import type { Matrix } from "../../model/row-prices.ts";
import type { LayerCosts, ModelCosts } from "../../place/costs.ts";
import { placementChain, type Chain } from "../../place/chain.ts";
import { everything, memoryOf } from "../../place/plan.ts";
import { priceToken, tokenSeconds, type GpuHardware } from "../../place/price.ts";
import { normals } from "../native/planted.ts";
import { BANDWIDTH_ONLY } from "./ideal-work.ts";

/** Of a kernel. */
const LAUNCH = 2e-6;

/** Whole placements, from frequencies to a proof, each held against a bound that the solver had no part in. */
interface Instance {
  layers: number;
  neurons: number;
  /** Bytes of a neuron, attention with its KV cache, and predictor. */
  sizes: { neuron: number; attention: number; predictor: number };
  frequency: (layer: number, rank: number) => number;
  syncSeconds: number;
  /** Of all that could be placed. */
  share: number;
}

const row = (bytes: number): Matrix => ({ type: "f16", rows: 1, bytes });

function costsOf({ layers, neurons, sizes, frequency }: Instance): ModelCosts {
  return {
    mode: "predictor",
    layers: Array.from({ length: layers }, (_, layer): LayerCosts => {
      const f = Float64Array.from({ length: neurons }, (__, rank) => frequency(layer, rank));
      return {
        order: Int32Array.from(f.keys()),
        frequency: f,
        asked: f,
        used: f,
        neuron: sizes.neuron,
        neuronRows: [row(sizes.neuron)],
        attention: sizes.attention,
        projections: [row(sizes.attention)],
        kv: sizes.attention / 4,
        kvRead: 0,
        predictor: sizes.predictor,
        predictorRows: [row(sizes.predictor), { ...row(0), rows: 0 }],
        device: sizes,
      };
    }),
    head: {
      bytes: 2 * sizes.attention,
      device: 2 * sizes.attention,
      matrix: row(2 * sizes.attention),
      shortlist: false,
    },
    kv: { type: "f16", heads: 0, queries: 1, headDim: 64, tokens: 0 },
    dim: 64,
    norms: { parallelResidual: false, sharedNorm: false },
    scratch: 0,
    lookups: 0,
    tiedHead: false,
  };
}

const hardwareOf = ({ syncSeconds }: Instance): GpuHardware => ({
  name: "test machine",
  cpu: { bandwidth: 50e9, work: BANDWIDTH_ONLY },
  gpu: { name: "test GPU", vramBytes: 2 ** 45, bandwidth: 1000e9, reservedBytes: 0, launchSeconds: LAUNCH },
  link: { bandwidth: 25e9, syncSeconds },
  source: "made up",
});

/**
 * Dantzig's bound: every layer for itself, with attention on either side and the stream going on where that is best; steps by
 * value per byte, the last one in part.
 */
function relaxedBound({ layers, head }: Chain, capacity: number): number {
  const groups = layers.map(({ sizes, seconds, attention }) =>
    [0, 1].flatMap((side) =>
      sizes.map((size, o) => {
        const least = Math.min(seconds[side as 0 | 1][0][o]!, seconds[side as 0 | 1][1][o]!);
        return { size: size + side * attention.size, value: seconds[0][0][0]! - least };
      }),
    ),
  );
  groups.push([
    { size: 0, value: 0 },
    { size: head.size, value: head.seconds[0] - head.seconds[1] },
  ]);
  const steps = groups.flatMap((points) => {
    const found = [];
    // From every point to the one that is worth most per byte more.
    for (let from = { size: 0, value: 0 }, more = points; more.length > 0;) {
      const at = from;
      const density = (p: typeof from): number => (p.value - at.value) / (p.size - at.size);
      more = more.filter((p) => p.size > at.size && p.value > at.value);
      if (more.length === 0) break;
      from = more.reduce((a, b) => (density(b) > density(a) ? b : a));
      found.push({ size: from.size - at.size, value: from.value - at.value });
    }
    return found;
  });
  steps.sort((a, b) => b.value / b.size - a.value / a.size);
  let free = capacity;
  return steps.reduce((sum, { size, value }) => {
    const part = Math.min(size, free);
    free -= part;
    return sum + (value * part) / size;
  }, 0);
}

async function solved(instance: Instance) {
  const costs = costsOf(instance);
  const hardware = hardwareOf(instance);
  const prices = priceToken(costs, hardware);
  const all = memoryOf(everything(costs), costs, hardware.gpu).total;
  const vram = Math.floor(instance.share * all);
  const placement = await choosePlacement(costs, hardware, { vram }, "greedy", silentContext);
  const saved = 1 / placement.predicted.cpuOnlyTokensPerSecond - tokenSeconds(placement, prices);
  return { placement, saved, vram, relaxed: relaxedBound(placementChain(costs, prices), vram), all };
}

async function expectProven(instance: Instance) {
  const { placement, saved, vram, relaxed, all } = await solved(instance);
  expect(placement.memory.total).toBeLessThanOrEqual(vram);
  expect(placement.objective).toBeGreaterThanOrEqual(0.999 * placement.bound);
  expect(placement.gap).toBeLessThanOrEqual(1e-3);
  // What is decided by is what is predicted.
  expect(saved).toBeCloseTo(placement.objective, 12);
  // A GPU that holds everything also saves what the CPU does whatever is placed.
  if (vram < all) expect(placement.bound).toBeLessThanOrEqual(relaxed * (1 + 1e-9));
  return placement;
}

/** Uniform in [0, 1), the same for every run. */
function uniforms(seed: number): () => number {
  const normal = normals(seed);
  return () => Math.abs((normal() * 1e4) % 1);
}

function randomInstance(seed: number): Instance {
  const uniform = uniforms(seed);
  const between = (low: number, high: number) => low + Math.floor(uniform() * (high - low));
  const neuron = 6 * between(64, 8192);
  const neurons = between(200, 12_000);
  const skews = Array.from({ length: 100 }, () => uniform());
  return {
    layers: between(2, 40),
    neurons,
    sizes: {
      neuron,
      attention: 4 * Math.ceil(neuron * neurons * (0.05 + uniform() / 2)),
      predictor: Math.ceil(neuron * neurons * uniform() * 0.15),
    },
    frequency: (layer, rank) => (rank + 1) ** -skews[layer]!,
    syncSeconds: 1e-6 * 10 ** (2 * uniform()),
    share: 0.02 + uniform() * 0.96,
  };
}

const BASE: Instance = {
  layers: 32,
  neurons: 11_008,
  sizes: { neuron: 24_576, attention: 4 * 33_554_432, predictor: 24_000_000 },
  frequency: (layer, rank) => (rank + 1) ** -(0.3 + layer / 64),
  syncSeconds: 20e-6,
  share: 0.4,
};

describe("placements of whole models, at least 99.9 % of what any could save", () => {
  // The last three have few layers with large predictors.
  it.each([...Array.from({ length: 20 }, (_, i) => i + 1), 74, 80, 106])("random instance %d", async (seed) => {
    await expectProven(randomInstance(seed));
  });

  it("equal frequencies everywhere", async () => {
    await expectProven({ ...BASE, frequency: () => 0.1 });
  });

  it("one hot layer", async () => {
    const { layers } = await expectProven({ ...BASE, share: 0.5, frequency: (layer) => (layer === 3 ? 0.9 : 0.001) });
    // The CPU computes a few of them meanwhile.
    expect(layers[3]!.gpuNeurons).toBeGreaterThan(0.95 * BASE.neurons);
  });

  it("budget 0", async () => {
    expect(await expectProven({ ...BASE, share: 0 })).toMatchObject({ objective: 0, gpuShare: 0 });
  });

  it("budget for everything and more", async () => {
    const { gpuShare, head, layers } = await expectProven({ ...BASE, share: 1.5 });
    expect(layers.every(({ attention }) => attention) && head).toBe(true);
    // A host that nothing else costs time may help with the coldest neurons meanwhile.
    expect(gpuShare).toBeGreaterThan(0.99);
  });

  it("layers smaller than C_l: no neuron ever goes, however large the budget", async () => {
    const { layers } = await expectProven({ ...BASE, neurons: 100, share: 0.9, syncSeconds: 1e-3 });
    expect(layers.every(({ gpuNeurons, minimumNeurons }) => gpuNeurons === 0 && minimumNeurons! > 100)).toBe(true);
  });
});
