import type { LayerCosts, ModelCosts } from "./costs.ts";
import { minimumNeurons, neuronOptions, nothing } from "./plan.ts";
import { entrySeconds, headSeconds, layerSeconds, tokenSeconds } from "./price.ts";
import type { FfnSplit, LayerPrices, Prices, Split } from "./price.ts";
import { KERNELS } from "../model/gpu-kernels.ts";
import type { Group, Problem } from "./problem.ts";

/**
 * The placement problem: a token walks through the layers, and what a layer costs depends on the side its attention is on and
 * on the side where the stream goes on. A side is 0 for the CPU and 1 for the GPU. `size` is bytes on the GPU, `bytes` what
 * leaves the CPU's memory.
 */
export interface Chain {
  layers: ChainLayer[];
  head: { size: number; bytes: number; seconds: readonly [number, number] };
  /** Seconds that the first layer's attention costs on the GPU besides. */
  entry: number;
  /** Seconds of whatever is placed, and of a token with nothing on the GPU. */
  rest: number;
  nothing: number;
}

export interface ChainLayer {
  /** Attention and its KV cache. */
  attention: { size: number; bytes: number };
  /** What of the FFN may be there, by growing size: first nothing; the predictor; with it at least C_l neurons. */
  splits: FfnSplit[];
  sizes: number[];
  bytes: number[];
  /** Of the whole layer, by the sides of its attention and of what comes next, and by the FFN's option. */
  seconds: Sides<Float64Array>;
}

/** By two sides. */
export type Sides<T> = readonly [readonly [T, T], readonly [T, T]];

export const SIDES = [0, 1] as const;
export type Side = (typeof SIDES)[number];

const bySides = <T>(of: (from: Side, to: Side) => T): Sides<T> => [
  [of(0, 0), of(0, 1)],
  [of(1, 0), of(1, 1)],
];

/** Everything that may go to the GPU. The GPU computes neurons by the scores of a predictor that it has itself. */
export function placementChain(costs: ModelCosts, prices: Prices): Chain {
  const { head } = costs;
  return {
    layers: costs.layers.map((cost, l) => chainLayer(cost, prices, prices.layers[l]!)),
    head: { size: head.device, bytes: head.bytes, seconds: [headSeconds(prices, false), headSeconds(prices, true)] },
    entry: entrySeconds(prices),
    rest: prices.fixed + KERNELS.step * prices.launchSeconds,
    nothing: tokenSeconds(nothing(costs.layers.length), prices),
  };
}

function chainLayer(cost: LayerCosts, prices: Prices, price: LayerPrices): ChainLayer {
  const predictor = cost.predictor > 0;
  const counts = neuronOptions(cost.order.length, minimumNeurons(price.neuron, prices));
  const some = counts.filter((n) => n > 0 || predictor).map((gpuNeurons) => ({ gpuNeurons, predictor }));
  const splits: FfnSplit[] = [{ gpuNeurons: 0, predictor: false }, ...some];
  return {
    attention: { size: cost.device.attention + cost.kv, bytes: cost.attention + cost.kv },
    splits,
    sizes: splits.map((split) => gpuBytes(split, cost)),
    bytes: splits.map((split) => split.gpuNeurons * cost.neuron + (split.predictor ? cost.predictor : 0)),
    seconds: bySides((from, to) =>
      Float64Array.from(splits, (split) => layerSeconds(prices, price, { ...split, attention: from === 1 }, to === 1)),
    ),
  };
}

/** The same chain with `bonus` seconds less for every byte that leaves the CPU's memory. */
export function withBonus(chain: Chain, bonus: number): Chain {
  const { bytes, seconds } = chain.head;
  const layers = chain.layers.map((layer) => ({
    ...layer,
    seconds: bySides((from, to) =>
      layer.seconds[from][to].map((s, o) => s - bonus * (layer.bytes[o]! + from * layer.attention.bytes)),
    ),
  }));
  return { ...chain, layers, head: { ...chain.head, seconds: [seconds[0], seconds[1] - bonus * bytes] } };
}

const gpuBytes = ({ gpuNeurons, predictor }: FfnSplit, { device }: LayerCosts): number =>
  gpuNeurons * device.neuron + (predictor ? device.predictor : 0);

/** Where attention of every layer is, and the head last. */
export type Course = readonly Side[];

/** With all attention where a course says, the FFNs are what is left to choose. */
export interface CourseProblem extends Problem {
  /** Of each group's options, which of its layer's. */
  offered: number[][];
  /** Seconds with no FFN on the GPU. */
  seconds: number;
}

/** FFNs beside a course, each worth more than all smaller ones; null where the course alone does not fit. */
export function courseProblem(chain: Chain, course: Course, capacity: number): CourseProblem | null {
  const free = capacity - courseBytes(chain, course);
  if (free < 0) return null;
  const offered: number[][] = [];
  let seconds = courseSeconds(chain, course);
  const groups = chain.layers.map(({ sizes, seconds: bySide }, l): Group => {
    const of = bySide[course[l]!][course[l + 1]!];
    const group: Group = { sizes: [0], values: [0] };
    const kept = [0];
    for (let o = 1; o < sizes.length; o++) {
      if (of[0]! - of[o]! <= group.values.at(-1)!) continue;
      kept.push(o);
      group.sizes.push(sizes[o]!);
      group.values.push(of[0]! - of[o]!);
    }
    offered.push(kept);
    seconds += of[0]!;
    return group;
  });
  return { capacity: free, groups, offered, seconds };
}

/** Bytes of the attention and the head that a course has on the GPU. */
export function courseBytes({ layers, head }: Chain, course: Course): number {
  return layers.reduce((sum, { attention }, l) => sum + course[l]! * attention.size, course.at(-1)! * head.size);
}

/** Seconds of all but the layers. */
const courseSeconds = ({ head, entry, rest }: Chain, course: Course): number =>
  rest + head.seconds[course.at(-1)!] + (course.length > 1 ? course[0]! * entry : 0);

/** The split of a course with these options of its problem. */
export function splitOf(
  { layers }: Chain,
  course: Course,
  { offered }: Pick<CourseProblem, "offered">,
  options: readonly number[],
): Split {
  return {
    layers: layers.map(({ splits }, l) => ({
      attention: course[l] === 1,
      ...splits[offered[l]![options[l]!]!]!,
    })),
    head: course.at(-1) === 1,
  };
}
