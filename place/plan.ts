import { check, PiError } from "../formats/errors.ts";
import type { Gpu, Hardware } from "../formats/hardware.ts";
import { NEURON_BATCH, type LayerPlacement, type PlacementMemory } from "../formats/placement.ts";
import type { LayerCosts, ModelCosts } from "./costs.ts";
import type { Price, Prices } from "./price.ts";
import type { Group, Problem } from "./problem.ts";

/** Which parts of the model are on the GPU. */
export interface Split {
  layers: Pick<LayerPlacement, "gpuNeurons" | "attention" | "predictor">[];
  head: boolean;
}

/**
 * C_l of the paper: the fewest neurons whose computation on the GPU saves what handing them over costs,
 * ceil(T_sync / (T_cpu - T_gpu)) with the times of one neuron, M / BW_cpu and M / BW_gpu where bandwidth is all that
 * counts. Null where the GPU is no faster.
 */
export function minimumNeurons({ cpu, gpu }: Price, { syncSeconds }: Hardware["link"]): number | null {
  return cpu > gpu ? Math.max(1, Math.ceil(syncSeconds / (cpu - gpu))) : null;
}

/** The placement problem with what its groups and options stand for. */
export interface PlacementProblem extends Problem {
  items: Item[];
}

/** What a group of the problem places. `neurons[o]`: neurons of the layer that option `o` puts on the GPU. */
type Item =
  | { part: "neurons"; layer: number; neurons: number[] }
  | { part: "attention" | "predictor"; layer: number }
  | { part: "head" };

/**
 * Everything that may go to the GPU, by time saved per token. Neurons go in batches of 64, hottest first, none or at
 * least C_l of a layer. Attention (with the layer's KV cache), a predictor and the head are read whole for every token,
 * but each must save more than one synchronisation costs. `bonus` seconds are added for every byte that leaves the CPU's
 * memory (see {@link choosePlacement}), so that also parts which save no time are offered.
 */
export function placementProblem(
  costs: ModelCosts,
  prices: Prices,
  { syncSeconds }: Hardware["link"],
  capacity: number,
  bonus = 0,
): PlacementProblem {
  const items: Item[] = [];
  const groups: Group[] = [];
  const addWhole = (item: Item, size: number, { cpu, gpu }: Price): void => {
    const value = cpu - gpu - syncSeconds + bonus * size;
    if (size <= 0 || value <= 0) return;
    items.push(item);
    groups.push({ sizes: [0, size], values: [0, value] });
  };
  for (const [layer, cost] of costs.layers.entries()) {
    const price = prices.layers[layer]!;
    const neurons = neuronOptions(cost.order.length, minimumNeurons(price.neuron, { syncSeconds, bandwidth: 0 }));
    items.push({ part: "neurons", layer, neurons });
    const work = prefixSums(price.neurons);
    const sizes = neurons.map((n) => n * cost.neuron);
    groups.push({ sizes, values: neurons.map((n, o) => work[n]! * (1 - price.gpuRatio) + bonus * sizes[o]!) });
    addWhole({ part: "attention", layer }, cost.attention + cost.kv, price.attention);
    addWhole({ part: "predictor", layer }, cost.predictor, price.predictor);
  }
  addWhole({ part: "head" }, costs.head.bytes, prices.head);
  return { capacity, groups, items };
}

/** What the parts on the GPU save per token as {@link placementProblem} counts it, without bonus. */
export function savedSeconds(split: Split, { layers, head }: Prices, { syncSeconds }: Hardware["link"]): number {
  const whole = (onGpu: boolean, { cpu, gpu }: Price): number => (onGpu ? cpu - gpu - syncSeconds : 0);
  return layers.reduce(
    (sum, { attention, predictor, neurons, gpuRatio }, l) => {
      const layer = split.layers[l]!;
      const work = neurons.subarray(0, layer.gpuNeurons).reduce((a, b) => a + b, 0) * (1 - gpuRatio);
      return sum + work + whole(layer.attention, attention) + whole(layer.predictor, predictor);
    },
    whole(split.head, head),
  );
}

/** 0, then whole batches from `least` on up to all `n`: the last batch may be smaller. */
function neuronOptions(n: number, least: number | null): number[] {
  const options = [0];
  if (least === null || least > n) return options;
  for (let k = Math.ceil(least / NEURON_BATCH) * NEURON_BATCH; k < n; k += NEURON_BATCH) options.push(k);
  return [...options, n];
}

/** sums[n] = x[0] + … + x[n - 1] */
export function prefixSums(x: Float64Array): Float64Array {
  const sums = new Float64Array(x.length + 1);
  for (let i = 0; i < x.length; i++) sums[i + 1] = sums[i]! + x[i]!;
  return sums;
}

