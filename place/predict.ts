import type { ModelCosts } from "./costs.ts";
import { isEverything, type Split } from "./plan.ts";
import { ffnExchanges, ffnSeconds, prefixSums, priceToken, type GpuHardware, type Prices } from "./price.ts";

export interface Prediction {
  tokensPerSecond: number;
  /** Share of the expected neuron work (seconds on the CPU) that the GPU does. */
  gpuShare: number;
  /** Per layer: share of the activations that the GPU's neurons make up. */
  impactShares: number[];
}

/**
 * Decoding speed of a split: attention and FFN of every layer in turn, the two halves of an FFN side by side
 * ({@link ffnSeconds}), which then exchange what they found. The stream is where the next layer's attention, or the head, is;
 * a token begins and ends with the CPU. Each time it crosses over takes half a synchronisation. A GPU that has everything leaves
 * nothing to the CPU but to ask for the token.
 */
export function predict(
  split: Split,
  costs: ModelCosts,
  hardware: GpuHardware,
  prices: Prices = priceToken(costs, hardware),
): Prediction {
  const { syncSeconds } = hardware.link;
  let seconds = isEverything(split, costs) ? 0 : prices.fixed;
  let gpuWork = 0;
  let allWork = 0;
  const impactShares = split.layers.map((layer, l) => {
    const { frequency } = costs.layers[l]!;
    const price = prices.layers[l]!;
    const { work } = price;
    const n = frequency.length;
    seconds += layer.attention ? price.attention.gpu : price.attention.cpu;
    seconds += ffnSeconds(price, layer) + syncSeconds * ffnExchanges(price, layer, layer.attention);
    gpuWork += work[layer.gpuNeurons]!;
    allWork += work[n]!;
    const impact = prefixSums(frequency);
    return impact[n]! > 0 ? impact[layer.gpuNeurons]! / impact[n]! : layer.gpuNeurons / n;
  });
  seconds += split.head ? prices.head.gpu : prices.head.cpu;
  seconds += (crossings(split) * syncSeconds) / 2;
  return { tokensPerSecond: 1 / seconds, gpuShare: allWork > 0 ? gpuWork / allWork : 0, impactShares };
}

/** How often the stream goes from one device to the other in a token. */
function crossings({ layers, head }: Split): number {
  const stops = [false, ...layers.map(({ attention }) => attention), head, false];
  return stops.filter((gpu, i) => i > 0 && gpu !== stops[i - 1]).length;
}
