import type { Activity } from "../../formats/activity.ts";
import type { WeightDType } from "../../formats/dtypes.ts";
import type { Placement } from "../../formats/placement.ts";
import type { PredictorMetrics, QualityReport } from "../../formats/predictors.ts";
import type { ModelConfig } from "../../model/config.ts";
import { layerTensor } from "../../model/tensors.ts";
import type { StoredTensor } from "../../model/model-file.ts";

/** What was found in the file or directory that a page is about. Everything but the name may be missing. */
export interface Contents {
  /** Name of the file or directory. */
  name: string;
  model?: Weights;
  activity?: Activity;
  predictors?: readonly PredictorMetrics[];
  quality?: QualityReport;
  placement?: Placement;
  /** Tokens of KV cache that the placement makes room for. */
  contextTokens?: number;
}

/** What pictures need to know of `model.safetensors` or of an artifact's weights. */
export interface Weights {
  config: ModelConfig;
  dtype: WeightDType;
  tensors: ReadonlyMap<string, Pick<StoredTensor, "dtype" | "shape" | "bytes">>;
}

/** Stored bytes of the parts of one layer. */
export interface LayerBytes {
  /** Attention and norms, and whatever else is neither neurons nor predictor. */
  attention: number;
  /** All rows of all neurons, with their biases. */
  neurons: number;
  predictor: number;
}

export function layerBytes({ tensors }: Weights, layer: number): LayerBytes {
  const sum = { attention: 0, neurons: 0, predictor: 0 };
  const prefix = layerTensor(layer, "");
  for (const [name, { bytes }] of tensors) {
    if (!name.startsWith(prefix)) continue;
    const part = name.slice(prefix.length);
    // The order of the neurons is not read when a token is computed.
    if (part === "neurons") continue;
    if (part.startsWith("predictor.")) sum.predictor += bytes;
    else sum[part.startsWith("ffn.") && part !== "ffn.down.bias" ? "neurons" : "attention"] += bytes;
  }
  return sum;
}

/** Output head and final norm. */
export function headBytes({ config, tensors }: Weights): number {
  const names = [config.tiedHead ? "embed.weight" : "head.weight", "head.bias", "norm.weight", "norm.bias"];
  return names.reduce((total, name) => total + (tensors.get(name)?.bytes ?? 0), 0);
}

/** All weights of the model itself: no predictors, no order of neurons. */
export function weightBytes({ tensors }: Weights): number {
  let sum = 0;
  for (const [name, { bytes }] of tensors) if (!/^layers\.\d+\.(predictor\.|neurons$)/.test(name)) sum += bytes;
  return sum;
}
