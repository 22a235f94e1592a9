import type { Gpu, Hardware } from "../formats/hardware.ts";
import type { LayerPlacement } from "../formats/placement.ts";
import { DEFAULT_LAUNCH_SECONDS, KERNELS, layerKernels, type LayerOnGpu, type Norms } from "../model/gpu-kernels.ts";
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
  /** T_sync: one device gives the other something, and has its answer. */
  syncSeconds: number;
  /** What every kernel takes beside what it reads. */
  launchSeconds: number;
  norms: Norms;
}

export interface LayerPrices {
  /** Projections, and keys and values at the context that the costs are of. */
  attention: Price;
  predictor: Price;
  /** The predictor's matrices; 0 where a layer has none. */
  scores: number;
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
 * on the GPU bytes over bandwidth, and of rows picked from all over it loses as much as the CPU. What kernels and meetings cost
 * beside that depends on what lies where: {@link layerSeconds}.
 */
export function priceToken(costs: ModelCosts, hardware: GpuHardware): Prices {
  const cpu = priceOnCpu(costs, hardware.cpu);
  const onGpu = (bytes: number): number => bytes / hardware.gpu.bandwidth;
  const layers = costs.layers.map((layer, l) => {
    const { attention, predictor, neuron, neurons } = cpu.layers[l]!;
    return {
      attention: { cpu: attention, gpu: onGpu(layer.attention + layer.kvRead) },
      predictor: { cpu: predictor, gpu: onGpu(layer.predictor) },
      scores: layer.predictor > 0 ? layer.predictorRows.length : 0,
      neuron: { cpu: neuron, gpu: onGpu(layer.neuron) },
      work: prefixSums(neurons),
      waits: chancesOfAny(layer.asked),
      gpuRatio: onGpu(layer.neuron) / neuron,
    };
  });
  return {
    layers,
    head: { cpu: cpu.head, gpu: onGpu(costs.head.bytes) },
    fixed: cpu.fixed,
    syncSeconds: hardware.link.syncSeconds,
    launchSeconds: hardware.gpu.launchSeconds ?? DEFAULT_LAUNCH_SECONDS,
    norms: costs.norms,
  };
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

/** What of a layer is on the GPU. */
export type PlacedLayer = Pick<LayerPlacement, "gpuNeurons" | "attention" | "predictor">;

/** Where the FFN of a layer is computed. */
export type FfnSplit = Omit<PlacedLayer, "attention">;

/** Which parts of the model are on the GPU. */
export interface Split {
  layers: PlacedLayer[];
  head: boolean;
}

/** A layer as its kernels are counted. */
export function layerOnGpu(
  { attention, gpuNeurons, predictor }: PlacedLayer,
  { work, scores }: Pick<LayerPrices, "work" | "scores">,
): LayerOnGpu {
  const neurons = gpuNeurons === 0 ? "none" : gpuNeurons < work.length - 1 ? "some" : "all";
  return { attention, scores: predictor ? scores : 0, neurons };
}

/**
 * Seconds of a layer, from its attention until the stream is where the next layer (or the head) reads it: on the GPU if
 * `merges`. Half a synchronisation passes each time one device waits for what the other has. Both halves of an FFN begin when
 * they know what to compute: the GPU with its own scores; the host with those, which it must be told, or where nobody predicts
 * at once. On the GPU's side every kernel costs a launch.
 */
export function layerSeconds(prices: Prices, price: LayerPrices, layer: PlacedLayer, merges: boolean): number {
  const { syncSeconds: sync, launchSeconds: launch } = prices;
  const { attention, gpuNeurons, predictor } = layer;
  const { work, waits } = price;
  const kernels = layerKernels(layerOnGpu(layer, price), merges, prices.norms);
  const before = attention ? price.attention.gpu + kernels.attention * launch : price.attention.cpu;
  const asked = (predictor ? price.predictor.gpu : 0) + kernels.asked * launch;
  const onGpu = work[gpuNeurons]! * price.gpuRatio + kernels.neurons * launch;
  const onCpu = (predictor ? 0 : price.predictor.cpu) + work.at(-1)! - work[gpuNeurons]!;
  const merge = kernels.merge * launch;
  const [there, back] = [attention ? 0 : sync / 2, merges ? 0 : sync / 2];
  if (gpuNeurons === 0 && !predictor) {
    return before + (attention ? sync / 2 : 0) + asked + onCpu + merge + (merges ? sync / 2 : 0);
  }
  if (gpuNeurons === work.length - 1) return before + there + asked + onGpu + merge + back;
  if (predictor) {
    const both = expectedOfBoth(onGpu, onCpu, merges ? sync : 0, waits[gpuNeurons]!);
    return before + there + asked + both + merge + back;
  }
  if (attention === merges) {
    return (
      before + (merges ? asked + Math.max(onGpu, sync + onCpu) + merge : Math.max(sync + asked + onGpu + merge, onCpu))
    );
  }
  return before + sync / 2 + asked + Math.max(onGpu, onCpu) + merge;
}

/**
 * Expected seconds of the two halves of an FFN, of which the host's has a chance to be asked for; else the GPU goes on by itself.
 * `cpu` is expected as well, so it takes more where it is asked for, and is heard of after `wait`.
 */
function expectedOfBoth(gpu: number, cpu: number, wait: number, chance: number): number {
  return chance > 0 ? (1 - chance) * gpu + chance * Math.max(gpu, wait + cpu / chance) : gpu;
}

/** Seconds of the head, with the way to it and the token's way back; `layer`: where the stream comes from is priced there. */
export function headSeconds({ head, syncSeconds, launchSeconds }: Prices, onGpu: boolean): number {
  return onGpu ? head.gpu + KERNELS.head * launchSeconds + syncSeconds / 2 : head.cpu;
}

/** What the first layer's attention on the GPU costs besides: the stream comes from the host. */
export function entrySeconds({ syncSeconds, launchSeconds }: Prices): number {
  return syncSeconds / 2 + KERNELS.stream * launchSeconds;
}

/**
 * Decoding time of a split: the layers in turn, then the head. A token begins and ends with the CPU. A GPU that has everything
 * leaves nothing to the CPU but to ask for the token.
 */
export function tokenSeconds({ layers, head }: Split, prices: Prices): number {
  const merges = (l: number): boolean => layers[l + 1]?.attention ?? head;
  const sum = layers.reduce(
    (seconds, layer, l) => seconds + layerSeconds(prices, prices.layers[l]!, layer, merges(l)),
    headSeconds(prices, head) + (layers[0]?.attention ? entrySeconds(prices) : 0),
  );
  const used = head || layers.some((layer) => layer.attention || layer.predictor || layer.gpuNeurons > 0);
  const step = used ? KERNELS.step * prices.launchSeconds : 0;
  return sum + step + (isEverything({ layers, head }, prices) ? 0 : prices.fixed);
}

/** True for a split that leaves no part of the model to the CPU: no layer then waits for it. */
function isEverything({ layers, head }: Split, prices: Pick<Prices, "layers">): boolean {
  const all = ({ gpuNeurons, attention, predictor }: PlacedLayer, l: number): boolean => {
    const { work, scores } = prices.layers[l]!;
    return gpuNeurons === work.length - 1 && attention && (predictor || scores === 0);
  };
  return head && layers.every(all);
}
