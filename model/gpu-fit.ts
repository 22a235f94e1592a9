/**
 * Fitting a split into the GPU memory that is really there, when a model is loaded: what is least worth its bytes is dropped.
 * Placement (pi place) decides with all counts and prices; here the few numbers that an artifact carries have to do, in
 * milliseconds.
 */
import type { Activity, ActivityCurve } from "../formats/activity.ts";
import type { Hardware } from "../formats/hardware.ts";
import { NEURON_BATCH, type Placement } from "../formats/placement.ts";
import type { FfnMode, GpuOptions } from "../native/index.ts";
import { DEFAULT_LAUNCH_SECONDS, KERNELS } from "./gpu-kernels.ts";
import type { LayerPartBytes, PartBytes } from "./gpu-memory.ts";

export type GpuSplit = Pick<GpuOptions, "layers" | "head">;
type GpuLayer = GpuOptions["layers"][number];

/** Steps of one layer's neurons at most: finer ones take longer to sort than they are worth. */
const MAX_BATCHES = 128;

/** Matrices that a predictor has, mostly. */
const SCORES = 2;

/** What decides how much of a part's bytes a token reads. */
export interface Known {
  parts: PartBytes;
  nNeurons: number;
  /** Absent in artifacts of earlier versions. */
  activity: Activity | undefined;
  mode: FfnMode;
  hardware: Pick<Hardware, "cpu" | "gpu" | "link">;
}

/** A part that may come after what its layer has already. */
export interface Step {
  /** -1: the head. */
  layer: number;
  part: "attention" | "ffn" | "head";
  /** The layer's FFN with this step. */
  neurons: number;
  predictor: boolean;
  /** Bytes on the GPU, and bytes that a token then reads there instead of in main memory, less what exchanges and kernels cost. */
  size: number;
  value: number;
  /** value / size */
  density: number;
}

/** What a placement puts on the GPU. Those of earlier versions had neurons there without the layer's predictor. */
export function placedOnGpu({ layers, head }: Pick<Placement, "layers" | "head">, parts: PartBytes): GpuSplit {
  return {
    layers: layers.map(({ gpuNeurons, attention, predictor }, layer) => ({
      neurons: gpuNeurons,
      attention,
      predictor: (predictor || gpuNeurons > 0) && parts.layers[layer]!.predictor > 0,
    })),
    head,
  };
}

/** All of a model. */
export function allOnGpu({ layers }: PartBytes, nNeurons: number): GpuSplit {
  return {
    layers: layers.map(({ predictor }) => ({ neurons: nNeurons, attention: true, predictor: predictor > 0 })),
    head: true,
  };
}

/**
 * The steps that lead from nothing to `split`, those that are worth most per byte first; those of one layer's FFN in order.
 * Between two batches of neurons that are hot alike it makes no difference which goes.
 */
export function stepsOf(split: GpuSplit, known: Known): Step[] {
  const { parts } = known;
  const costs = fixedBytes(known.hardware);
  const whole = (layer: number, part: "attention" | "head", size: number, read: number): Step => {
    return makeStep({ layer, part, neurons: 0, predictor: false }, size, read - costs.kernel * KERNELS[part]);
  };
  const steps = split.layers.flatMap((placed, layer) => {
    const bytes = parts.layers[layer]!;
    const { attention, kv } = bytes;
    // A context is half full on average.
    const whether = placed.attention ? [whole(layer, "attention", attention + kv, attention + kv / 2)] : [];
    return [...whether, ...ffnSteps(placed, layer, bytes, known, costs)];
  });
  if (split.head) steps.push(whole(-1, "head", parts.head, parts.head));
  return steps.sort((a, b) => b.density - a.density);
}

const makeStep = (of: Omit<Step, "size" | "value" | "density">, size: number, value: number): Step => {
  return { ...of, size, value, density: value / size };
};

/** The bytes that could be read in the time of an exchange and of a kernel, by what is gained on each that the GPU reads. */
function fixedBytes({ cpu, gpu, link }: Known["hardware"]) {
  const gain = 1 / cpu.bandwidth - (gpu ? 1 / gpu.bandwidth : 0);
  const bytes = (seconds: number): number => (gain > 0 ? seconds / gain : 0);
  return { exchange: bytes(link.syncSeconds), kernel: bytes(gpu?.launchSeconds ?? DEFAULT_LAUNCH_SECONDS) };
}

/**
 * The predictor, then neurons batch by batch; joined where a step is worth more per byte than what must come before it. Both
 * devices exchange what they have in every layer whose attention is on the GPU, and where it is not because of the FFN.
 */
