import type { Activations, LayerActivations } from "../formats/activations.ts";
import { activityCurve } from "../formats/activity.ts";

/** How sparse and how skewed one layer is. Shares in [0, 1]. */
export interface LayerSummary {
  /** Neurons that are idle on an average token. */
  idle: number;
  /** Smallest share of the neurons that gives 80 % of all activations. */
  hot80: number;
  /** Neurons that never fired. */
  never: number;
}

export function summarise({ layers, tokens }: Activations): LayerSummary[] {
  return layers.map((layer) => summariseLayer(layer, tokens));
}

function summariseLayer({ count }: LayerActivations, tokens: number): LayerSummary {
  const { activations, hot80, never } = activityCurve(Float64Array.from(count, Number));
  const n = count.length;
  return { idle: 1 - activations.at(-1)! / (n * tokens), hot80: hot80 / n, never: never / n };
}
