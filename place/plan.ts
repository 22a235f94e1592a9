import { check, PiError } from "../formats/errors.ts";
import type { Gpu, Hardware } from "../formats/hardware.ts";
import { NEURON_BATCH, type LayerPlacement, type PlacementMemory } from "../formats/placement.ts";
import type { LayerCosts, ModelCosts } from "./costs.ts";
import type { Group, Problem } from "./problem.ts";

/** Hardware with a GPU to place on. */
export type GpuHardware = Hardware & { gpu: Gpu };

/** Which parts of the model are on the GPU. */
export interface Split {
  layers: Pick<LayerPlacement, "gpuNeurons" | "attention" | "predictor">[];
  head: boolean;
}

/** Seconds saved per byte read from the GPU's memory instead of the CPU's. */
export function secondsPerByte({ cpu, gpu }: GpuHardware): number {
  return 1 / cpu.bandwidth - 1 / gpu.bandwidth;
}

/**
 * C_l of the paper: the fewest neurons whose computation on the GPU saves what handing them over costs,
 * ceil(T_sync / (M / BW_cpu - M / BW_gpu)) with M bytes a neuron. Null where the GPU is no faster.
 */
export function minimumNeurons(neuronBytes: number, hardware: GpuHardware): number | null {
  const saved = neuronBytes * secondsPerByte(hardware);
  return saved > 0 ? Math.max(1, Math.ceil(hardware.link.syncSeconds / saved)) : null;
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
 * but each must save more than one synchronisation costs.
 */
export function placementProblem(costs: ModelCosts, hardware: GpuHardware, capacity: number): PlacementProblem {
  const saving = secondsPerByte(hardware);
  const { syncSeconds } = hardware.link;
  const items: Item[] = [];
  const groups: Group[] = [];
  const addWhole = (item: Item, size: number, read: number): void => {
    const value = read * saving - syncSeconds;
    if (size <= 0 || value <= 0) return;
    items.push(item);
    groups.push({ sizes: [0, size], values: [0, value] });
  };
  for (const [layer, cost] of costs.layers.entries()) {
    const neurons = neuronOptions(cost.order.length, minimumNeurons(cost.neuron, hardware));
    items.push({ part: "neurons", layer, neurons });
    const read = prefixSums(cost.read);
    const values = neurons.map((n) => read[n]! * saving);
    groups.push({ sizes: neurons.map((n) => n * cost.neuron), values });
    addWhole({ part: "attention", layer }, cost.attention + cost.kv, cost.attention + cost.kvRead);
    addWhole({ part: "predictor", layer }, cost.predictor, cost.predictor);
  }
  addWhole({ part: "head" }, costs.head, costs.head);
  return { capacity, groups, items };
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
      sum((cost, l) => l.gpuNeurons * cost.neuron + (l.attention ? cost.attention : 0)) + (split.head ? costs.head : 0),
    predictors: sum((cost, l) => (l.predictor ? cost.predictor : 0)),
    kv: sum((cost, l) => (l.attention ? cost.kv : 0)),
    scratch: used ? costs.scratch : 0,
    context: used ? gpu.reservedBytes : 0,
  };
  return { ...parts, total: Object.values(parts).reduce((a, b) => a + b, 0) };
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
