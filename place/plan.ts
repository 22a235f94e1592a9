import { check, PiError } from "../formats/errors.ts";
import type { Gpu, Hardware } from "../formats/hardware.ts";
import { NEURON_BATCH, type LayerPlacement, type PlacementMemory } from "../formats/placement.ts";
import { sumParts } from "../model/gpu-memory.ts";
import type { GpuOptions } from "../native/index.ts";
import type { LayerCosts, ModelCosts } from "./costs.ts";
import { ffnExchanges, ffnSeconds, type FfnSplit, type LayerPrices, type Price, type Prices } from "./price.ts";
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
export function minimumNeurons(
  { cpu, gpu }: Price,
  { syncSeconds }: Pick<Hardware["link"], "syncSeconds">,
): number | null {
  return cpu > gpu ? Math.max(1, Math.ceil(syncSeconds / (cpu - gpu))) : null;
}

/** The placement problem with what its groups and options stand for. */
export interface PlacementProblem extends Problem {
  items: Item[];
}

/** What a group of the problem places: `splits[o]` is the layer's FFN as option `o` has it; others are there or not. */
type Item =
  { part: "ffn"; layer: number; splits: FfnSplit[] } | { part: "attention"; layer: number } | { part: "head" };

const NO_FFN: FfnSplit = { gpuNeurons: 0, predictor: false };

/**
 * Everything that may go to the GPU, by time saved per token: that of both sides, and what exchanges cost where attention is
 * the GPU's. The GPU computes neurons by the scores of
 * a predictor that it has itself, so a layer's FFN offers the predictor, and with it neurons in batches of 64, hottest first, at
 * least C_l of them. What is larger and saves no more is not offered. Attention (with the layer's KV cache) and the head are read whole for every token, but each
 * must save more than one synchronisation costs. `bonus` seconds are added for every byte that leaves the CPU's memory (see
 * {@link choosePlacement}), so that also parts which save no time are offered.
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
  const addWhole = (item: Item, size: number, bytes: number, { cpu, gpu }: Price): void => {
    const value = cpu - gpu - syncSeconds + bonus * bytes;
    if (size <= 0 || value <= 0) return;
    items.push(item);
    groups.push({ sizes: [0, size], values: [0, value] });
  };
  for (const [layer, cost] of costs.layers.entries()) {
    const price = prices.layers[layer]!;
    const { splits, ...group } = ffnGroup(cost, price, syncSeconds, bonus);
    items.push({ part: "ffn", layer, splits });
    groups.push(group);
    const { attention, kv } = cost;
    addWhole({ part: "attention", layer }, cost.device.attention + kv, attention + kv, price.attention);
  }
  addWhole({ part: "head" }, costs.head.device, costs.head.bytes, prices.head);
  return { capacity, groups, items };
}

/** What a layer's FFN offers, each worth more than all smaller ones. */
function ffnGroup(cost: LayerCosts, price: LayerPrices, syncSeconds: number, bonus: number) {
  const group = { splits: [NO_FFN], sizes: [0], values: [0] };
  const predictor = cost.predictor > 0;
  for (const gpuNeurons of neuronOptions(cost.order.length, minimumNeurons(price.neuron, { syncSeconds }))) {
    if (gpuNeurons === 0 && !predictor) continue;
    const split = { gpuNeurons, predictor };
    const bytes = gpuNeurons * cost.neuron + cost.predictor;
    const value = ffnSaving(price, split, syncSeconds) + bonus * bytes;
    if (value <= group.values.at(-1)!) continue;
    group.splits.push(split);
    group.sizes.push(gpuNeurons * cost.device.neuron + cost.device.predictor);
    group.values.push(value);
  }
  return group;
}

/** Against an FFN that is all the CPU's. */
function ffnSaving(price: LayerPrices, split: FfnSplit, syncSeconds: number): number {
  if (split.gpuNeurons === 0 && !split.predictor) return 0;
  return ffnSeconds(price, NO_FFN) - ffnSeconds(price, split) - syncSeconds * ffnExchanges(price, split, true);
}

/** What the parts on the GPU save per token as {@link placementProblem} counts it, without bonus. */
export function savedSeconds(split: Split, { layers, head }: Prices, { syncSeconds }: Hardware["link"]): number {
  const whole = (onGpu: boolean, { cpu, gpu }: Price): number => (onGpu ? cpu - gpu - syncSeconds : 0);
  return layers.reduce(
    (sum, prices, l) => {
      const layer = split.layers[l]!;
      return sum + ffnSaving(prices, layer, syncSeconds) + whole(layer.attention, prices.attention);
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

/** The parts that the chosen options put on the GPU. */
export function splitOf(problem: PlacementProblem, options: readonly number[], nLayers: number): Split {
  const split = nothing(nLayers);
  for (const [g, item] of problem.items.entries()) {
    const option = options[g]!;
    if (item.part === "ffn") Object.assign(split.layers[item.layer]!, item.splits[option]!);
    else if (item.part === "head") split.head = option > 0;
    else split.layers[item.layer]!.attention = option > 0;
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

/** What of the model an engine is to put on the GPU. */
export function gpuSplit({ layers, head }: Split): Pick<GpuOptions, "layers" | "head"> {
  return { layers: layers.map(({ gpuNeurons, ...parts }) => ({ neurons: gpuNeurons, ...parts })), head };
}

/** GPU memory of a split, by the sizes of its parts. All zero when nothing is on the GPU. */
export function memoryOf(split: Split, costs: ModelCosts, gpu: Gpu): PlacementMemory {
  const layers = costs.layers.map(({ device, kv }) => ({ ...device, kv }));
  const parts = { layers, head: costs.head.device, scratch: costs.scratch };
  return sumParts(gpuSplit(split), parts, gpu.reservedBytes);
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
export function checkBudget(
  { groups, items }: PlacementProblem,
  budget: number,
  { context, scratch }: Pick<PlacementMemory, "context" | "scratch">,
  gpu: Gpu,
): boolean {
  check(
    budget <= gpu.vramBytes,
    "E_BUDGET",
    `VRAM budget: ${gpu.name}: expected at most ${gpu.vramBytes} bytes, got ${budget}`,
  );
  const useful = groups.flatMap(({ sizes }, g) => (sizes.length > 1 ? [{ size: sizes[1]!, item: items[g]! }] : []));
  if (useful.length === 0) return false;
  const { size, item } = useful.reduce((a, b) => (b.size < a.size ? b : a));
  const needed = context + scratch + size;
  if (budget === 0 || budget >= needed) return true;
  throw new PiError(
    "E_BUDGET",
    `VRAM budget: expected 0 (CPU only) or at least ${needed} bytes (runtime context ${context}, ` +
      `scratch ${scratch}, ${describe(item)} ${size}), got ${budget}`,
  );
}

function describe(item: Item): string {
  if (item.part === "head") return "head";
  if (item.part === "attention") return `attention of layer ${item.layer}`;
  const { gpuNeurons, predictor } = item.splits[1]!;
  const parts = [...(gpuNeurons > 0 ? [`${gpuNeurons} neurons`] : []), ...(predictor ? ["predictor"] : [])];
  return `${parts.join(" and ")} of layer ${item.layer}`;
}
