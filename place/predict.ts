import type { ModelCosts } from "./costs.ts";
import { isEverything, prefixSums, type Split } from "./plan.ts";
import { priceToken, type GpuHardware, type Price, type Prices } from "./price.ts";

export interface Prediction {
  tokensPerSecond: number;
  /** Share of the expected neuron work (seconds on the CPU) that the GPU does. */
  gpuShare: number;
  /** Per layer: share of the activations that the GPU's neurons make up. */
  impactShares: number[];
}

/**
 * Decoding speed of a split: the two halves of an FFN run side by side, everything else in turn; every part on the GPU
 * that a part on the CPU waits for costs a synchronisation, and a GPU that has everything one for the token, of which
 * then nothing is left to the CPU but to ask for it.
 */
export function predict(
  split: Split,
  costs: ModelCosts,
  hardware: GpuHardware,
  prices: Prices = priceToken(costs, hardware),
): Prediction {
  const alone = isEverything(split, costs);
  const sync = alone ? 0 : hardware.link.syncSeconds;
  const whole = (onGpu: boolean, { cpu, gpu }: Price): number => (onGpu ? gpu + sync : cpu);
  let seconds = whole(split.head, prices.head) + (alone ? hardware.link.syncSeconds : prices.fixed);
  let gpuWork = 0;
  let allWork = 0;
  const impactShares = split.layers.map((layer, l) => {
    const { frequency, predictor } = costs.layers[l]!;
    const price = prices.layers[l]!;
    const n = frequency.length;
    const work = prefixSums(price.neurons);
    const onGpu = work[layer.gpuNeurons]!;
    seconds += whole(layer.attention, price.attention);
    if (predictor > 0) seconds += whole(layer.predictor, price.predictor);
    seconds += Math.max(work[n]! - onGpu, layer.gpuNeurons > 0 ? onGpu * price.gpuRatio + sync : 0);
    gpuWork += onGpu;
    allWork += work[n]!;
    const impact = prefixSums(frequency);
    return impact[n]! > 0 ? impact[layer.gpuNeurons]! / impact[n]! : layer.gpuNeurons / n;
  });
  return { tokensPerSecond: 1 / seconds, gpuShare: allWork > 0 ? gpuWork / allWork : 0, impactShares };
}
