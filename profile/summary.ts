import type { Activations, LayerActivations } from "../formats/activations.ts";

/** How sparse and how skewed one layer is. Shares in [0, 1]. */
export interface LayerSummary {
  /** Neurons that are idle on an average token. */
  idle: number;
  /** Smallest share of the neurons that gives 80 % of all activations. */
  hot80: number;
  /** Neurons that never fired. */
  never: number;
}

/** The share of activations that the hot neurons of {@link LayerSummary.hot80} give, as in the paper. */
const HOT_SHARE = 0.8;

export function summarise({ layers, tokens }: Activations): LayerSummary[] {
  return layers.map((layer) => summariseLayer(layer, tokens));
}

function summariseLayer({ count }: LayerActivations, tokens: number): LayerSummary {
  const counts = Array.from(count, Number).sort((a, b) => b - a);
  const total = counts.reduce((sum, n) => sum + n, 0);
  let hot = 0;
  for (let sum = 0; sum < HOT_SHARE * total; hot++) sum += counts[hot]!;
  return {
    idle: 1 - total / (counts.length * tokens),
    hot80: hot / counts.length,
    never: counts.filter((n) => n === 0).length / counts.length,
  };
}
