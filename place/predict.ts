import type { ModelCosts } from "./costs.ts";
import { isEverything, prefixSums, type GpuHardware, type Split } from "./plan.ts";

export interface Prediction {
  tokensPerSecond: number;
  /** Share of the expected neuron bytes that the GPU reads. */
  gpuShare: number;
  /** Per layer: share of the activations that the GPU's neurons make up. */
  impactShares: number[];
}

/**
 * Decoding speed of a split when memory is the limit: each part takes its bytes over the bandwidth of its memory; the
 * two halves of an FFN run side by side, everything else in turn; every part on the GPU that a part on the CPU waits
 * for costs a synchronisation.
 */
export function predict(split: Split, costs: ModelCosts, { cpu, gpu, link }: GpuHardware): Prediction {
  const alone = isEverything(split, costs);
  const sync = alone ? 0 : link.syncSeconds;
  const whole = (onGpu: boolean, bytes: number): number =>
    onGpu ? bytes / gpu.bandwidth + sync : bytes / cpu.bandwidth;
  let seconds = whole(split.head, costs.head) + (alone ? link.syncSeconds : 0);
  let gpuRead = 0;
  let allRead = 0;
  const impactShares = split.layers.map((layer, l) => {
    const cost = costs.layers[l]!;
    const n = cost.order.length;
    const read = prefixSums(cost.read);
    const onGpu = read[layer.gpuNeurons]!;
    const onCpu = read[n]! - onGpu;
    seconds += whole(layer.attention, cost.attention + cost.kvRead);
    if (cost.predictor > 0) seconds += whole(layer.predictor, cost.predictor);
    seconds += Math.max(onCpu / cpu.bandwidth, layer.gpuNeurons > 0 ? onGpu / gpu.bandwidth + sync : 0);
    gpuRead += onGpu;
    allRead += read[n]!;
    const impact = prefixSums(cost.frequency);
    return impact[n]! > 0 ? impact[layer.gpuNeurons]! / impact[n]! : layer.gpuNeurons / n;
  });
  return { tokensPerSecond: 1 / seconds, gpuShare: allRead > 0 ? gpuRead / allRead : 0, impactShares };
}
