import type { Activations } from "../formats/activations.ts";
import { check } from "../formats/errors.ts";
import type { PredictorMetrics } from "../formats/predictors.ts";
import { isSparse, type ModelConfig } from "../model/config.ts";
import type { ModelFile } from "../model/model-file.ts";
import { layerTensor } from "../model/tensors.ts";
import { KV_BLOCK, type FfnMode } from "../native/index.ts";

/** What the parts of a model weigh, and what a token reads of them. Bytes throughout. */
export interface ModelCosts {
  /** The FFN mode that decoding will use. */
  mode: FfnMode;
  layers: LayerCosts[];
  /** Output head and final norm, read once a token. */
  head: number;
  /** Activations of the rows in flight on the GPU. */
  scratch: number;
}

export interface LayerCosts {
  /** Neurons hottest first: the checkpoint's index of each row of the artifact. */
  order: Int32Array;
  /** Activation frequency of each, in that order. */
  frequency: Float64Array;
  /** Gate, up and down rows of one neuron, with its biases. */
  neuron: number;
  /** Expected bytes that a token reads of each neuron, in that order. */
  read: Float64Array;
  /** Attention, norms and whatever else of the layer is neither neurons nor predictor. */
  attention: number;
  /** KV cache at the full context, and the mean that a token reads of it while the context fills. */
  kv: number;
  kvRead: number;
  predictor: number;
}

/** Rows that the GPU works on at once: a prefill chunk; decoding has far fewer. */
const SCRATCH_ROWS = 64;

const NEURON_TENSORS = ["gate.weight", "up.weight", "down_t.weight", "gate.bias", "up.bias"].map(
  (part) => `ffn.${part}`,
);

/** @param contextTokens tokens of KV cache to make room for, all sequences together */
export function modelCosts(
  model: ModelFile,
  activations: Activations,
  predictors: readonly PredictorMetrics[] | undefined,
  contextTokens: number,
): ModelCosts {
  const { config } = model;
  const mode = predictors ? "predictor" : isSparse(config.activation) ? "exact" : "dense";
  const bytes = (name: string): number => model.tensors.get(name)?.bytes ?? 0;
  const kvToken = 2 * config.nKvHeads * config.headDim * (model.dtype === "f32" ? 4 : 2);
  const context = Math.ceil(contextTokens / KV_BLOCK) * KV_BLOCK;

  const layers = Array.from({ length: config.nLayers }, (_, layer): LayerCosts => {
    const { order, frequency } = hotFirst(activations, layer);
    const neurons = NEURON_TENSORS.map((part) => bytes(layerTensor(layer, part)) / config.nNeurons);
    const neuron = neurons.reduce((sum, row) => sum + row, 0);
    // Computed for every neuron, to see which are active: the gate, or without one the up projection.
    const first = bytes(layerTensor(layer, config.gated ? "ffn.gate.weight" : "ffn.up.weight")) / config.nNeurons;
    const excess = predictors ? predictedPerActive(predictors[layer]!) : 1;
    const read = frequency.map((f) => {
      if (mode === "predictor") return neuron * Math.min(1, f * excess);
      return mode === "exact" ? first + f * (neuron - first) : neuron;
    });
    return {
      order,
      frequency,
      neuron,
      read,
      attention: layerBytes(model, layer) - neuron * config.nNeurons,
      kv: kvToken * context,
      kvRead: (kvToken * context) / 2,
      predictor: predictors?.[layer]!.bytes ?? 0,
    };
  });
  const head = bytes(config.tiedHead ? "embed.weight" : "head.weight") + bytes("head.bias");
  return { mode, layers, head: head + bytes("norm.weight") + bytes("norm.bias"), scratch: scratchBytes(config) };
}

/** Neurons by activation frequency, ties by index. Throws `E_MISMATCH` when the counts are of another shape. */
function hotFirst(activations: Activations, layer: number): { order: Int32Array; frequency: Float64Array } {
  const { count } = activations.layers[layer]!;
  const counts = Float64Array.from(count, Number);
  const order = Int32Array.from(counts.keys()).sort((a, b) => counts[b]! - counts[a]! || a - b);
  const tokens = Math.max(1, activations.tokens);
  return { order, frequency: Float64Array.from(order, (neuron) => counts[neuron]! / tokens) };
}

/** Throws `E_MISMATCH` unless the counts are of as many layers and neurons as the model has. */
export function checkActivations(activations: Activations, { nLayers, nNeurons }: ModelConfig, path: string): void {
  check(
    activations.layers.length === nLayers && activations.nNeurons === nNeurons,
    "E_MISMATCH",
    () =>
      `${path}: expected ${nLayers} layers of ${nNeurons}, found ${activations.layers.length} of ${activations.nNeurons}`,
  );
}

/** How many neurons the predictor calls for each active one, on average. */
function predictedPerActive({ trueSparsity, predictedSparsity }: PredictorMetrics): number {
  return trueSparsity < 1 ? (1 - predictedSparsity) / (1 - trueSparsity) : 1;
}

function layerBytes({ tensors }: ModelFile, layer: number): number {
  const prefix = layerTensor(layer, "");
  let sum = 0;
  for (const [name, { bytes }] of tensors) if (name.startsWith(prefix)) sum += bytes;
  return sum;
}

/**
 * f32 buffers of one forward pass: residual, normed input and output, q, k, v, attention output, gate and up, logits of
 * one row.
 */
function scratchBytes({ dim, nHeads, nKvHeads, headDim, nNeurons, vocabSize }: ModelConfig): number {
  return 4 * (SCRATCH_ROWS * (3 * dim + 2 * (nHeads + nKvHeads) * headDim + 2 * nNeurons) + vocabSize);
}
