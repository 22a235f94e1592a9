import type { Gpu, Hardware } from "../formats/hardware.ts";
import { NEURON_BATCH, type PlacementMemory } from "../formats/placement.ts";
import { sumParts } from "../model/gpu-memory.ts";
import type { GpuOptions } from "../native/index.ts";
import type { ModelCosts } from "./costs.ts";
import type { Price, Split } from "./price.ts";

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

/** 0, then whole batches from `least` on up to all `n`: the last batch may be smaller. */
export function neuronOptions(n: number, least: number | null): number[] {
  const options = [0];
  if (least === null || least > n) return options;
  for (let k = Math.ceil(least / NEURON_BATCH) * NEURON_BATCH; k < n; k += NEURON_BATCH) options.push(k);
  return [...options, n];
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
