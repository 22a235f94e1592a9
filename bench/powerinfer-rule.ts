/**
 * How PowerInfer (2025) decides what goes to the GPU, as a rule to compare with; written from its description, none of its
 * code. Whole parts in a fixed order while they fit: attention, predictors, head (each with what belongs to it, so the KV
 * cache goes with its attention, which is kinder than the original). Only when all of that fits, neurons: as many as a
 * formula over the FFN's width allows, groups of 256 of a layer hottest first, by the activations that a group counts. Its
 * integer program has no other constraint that binds, so its optimum is the global greedy choice, which this makes.
 */
import type { ModelCosts } from "../place/costs.ts";
import { nothing } from "../place/plan.ts";
import type { Split } from "../place/price.ts";

const GROUP = 256;

/** Neurons that the formula lets `budget` bytes hold. Slices are of the FFN's width, where a neuron is of the stream's. */
export function neuronCap(
  budget: number,
  { nNeurons, gated, bytes }: { nNeurons: number; gated: boolean; bytes: number },
) {
  const slice = nNeurons * bytes * (gated ? 4.5 : 2);
  return Math.floor(budget / slice) * 4;
}

/** The split by that rule; `bytes` is what an element of an FFN row takes. */
export function powerInferSplit(costs: ModelCosts, capacity: number, bytes: number): Split {
  const split = nothing(costs.layers.length);
  let free = capacity;
  const take = (size: number): boolean => {
    if (size > free) return false;
    free -= size;
    return true;
  };
  costs.layers.forEach(({ attention, kv }, l) => (split.layers[l]!.attention = take(attention + kv)));
  costs.layers.forEach(({ predictor }, l) => (split.layers[l]!.predictor = take(predictor)));
  split.head = take(costs.head.bytes);
  if (!split.head || split.layers.some(({ attention, predictor }) => !attention || !predictor)) return split;
  const { order, neuronRows, neuron } = costs.layers[0]!;
  const cap = neuronCap(free, { nNeurons: order.length, gated: neuronRows.length === 3, bytes });
  const groups = costs.layers.flatMap(({ frequency }, layer) =>
    Array.from({ length: Math.floor(frequency.length / GROUP) }, (_, g) => ({
      layer,
      count: frequency.subarray(g * GROUP, (g + 1) * GROUP).reduce((a, b) => a + b, 0),
    })),
  );
  groups.sort((a, b) => b.count - a.count);
  // Never more than fits, which the formula does not promise.
  const most = Math.floor(Math.min(cap, free / neuron) / GROUP);
  for (const { layer } of groups.slice(0, most)) split.layers[layer]!.gpuNeurons += GROUP;
  return split;
}