/** The parts that the chosen options put on the GPU. */
export function splitOf(problem: PlacementProblem, options: readonly number[], nLayers: number): Split {
  const split = nothing(nLayers);
  for (const [g, item] of problem.items.entries()) {
    const option = options[g]!;
    if (item.part === "neurons") split.layers[item.layer]!.gpuNeurons = item.neurons[option]!;
    else if (item.part === "head") split.head = option > 0;
    else split.layers[item.layer]![item.part] = option > 0;
  }
  return split;
}

export function nothing(nLayers: number): Split {
  const layers = Array.from({ length: nLayers }, () => ({ gpuNeurons: 0, attention: false, predictor: false }));
  return { layers, head: false };
}

export function everything({ layers }: ModelCosts): Split {
  const whole = layers.map(({ order, predictor }) => ({
    gpuNeurons: order.length,
    attention: true,
    predictor: predictor > 0,
  }));
  return { layers: whole, head: true };
}

/** True for {@link everything}: no layer then waits for the CPU. */
export function isEverything(split: Split, costs: ModelCosts): boolean {
  return (
    split.head &&
    split.layers.every(
      ({ gpuNeurons, attention, predictor }, layer) =>
        gpuNeurons === costs.layers[layer]!.order.length &&
        attention &&
        (predictor || costs.layers[layer]!.predictor === 0),
    )
  );
}

/** GPU memory of a split. All zero when nothing is on the GPU. */
export function memoryOf(split: Split, costs: ModelCosts, gpu: Gpu): PlacementMemory {
  const used = split.head || split.layers.some((l) => l.gpuNeurons > 0 || l.attention || l.predictor);
  const sum = (of: (cost: LayerCosts, layer: Split["layers"][number]) => number): number =>
    costs.layers.reduce((total, cost, l) => total + of(cost, split.layers[l]!), 0);
  const parts = {
    weights:
      sum((cost, l) => l.gpuNeurons * cost.neuron + (l.attention ? cost.attention : 0)) +
      (split.head ? costs.head.bytes : 0),
    predictors: sum((cost, l) => (l.predictor ? cost.predictor : 0)),
    kv: sum((cost, l) => (l.attention ? cost.kv : 0)),
    scratch: used ? costs.scratch : 0,
    context: used ? gpu.reservedBytes : 0,
  };
  return { ...parts, total: Object.values(parts).reduce((a, b) => a + b, 0) };
}

/** Bytes of main memory that what is not on the GPU takes: weights, predictors, keys and values, and scratch. */
export function ramOf(split: Split, costs: ModelCosts): number {
  const layers = costs.layers.map((cost, l) => {
    const { gpuNeurons, attention, predictor } = split.layers[l]!;
    const neurons = (cost.order.length - gpuNeurons) * cost.neuron;
    return neurons + (attention ? 0 : cost.attention + cost.kv) + (predictor ? 0 : cost.predictor);
  });
  const head = split.head || costs.tiedHead ? 0 : costs.head.bytes;
  return layers.reduce((sum, bytes) => sum + bytes, costs.lookups + head + costs.scratch);
}

/**
 * Throws `E_BUDGET` with the numbers when the card has less than the budget, or when a budget above 0 holds not even
 * the smallest worthwhile part. Returns false when no part is worthwhile at any budget.
 */
export function checkBudget({ groups, items }: PlacementProblem, budget: number, costs: ModelCosts, gpu: Gpu): boolean {
  check(
    budget <= gpu.vramBytes,
    "E_BUDGET",
    `VRAM budget: ${gpu.name}: expected at most ${gpu.vramBytes} bytes, got ${budget}`,
  );
  const useful = groups.flatMap(({ sizes }, g) => (sizes.length > 1 ? [{ size: sizes[1]!, item: items[g]! }] : []));
  if (useful.length === 0) return false;
  const { size, item } = useful.reduce((a, b) => (b.size < a.size ? b : a));
  const needed = gpu.reservedBytes + costs.scratch + size;
  if (budget === 0 || budget >= needed) return true;
  throw new PiError(
    "E_BUDGET",
    `VRAM budget: expected 0 (CPU only) or at least ${needed} bytes (runtime context ${gpu.reservedBytes}, ` +
      `scratch ${costs.scratch}, ${describe(item)} ${size}), got ${budget}`,
  );
}

function describe(item: Item): string {
  if (item.part === "head") return "head";
  return item.part === "neurons"
    ? `${item.neurons[1]} neurons of layer ${item.layer}`
    : `${item.part} of layer ${item.layer}`;
}
