import type { Activations } from "../formats/activations.ts";
import { check } from "../formats/errors.ts";
import type { PredictorMetrics } from "../formats/predictors.ts";
import { isSparse, type ModelConfig } from "../model/config.ts";
import type { Norms } from "../model/gpu-kernels.ts";
import { partBytes, type LayerPartBytes } from "../model/gpu-memory.ts";
import { defaultKvType, kvPositionBytes } from "../model/kv-type.ts";
import type { ModelFile, StoredTensor } from "../model/model-file.ts";
import type { Matrix } from "../model/row-prices.ts";
import { hasShortlist } from "../model/shortlist.ts";
import { layerTensor, PREDICTOR_MATRICES } from "../model/tensors.ts";
import { KV_BLOCK, type FfnMode, type KvType } from "../native/index.ts";

/** What the parts of a model weigh, in bytes, and what a token reads of them, as rows. */
export interface ModelCosts {
  /** The FFN mode that decoding will use. */
  mode: FfnMode;
  layers: LayerCosts[];
  /** Output head and final norm, read once a token; `device`: bytes in a GPU's memory. */
  head: { bytes: number; device: number; matrix: Matrix; shortlist: boolean };
  /** Keys and values: how many heads of what size and type, and the tokens of context that a token attends to. */
  kv: { type: KvType; heads: number; queries: number; headDim: number; tokens: number };
  /** Width of the stream. */
  dim: number;
  norms: Norms;
  /** Activations of the rows in flight on the GPU. */
  scratch: number;
  /** What stays with the CPU: the embedding, of which a token reads a row. With `tiedHead` it is the head as well. */
  lookups: number;
  tiedHead: boolean;
}

export interface LayerCosts {
  /** Neurons hottest first: the checkpoint's index of each row of the artifact. */
  order: Int32Array;
  /** Activation frequency of each, in that order. */
  frequency: Float64Array;
  /** Gate, up and down rows of one neuron, with its biases. */
  neuron: number;
  /** One row of each of those matrices; the first decides whether the others are wanted. */
  neuronRows: Matrix[];
  /** How often a token reads the first row of each neuron, and how often its others, in that order. */
  asked: Float64Array;
  used: Float64Array;
  /** Attention, norms and whatever else of the layer is neither neurons nor predictor. */
  attention: number;
  projections: Matrix[];
  /** KV cache at the full context, and what a token reads of it. */
  kv: number;
  kvRead: number;
  predictor: number;
  predictorRows: Matrix[];
  /** What the same parts take of a GPU's memory, whose rows are padded. */
  device: Omit<LayerPartBytes, "kv">;
}

/** How often each neuron of a layer fires, hottest first, and which it is. */
export type LayerActivity = Pick<LayerCosts, "order" | "frequency">;

export interface CostOptions {
  /** Tokens of KV cache to make room for, all sequences together. */
  contextTokens: number;
  /** Tokens that a token attends to; default: half of those, the mean while the context fills. */
  attended?: number;
  /** Default: predictor where there are any, exact where neurons idle. */
  mode?: FfnMode;
  kvType?: KvType;
}

/** A model, and in `tensors` its predictors, where it has any. */
export type CostModel = Pick<ModelFile, "config" | "dtype" | "tensors">;

export function modelCosts(
  model: CostModel,
  activity: readonly LayerActivity[],
  predictors: readonly PredictorMetrics[] | undefined,
  options: CostOptions,
): ModelCosts {
  const { config, tensors } = model;
  const mode = options.mode ?? (predictors ? "predictor" : isSparse(config.activation) ? "exact" : "dense");
  const kvType = options.kvType ?? defaultKvType(model.dtype);
  const context = Math.ceil(options.contextTokens / KV_BLOCK) * KV_BLOCK;
  const { nKvHeads, headDim } = config;
  const attended = options.attended ?? context / 2;
  const kvToken = kvPositionBytes(kvType, config);
  const device = partBytes(model, { type: kvType, blocks: context / KV_BLOCK });
  const layers = activity.map((of, layer) => {
    // An exact layer has none, in predictor mode too.
    const predictor = mode === "predictor" && predictors![layer]!.kind !== "exact" ? predictors![layer]! : undefined;
    const kv = { kv: context * kvToken, kvRead: attended * kvToken };
    const { neuron, attention, predictor: bytes } = device.layers[layer]!;
    const known = { ...readShares(of.frequency, predictor, mode), ...kv };
    return layerCosts(model, layer, of, predictor, {
      ...known,
      device: { neuron, attention, predictor: predictor ? bytes : 0 },
    });
  });
  const embed = tensors.get("embed.weight")!;
  const head = config.tiedHead ? embed : tensors.get("head.weight")!;
  const headBytes = ["head.bias", "norm.weight", "norm.bias"].reduce(
    (sum, name) => sum + bytesOf(model, name),
    head.bytes,
  );
  return {
    mode,
    layers,
    head: {
      bytes: headBytes,
      device: device.head,
      matrix: matrixOf(head),
      shortlist: mode === "predictor" && hasShortlist(head.dtype, config.vocabSize),
    },
    kv: { type: kvType, heads: nKvHeads, queries: config.nHeads / nKvHeads, headDim, tokens: attended },
    dim: config.dim,
    norms: { parallelResidual: config.parallelResidual, sharedNorm: config.sharedNorm },
    scratch: device.scratch,
    lookups: bytesOf(model, "pos_embed.weight") + embed.bytes,
    tiedHead: config.tiedHead,
  };
}

