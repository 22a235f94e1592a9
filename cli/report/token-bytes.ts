import type { PredictorMetrics } from "../../formats/predictors.ts";
import { isSparse } from "../../model/config.ts";
import { defaultKvType, kvPositionBytes } from "../../model/kv-type.ts";
import { EXACT_SHARE, hasShortlist, sketchBytes } from "../../model/shortlist.ts";
import type { FfnMode } from "../../native/index.ts";
import { ffnBytes, type NeuronBytes } from "../../train-predictor/ffn-prices.ts";
import { headBytes, layerBytes, type Contents, type Weights } from "./contents.ts";

/** What decoding one token is expected to read, by the parts of `pi bench`. */
export interface TokenBytes {
  attention: number;
  kv: number;
  predictor: number;
  ffn: number;
  head: number;
}

export interface ModeBytes {
  mode: FfnMode;
  parts: TokenBytes;
  total: number;
}

/** Tokens in the cache are taken to be half of this where no placement says how many it has room for. */
const DEFAULT_CONTEXT = 4096;

/** Tokens of context at which {@link modeBytes} counts the KV cache: half of what it has room for, its mean while it fills. */
export function cachedTokens({ contextTokens, model }: Contents): number {
  return Math.round((contextTokens ?? Math.min(model?.config.maxPositions ?? 0, DEFAULT_CONTEXT)) / 2);
}

/**
 * Expected bytes a token reads, in every mode that the model has and whose neurons are known: `exact` needs to know how
 * many neurons fire, from a profile or from what predictors were measured on. Empty without a model.
 */
export function modeBytes(contents: Contents): ModeBytes[] {
  const { model, predictors } = contents;
  if (!model) return [];
  const firing = activeShares(contents);
  const sparse = isSparse(model.config.activation) && firing;
  const modes: ModeBytes[] = [withTotal("dense", dense(model, contents))];
  if (sparse) modes.push(withTotal("exact", { ...dense(model, contents), ffn: exactFfn(model, firing) }));
  if (sparse && predictors) modes.push(withTotal("predictor", predicted(model, predictors, contents)));
  return modes;
}

function dense(model: Weights, contents: Contents): TokenBytes {
  const parts = { attention: 0, kv: kvBytes(model, cachedTokens(contents)), predictor: 0, ffn: 0, head: 0 };
  for (let layer = 0; layer < model.config.nLayers; layer++) {
    const { attention, neurons } = layerBytes(model, layer);
    parts.attention += attention;
    parts.ffn += neurons;
  }
  return { ...parts, head: headBytes(model) };
}

/** The gate rows of all neurons, and the others of those that fire. */
function exactFfn(model: Weights, firing: readonly number[]): number {
  const { nNeurons } = model.config;
  return firing.reduce((total, active, layer) => {
    const { test, rest } = neuronParts(model, layer);
    return total + nNeurons * (test + active * rest);
  }, 0);
}

function predicted(model: Weights, predictors: readonly PredictorMetrics[], contents: Contents): TokenBytes {
  const { nNeurons } = model.config;
  const parts = { ...dense(model, contents), ffn: 0, head: shortlistBytes(model) };
  for (const [layer, metrics] of predictors.entries()) {
    parts.predictor += metrics.bytes;
    parts.ffn += ffnBytes(0, nNeurons, neuronParts(model, layer), metrics);
  }
  return parts;
}

/** Bytes of a neuron of `layer`: what is read to see whether it fires, one of its three rows (two without a gate), and the rest. */
export function neuronParts(model: Weights, layer: number): NeuronBytes {
  const { nNeurons, gated } = model.config;
  const neuron = layerBytes(model, layer).neurons / nNeurons;
  const test = neuron / (gated ? 3 : 2);
  return { test, rest: neuron - test };
}

/** Share of the neurons that fire, by layer: on the profiled tokens, else on those that predictors were measured on. */
function activeShares({ activity, predictors }: Contents): number[] | undefined {
  if (activity && activity.tokens > 0) {
    return activity.layers.map(({ neurons, activations }) => {
      return activations.at(-1)! / (neurons.at(-1)! * activity.tokens);
    });
  }
  return predictors?.map(({ trueSparsity }) => 1 - trueSparsity);
}

/** Keys and values of all layers for `tokens` tokens, kept as they are unless told otherwise. */
function kvBytes({ config, dtype }: Weights, tokens: number): number {
  return config.nLayers * kvPositionBytes(defaultKvType(dtype), config) * tokens;
}

/** The head in predictor mode: where it is q8_0, a copy in q4_0 and the rows of the likeliest tokens. */
function shortlistBytes(model: Weights): number {
  const head = model.tensors.get(model.config.tiedHead ? "embed.weight" : "head.weight");
  if (!head || !hasShortlist(head.dtype, model.config.vocabSize)) return headBytes(model);
  return headBytes(model) - head.bytes + sketchBytes(head.bytes) + EXACT_SHARE * head.bytes;
}

function withTotal(mode: FfnMode, parts: TokenBytes): ModeBytes {
  return { mode, parts, total: Object.values(parts).reduce((a: number, b: number) => a + b, 0) };
}
