import { tokenKernels } from "../model/gpu-kernels.ts";
import type { ModelCosts } from "./costs.ts";
import {
  layerOnGpu,
  prefixSums,
  priceToken,
  tokenSeconds,
  type GpuHardware,
  type Prices,
  type Split,
} from "./price.ts";

export interface Prediction {
  tokensPerSecond: number;
  /** Share of the expected neuron work (seconds on the CPU) that the GPU does. */
  gpuShare: number;
  /** Per layer: share of the activations that the GPU's neurons make up. */
  impactShares: number[];
  /** Kernels of a token, and what they take for being kernels. */
  kernels: number;
  launchSeconds: number;
}

/** What a split should give, by {@link tokenSeconds}. */
export function predict(
  split: Split,
  costs: ModelCosts,
  hardware: GpuHardware,
  prices: Prices = priceToken(costs, hardware),
): Prediction {
  let gpuWork = 0;
  let allWork = 0;
  const impactShares = split.layers.map(({ gpuNeurons }, l) => {
    const { work } = prices.layers[l]!;
    gpuWork += work[gpuNeurons]!;
    allWork += work.at(-1)!;
    const impact = prefixSums(costs.layers[l]!.frequency);
    const all = impact.at(-1)!;
    return all > 0 ? impact[gpuNeurons]! / all : gpuNeurons / (impact.length - 1);
  });
  const layers = split.layers.map((layer, l) => layerOnGpu(layer, prices.layers[l]!));
  const kernels = tokenKernels(layers, split.head, costs.norms);
  return {
    tokensPerSecond: 1 / tokenSeconds(split, prices),
    gpuShare: allWork > 0 ? gpuWork / allWork : 0,
    impactShares,
    kernels,
    launchSeconds: kernels * prices.launchSeconds,
  };
}