function layerCosts(
  model: CostModel,
  layer: number,
  { order, frequency }: LayerActivity,
  predictor: PredictorMetrics | undefined,
  known: Pick<LayerCosts, "asked" | "used" | "kv" | "kvRead" | "device">,
): LayerCosts {
  const { config, tensors } = model;
  const { nNeurons, gated } = config;
  const at = (part: string) => tensors.get(layerTensor(layer, part));
  const matrices = (gated ? ["gate", "up", "down_t"] : ["up", "down_t"]).map((part) => at(`ffn.${part}.weight`)!);
  const biases = ["gate", "up"].reduce((sum, part) => sum + (at(`ffn.${part}.bias`)?.bytes ?? 0), 0);
  const neuron = (matrices.reduce((sum, { bytes }) => sum + bytes, 0) + biases) / nNeurons;
  const projections = ["q", "k", "v", "o"].map((part) => at(`attn.${part}.weight`)!);
  return {
    order,
    frequency,
    ...known,
    neuron,
    neuronRows: matrices.map((tensor) => matrixOf(tensor, 1)),
    attention: layerBytes(model, layer) - neuron * nNeurons,
    projections: projections.map((tensor) => matrixOf(tensor)),
    predictor: predictor?.bytes ?? 0,
    predictorRows: PREDICTOR_MATRICES.flatMap((part) => (predictor && at(part)) ?? []).map((tensor) =>
      matrixOf(tensor),
    ),
  };
}

/** The mode's probability that a token reads a neuron's first row, and its others, of the frequency with which it fires. */
function readShares(frequency: Float64Array, predictor: PredictorMetrics | undefined, mode: FfnMode) {
  if (mode === "dense") return { asked: frequency.map(() => 1), used: frequency.map(() => 1) };
  if (!predictor) return { asked: frequency.map(() => 1), used: frequency };
  const recall = Math.min(1, predictor.recall);
  const falseRate = falsePositiveRate(predictor);
  return {
    asked: frequency.map((f) => f * recall + (1 - f) * falseRate),
    used: frequency.map((f) => f * recall),
  };
}

/** How often the predictor calls for an idle neuron, on average. */
function falsePositiveRate({ recall, trueSparsity, predictedSparsity }: PredictorMetrics): number {
  const hits = (1 - trueSparsity) * Math.min(1, recall);
  return trueSparsity > 0 ? Math.min(1, Math.max(0, (1 - predictedSparsity - hits) / trueSparsity)) : 0;
}

/** All rows of a tensor, or some. */
function matrixOf({ dtype, bytes, shape }: StoredTensor, rows = shape[0]!): Matrix {
  return { type: dtype as Matrix["type"], rows, bytes: bytes / shape[0]! };
}

/** Neurons by activation frequency, ties by index. */
export function hotFirst(activations: Activations, layer: number): LayerActivity {
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

const bytesOf = ({ tensors }: CostModel, name: string): number => tensors.get(name)?.bytes ?? 0;

/** Of a layer without its predictor. */
function layerBytes({ tensors }: CostModel, layer: number): number {
  const prefix = layerTensor(layer, "");
  const others = [`${prefix}predictor.`, `${prefix}neurons`];
  let sum = 0;
  for (const [name, { bytes }] of tensors) {
    if (name.startsWith(prefix) && !others.some((other) => name.startsWith(other))) sum += bytes;
  }
  return sum;
}