function ffnSteps(
  { neurons, predictor, attention }: GpuLayer,
  layer: number,
  bytes: LayerPartBytes,
  known: Known,
  { exchange, kernel }: ReturnType<typeof fixedBytes>,
): Step[] {
  const steps: Step[] = [];
  const add = (upTo: number, size: number, value: number): void => {
    let next = makeStep({ layer, part: "ffn", neurons: upTo, predictor }, size, value);
    for (let last = steps.at(-1); last && next.density > last.density; last = steps.at(-1)) {
      next = makeStep(next, next.size + last.size, next.value + last.value);
      steps.pop();
    }
    steps.push(next);
  };
  let cost = attention ? 0 : exchange;
  if (predictor) {
    add(0, bytes.predictor, bytes.predictor - cost - kernel * SCORES * KERNELS.scores);
    cost = 0;
  }
  cost += kernel * KERNELS.neurons;
  const share = readShare(known, layer, predictor);
  const batch = NEURON_BATCH * Math.ceil(neurons / (NEURON_BATCH * MAX_BATCHES));
  for (let from = 0; from < neurons; from += batch) {
    const to = Math.min(from + batch, neurons);
    const size = (to - from) * bytes.neuron;
    add(to, size, size * share((from + to) / 2) - cost);
    cost = 0;
  }
  return steps;
}

/** Share of a neuron's bytes that a token reads, by the neuron's rank. */
function readShare({ activity, mode, nNeurons }: Known, layer: number, predictor: boolean): (rank: number) => number {
  if (mode === "dense") return () => 1;
  const curve = activity?.layers[layer];
  // Without counts: hot first is all that is known.
  const frequency = curve ? frequencyOf(curve, activity.tokens) : (rank: number) => 1 - rank / nNeurons;
  // Where no predictor says which neurons are idle, the gates of all are read: a third.
  return predictor ? frequency : (rank) => (1 + 2 * frequency(rank)) / 3;
}

/** How often a neuron of some rank fires: as often as those between two ranks of the curve on average. Ranks must not fall. */
function frequencyOf({ neurons, activations }: ActivityCurve, tokens: number): (rank: number) => number {
  let k = 1;
  return (rank) => {
    while (k < neurons.length - 1 && neurons[k]! < rank) k++;
    const fired = (activations[k]! - activations[k - 1]!) / (neurons[k]! - neurons[k - 1]!);
    return fired / Math.max(1, tokens);
  };
}

/**
 * The longest beginning of the steps that `total` allows, and what still fits of those after it. Asks for about two totals for
 * each halving of the number of steps.
 * @param total bytes of device memory that a split takes, never fewer with a step more
 */
export function fitSteps(steps: readonly Step[], nLayers: number, budget: number, total: (split: GpuSplit) => number) {
  const taken = (some: readonly Step[]): number => total(splitOfSteps(some, nLayers));
  const kept = steps.slice(
    0,
    mostThat((n) => taken(steps.slice(0, n)) <= budget, steps.length),
  );
  if (kept.length === steps.length) return splitOfSteps(kept, nLayers);
  const used = kept.length > 0 ? taken(kept) : taken(steps.slice(0, 1)) - steps[0]!.size;
  const more = smaller(steps.slice(kept.length), budget - used);
  const added = mostThat((n) => taken([...kept, ...more.slice(0, n)]) <= budget, more.length);
  return splitOfSteps([...kept, ...more.slice(0, added)], nLayers);
}

/** The smallest part that nothing must come before, alone. */
export function leastSplit(steps: readonly Step[], nLayers: number): GpuSplit {
  const first = new Map<string, Step>();
  for (const step of steps) if (!first.has(`${step.part} ${step.layer}`)) first.set(`${step.part} ${step.layer}`, step);
  return splitOfSteps([[...first.values()].reduce((a, b) => (b.size < a.size ? b : a))], nLayers);
}

/** Steps that fit in `free` bytes, in order; none of an FFN after one that does not. */
function smaller(steps: readonly Step[], free: number): Step[] {
  const stuck = new Set<number>();
  let left = free;
  return steps.filter(({ layer, part, size }) => {
    if (part === "ffn" && stuck.has(layer)) return false;
    if (size > left) {
      if (part === "ffn") stuck.add(layer);
      return false;
    }
    left -= size;
    return true;
  });
}

/** The largest n from 0 to `most` that `holds`, if that holds for all smaller ones; 0 is not asked. */
function mostThat(holds: (n: number) => boolean, most: number): number {
  if (holds(most)) return most;
  let low = 0;
  for (let high = most - 1; low < high;) {
    const middle = (low + high + 1) >> 1;
    if (holds(middle)) low = middle;
    else high = middle - 1;
  }
  return low;
}

export function splitOfSteps(steps: readonly Step[], nLayers: number): GpuSplit {
  const layers = Array.from({ length: nLayers }, () => ({ neurons: 0, attention: false, predictor: false }));
  let head = false;
  for (const { layer, part, neurons, predictor } of steps) {
    if (part === "head") head = true;
    else if (part === "attention") layers[layer]!.attention = true;
    else Object.assign(layers[layer]!, { neurons, predictor });
  }
  return { layers, head };
}
