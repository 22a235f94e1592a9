/**
 * What the parts of a model take of a GPU's memory: sizes to decide with. What an engine really allocates, scratch and rounding
 * included, the binding counts (`gpuMemory`).
 */
import { deviceTensorBytes } from "../formats/device-layout.ts";
import type { DType } from "../formats/dtypes.ts";
import { KV_BLOCK, type GpuMemory, type GpuOptions, type KvType } from "../native/index.ts";
import type { ModelConfig } from "./config.ts";
import { kvPositionBytes } from "./kv-type.ts";
import { layerTensor } from "./tensors.ts";

/** Rows of a step that a GPU works on at once, at least: a part of a prompt; decoding has far fewer. */
export const GPU_ROWS = 64;
/** At most: weights that are sent to the GPU for a prompt are multiplied with so many rows, and it is busy with fewer. */
const MOST_ROWS = 512;
/** Of a budget of device memory, and of a small model: what scratch may take where there are more than the fewest rows. */
const SCRATCH_SHARE = 1 / 16;

/** The most rows, a power of two, whose scratch memory leaves a budget to the weights; a function of nothing else, for it is placed with. */
export function gpuRows(config: ModelConfig, budget: number): number {
  const { dim, nHeads, nKvHeads, headDim, nNeurons, nLayers, gated } = config;
  const layer = dim * (2 * (nHeads + nKvHeads) * headDim + (gated ? 3 : 2) * nNeurons);
  const inFourBits = (nLayers * layer) / 2;
  let rows = MOST_ROWS;
  while (rows > GPU_ROWS && scratchBytes(config, rows) > SCRATCH_SHARE * Math.min(budget, inFourBits)) rows /= 2;
  return rows;
}

/** Bytes of device memory by part. */
export interface PartBytes {
  layers: LayerPartBytes[];
  /** Output head and final norm. */
  head: number;
  /** Activations of the rows in flight. */
  scratch: number;
}

export interface LayerPartBytes {
  /** Gate, up and down rows of one neuron, with its biases. */
  neuron: number;
  /** Attention, norms and whatever else of the layer is neither neurons nor predictor. */
  attention: number;
  /** Keys and values of all blocks. */
  kv: number;
  predictor: number;
}

type Tensors = ReadonlyMap<string, { dtype: DType; shape: readonly number[] }>;

/** Sizes of every part with a KV cache of `kv.blocks` blocks; scratch is an estimate for `rows` rows. */
export function partBytes(
  { config, tensors }: { config: ModelConfig; tensors: Tensors },
  kv: { type: KvType; blocks: number },
  rows = GPU_ROWS,
): PartBytes {
  const sum = (names: Iterable<string>): number => {
    let bytes = 0;
    for (const name of names) {
      const tensor = tensors.get(name);
      if (tensor) bytes += deviceTensorBytes(tensor.dtype, tensor.shape);
    }
    return bytes;
  };
  const { nLayers, nNeurons, tiedHead } = config;
  const kvBytes = kv.blocks * KV_BLOCK * kvPositionBytes(kv.type, config);
  const byLayer = tensorsByLayer(tensors.keys(), nLayers);
  const layers = Array.from({ length: nLayers }, (_, layer): LayerPartBytes => {
    const rowsOf = ["gate", "up", "down_t"].map((part) => layerTensor(layer, `ffn.${part}.weight`));
    const biases = ["gate", "up"].filter((part) => tensors.has(layerTensor(layer, `ffn.${part}.bias`)));
    return {
      neuron: sum(rowsOf) / nNeurons + biases.length * Float32Array.BYTES_PER_ELEMENT,
      attention: sum(byLayer[layer]!.others),
      kv: kvBytes,
      predictor: sum(byLayer[layer]!.predictor),
    };
  });
  const head = sum([tiedHead ? "embed.weight" : "head.weight", "head.bias", "norm.weight", "norm.bias"]);
  return { layers, head, scratch: scratchBytes(config, rows) };
}

/** Names of each layer's tensors: its predictor's, and those that are neither that nor neurons'. */
function tensorsByLayer(names: Iterable<string>, nLayers: number) {
  const layers = Array.from({ length: nLayers }, () => ({ predictor: [] as string[], others: [] as string[] }));
  for (const name of names) {
    const [, layer, part] = /^layers\.(\d+)\.(.*)$/.exec(name) ?? [];
    if (part === undefined || part === "neurons" || /^ffn\.(gate|up|down_t)\./.test(part)) continue;
    const { predictor, others } = layers[Number(layer)]!;
    (part.startsWith("predictor.") ? predictor : others).push(name);
  }
  return layers;
}

/**
 * f32 buffers of one forward pass: residual, normed input and output, q, k, v, attention output, gate and up, logits of
 * one row.
 */
function scratchBytes({ dim, nHeads, nKvHeads, headDim, nNeurons, vocabSize }: ModelConfig, rows: number): number {
  return 4 * (rows * (3 * dim + 2 * (nHeads + nKvHeads) * headDim + 2 * nNeurons) + vocabSize);
}

type GpuSplit = Pick<GpuOptions, "layers" | "head">;

/** True when a split leaves nothing for the GPU to do. */
export function isEmpty({ layers, head }: GpuSplit): boolean {
  return !head && layers.every(({ neurons, attention, predictor }) => neurons === 0 && !attention && !predictor);
}

export const NO_MEMORY: GpuMemory = { weights: 0, predictors: 0, kv: 0, scratch: 0, context: 0, total: 0 };

/** What a split takes, by the sizes of its parts; nothing where it is empty. */
export function sumParts(split: GpuSplit, parts: PartBytes, context: number): GpuMemory {
  const sum = (of: (bytes: LayerPartBytes, layer: GpuOptions["layers"][number]) => number): number =>
    parts.layers.reduce((total, bytes, l) => total + of(bytes, split.layers[l]!), 0);
  if (isEmpty(split)) return NO_MEMORY;
  const memory = {
    weights:
      sum((bytes, { neurons, attention }) => neurons * bytes.neuron + (attention ? bytes.attention : 0)) +
      (split.head ? parts.head : 0),
    predictors: sum((bytes, { predictor }) => (predictor ? bytes.predictor : 0)),
    kv: sum((bytes, { attention }) => (attention ? bytes.kv : 0)),
    scratch: parts.scratch,
    context,
  };
  return { ...memory, total: Object.values(memory).reduce((a, b) => a + b, 0) };
}
