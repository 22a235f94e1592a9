import type { Gpu, Hardware } from "../formats/hardware.ts";
import type { LayerPlacement } from "../formats/placement.ts";
import type { ModelCosts } from "./costs.ts";
import { priceOnCpu } from "./cpu-price.ts";

/** Hardware with a GPU to place on. */
export type GpuHardware = Hardware & { gpu: Gpu };

/** Seconds that a part of a token takes on either side. */
export interface Price {
  cpu: number;
  gpu: number;
}

/** A token's seconds by part. */
export interface Prices {
  layers: LayerPrices[];
  head: Price;
  /** What the CPU does whatever is placed: crossings, norms, waits, choosing the token. */
  fixed: number;
}

export interface LayerPrices {
  /** Projections, and keys and values at the context that the costs are of. */
  attention: Price;
  predictor: Price;
  /** One neuron read whole. */
  neuron: Price;
  /** Expected CPU seconds of the hottest neurons, by how many: [n + 1], from 0 on. */
  work: Float64Array;
  /** Chance that a token asks for any of the neurons that come after so many: [n + 1], to 0. */
  waits: Float64Array;
  /** Seconds on the GPU for a second of that on the CPU. */
  gpuRatio: number;
}

/**
 * Prices every part of a token. On the CPU rows cost what the machine's loops were measured to take ({@link priceOnCpu});
 * on the GPU bytes over bandwidth, and of rows picked from all over it loses as much as the CPU.
 */
export function priceToken(costs: ModelCosts, hardware: GpuHardware): Prices {
  const cpu = priceOnCpu(costs, hardware.cpu);
  const onGpu = (bytes: number): number => bytes / hardware.gpu.bandwidth;
  const layers = costs.layers.map((layer, l) => {
    const { attention, predictor, neuron, neurons } = cpu.layers[l]!;
    return {
      attention: { cpu: attention, gpu: onGpu(layer.attention + layer.kvRead) },
      predictor: { cpu: predictor, gpu: onGpu(layer.predictor) },
      neuron: { cpu: neuron, gpu: onGpu(layer.neuron) },
      work: prefixSums(neurons),
      waits: chancesOfAny(layer.asked),
      gpuRatio: onGpu(layer.neuron) / neuron,
    };
  });
  return { layers, head: { cpu: cpu.head, gpu: onGpu(costs.head.bytes) }, fixed: cpu.fixed };
}

/** sums[n] = x[0] + … + x[n - 1] */
export function prefixSums(x: Float64Array): Float64Array {
  const sums = new Float64Array(x.length + 1);
  for (let i = 0; i < x.length; i++) sums[i + 1] = sums[i]! + x[i]!;
  return sums;
}

/** any[n]: chance that one of p[n], p[n + 1], … comes true, independently of the others. */
function chancesOfAny(p: Float64Array): Float64Array {
  const any = new Float64Array(p.length + 1);
  for (let n = p.length - 1, none = 1; n >= 0; n--) any[n] = 1 - (none *= 1 - p[n]!);
  return any;
}

/** Where the FFN of a layer is computed. */
export type FfnSplit = Pick<LayerPlacement, "gpuNeurons" | "predictor">;

/**
 * Seconds of a layer's FFN and its predictor, exchanges left out. The GPU scores all neurons and then computes its own, while
 * the CPU waits for the scores and then computes the others.
 */
export function ffnSeconds({ predictor, work, gpuRatio }: LayerPrices, split: FfnSplit): number {
  const onGpu = work[split.gpuNeurons]!;
  return (split.predictor ? predictor.gpu : predictor.cpu) + Math.max(onGpu * gpuRatio, work.at(-1)! - onGpu);
}

/**
 * How often, in a token, the devices tell each other what a layer's FFN reads and what it gives. Where attention is the
 * GPU's, whenever a neuron of the CPU is asked for; where it is the CPU's, always, unless the GPU has nothing to do.
 */
export function ffnExchanges({ waits }: LayerPrices, split: FfnSplit, attention: boolean): number {
  if (attention) return waits[split.gpuNeurons]!;
  return split.gpuNeurons > 0 || split.predictor ? 1 : 0;
}
