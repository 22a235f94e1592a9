import type { Gpu, Hardware } from "../formats/hardware.ts";
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
  /** Expected CPU seconds of every neuron, hottest first: never growing. */
  neurons: Float64Array;
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
      neurons,
      gpuRatio: onGpu(layer.neuron) / neuron,
    };
  });
  return { layers, head: { cpu: cpu.head, gpu: onGpu(costs.head.bytes) }, fixed: cpu.fixed };
}
