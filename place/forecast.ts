import type { Activity, ActivityCurve } from "../formats/activity.ts";
import type { Cpu } from "../formats/hardware.ts";
import type { PredictorMetrics } from "../formats/predictors.ts";
import { modelCosts, type CostModel, type CostOptions, type LayerActivity } from "./costs.ts";
import { priceOnCpu, type CpuPrices } from "./cpu-price.ts";
import { predict, type Prediction } from "./predict.ts";
import type { GpuHardware, Split } from "./price.ts";

/** An artifact, as far as its speed depends on it. */
export interface Forecastable {
  model: CostModel;
  activity: Activity | undefined;
  predictors: readonly PredictorMetrics[] | undefined;
}

/** Seconds of a token by part, as `EngineStats.bytes` has its bytes. */
export interface Forecast {
  attention: number;
  predictor: number;
  ffn: number;
  head: number;
  fixed: number;
}

/**
 * What a token of an artifact should take on this CPU alone, in the mode and at the context of `options`; null for artifacts
 * of earlier versions, which do not say how often their neurons fire.
 */
export function forecast(artifact: Forecastable, cpu: Cpu, options: Required<CostOptions>): Forecast | null {
  const { model, activity, predictors } = artifact;
  if (!activity) return null;
  const layers = activity.layers.map((curve) => spread(curve, activity.tokens));
  const prices = priceOnCpu(modelCosts(model, layers, predictors, options), cpu);
  const sum = (of: (layer: CpuPrices["layers"][number]) => number) =>
    prices.layers.reduce((seconds, layer) => seconds + of(layer), 0);
  return {
    attention: sum(({ attention }) => attention),
    predictor: sum(({ predictor }) => predictor),
    ffn: sum(({ neurons }) => neurons.reduce((a, b) => a + b, 0)),
    head: prices.head,
    fixed: prices.fixed,
  };
}

/** The same of a split: what {@link predict} says of both devices. */
export function forecastSplit(
  artifact: Forecastable,
  hardware: GpuHardware,
  split: Split,
  options: Required<CostOptions>,
): Prediction | null {
  const { model, activity, predictors } = artifact;
  if (!activity) return null;
  const layers = activity.layers.map((curve) => spread(curve, activity.tokens));
  return predict(split, modelCosts(model, layers, predictors, options), hardware);
}

/** The one of several whose token takes a middling time. */
export function medianForecast(forecasts: readonly Forecast[]): Forecast {
  return forecasts.toSorted((a, b) => tokensPerSecond(a) - tokensPerSecond(b))[forecasts.length >> 1]!;
}

/** An artifact's neurons in their order, each as active as those between two ranks of the curve are on average. */
function spread({ neurons, activations }: ActivityCurve, tokens: number): LayerActivity {
  const n = neurons.at(-1)!;
  const frequency = new Float64Array(n);
  for (let k = 1; k < neurons.length; k++) {
    const [from, to] = [neurons[k - 1]!, neurons[k]!];
    const fired = activations[k]! - activations[k - 1]!;
    if (to > from) frequency.fill(fired / (to - from) / Math.max(1, tokens), from, to);
  }
  return { order: Int32Array.from({ length: n }, (_, i) => i), frequency };
}

export const tokensPerSecond = (parts: Forecast): number => 1 / Object.values(parts).reduce((a, b) => a + b, 0);
