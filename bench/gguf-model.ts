/**
 * A converted model as the GGUF that other engines read, so that all run the same weights. What is the same and what is
 * not: f16, q8_0 and q4_0 are GGUF's own types and copied as they are, except that
 *
 * - rows of q and k change places inside a head where positions rotate, from half-split to interleaved: same logits;
 * - llama.cpp's family wants the down projection as [dim, nNeurons]: transposed here, which is exact for floats and
 *   rounds a second time for block types, whose blocks then run along the neurons;
 * - a dense engine applies SiLU in Llama, and GELU in OPT, which it runs as GPT-NeoX, where the model has ReLU (GGUF has no
 *   key for it), and OPT's positions are left out: same bytes, same work but for a look-up an element, other text;
 * - PowerInfer's OPT reads the embedding as its head: as many bytes if both have one type, other text;
 * - the vocabulary is made up: sizes count, not words;
 * - PowerInfer's predictors have no biases and one threshold for the whole model, and read the residual before the FFN's
 *   norm, where ours read the normed vector. That is the residual times a positive number if the norm's weights are ones
 *   and, for a layer norm, its biases and the residual's mean are 0; and so are the scores: with threshold 0 the same neurons
 *   are computed, with another one as many more or fewer as the residual's scale differs from 1. Synthetic models
 *   (bench/synthetic.ts) have a scale near 1 and a mean near 0; predictors with biases are refused.
 */
import { check, PiError } from "../formats/errors.ts";
import { parsePredictors } from "../formats/predictors.ts";
import { readSafetensors } from "../io/safetensors-file.ts";
import type { ModelConfig } from "../model/config.ts";
import { storedTensors, type ModelFile, type StoredTensor } from "../model/model-file.ts";
import { layerTensor } from "../model/tensors.ts";
import type { GgufFile, GgufTensor, GgufValue } from "./gguf-file.ts";
import { layoutOf, type GgufLayout } from "./gguf-layouts.ts";
import { copied, read } from "./gguf-tensors.ts";

/** For llama.cpp, ik_llama.cpp and node-llama-cpp. Throws `E_CONFIG` for what these cannot run. */
export function denseGguf(model: ModelFile): GgufFile {
  const layout = layoutOf(model, "dense");
  return { magic: "GGUF", metadata: metadataOf(layout, model.config), tensors: tensorsOf(layout, model) };
}

/** For PowerInfer, with the predictors of `path`. Throws `E_CONFIG`, and `E_PREDICTOR` for predictors it cannot run. */
export async function powerInferGguf(model: ModelFile, path: string): Promise<GgufFile> {
  const layout = layoutOf(model, "powerInfer");
  const { threshold, tensors } = await predictorsOf(model.config, path);
  const metadata = { ...metadataOf(layout, model.config), "powerinfer.sparse_threshold": { f32: threshold } };
  return { magic: "PWRI", metadata, tensors: [...tensorsOf(layout, model), ...tensors] };
}

function tensorsOf({ outer, layer }: GgufLayout, model: ModelFile): GgufTensor[] {
  const make = (rows: GgufLayout["layer"], prefix: string, full: (part: string) => string): GgufTensor[] =>
    rows.flatMap(([name, origin]) =>
      ["weight", "bias"].flatMap(
        (suffix) => origin(`${prefix}${name}.${suffix}`, (part) => full(`${part}.${suffix}`), model) ?? [],
      ),
    );
  const layers = Array.from({ length: model.config.nLayers }, (_, i) =>
    make(layer, `blk.${i}.`, (part) => layerTensor(i, part)),
  );
  return [...make(outer, "", (part) => part), ...layers.flat()];
}

/** PowerInfer's `fc1` and `fc2` of every layer, and the threshold of all. Throws `E_PREDICTOR`. */
async function predictorsOf(
  { nLayers }: ModelConfig,
  path: string,
): Promise<{ threshold: number; tensors: GgufTensor[] }> {
  const file = await readSafetensors(path);
  const { metrics } = parsePredictors(file.metadata, path, nLayers);
  const kinds = new Set(metrics.map(({ kind }) => kind ?? "mlp"));
  check(
    kinds.size === 1 && kinds.has("mlp"),
    "E_PREDICTOR",
    `${path}: expected predictors of kind mlp, found ${[...kinds].join(", ")}`,
  );
  const thresholds = new Set(metrics.map(({ threshold }) => threshold));
  const [threshold, another] = [...thresholds] as [number, number?];
  const found = `${path}: expected one threshold for all layers, found ${[...thresholds]}`;
  check(another === undefined, "E_PREDICTOR", found);

  const stored = storedTensors(file);
  const tensors: GgufTensor[] = [];
  for (let layer = 0; layer < nLayers; layer++) {
    for (const name of ["fc1", "fc2"]) {
      const full = (suffix: string) => layerTensor(layer, `predictor.${name}.${suffix}`);
      await checkZero(path, full("bias"), tensorOf(stored, path, full("bias")));
      tensors.push(copied(`blk.${layer}.${name}.weight`, { path }, tensorOf(stored, path, full("weight"))));
    }
  }
  return { threshold, tensors };
}

function tensorOf(tensors: ReadonlyMap<string, StoredTensor>, path: string, name: string): StoredTensor {
  const tensor = tensors.get(name);
  if (!tensor) throw new PiError("E_TENSOR", `${path}: no tensor ${name}`);
  return tensor;
}

async function checkZero(path: string, name: string, tensor: StoredTensor): Promise<void> {
  const bytes = await read(path, tensor);
  const zero = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4).every((value) => value === 0);
  check(zero, "E_PREDICTOR", `${path}: ${name}: expected zeros (PowerInfer's predictors have no biases)`);
}

function metadataOf({ architecture, keys }: GgufLayout, config: ModelConfig): Record<string, GgufValue> {
  const vocabulary = Array.from({ length: config.vocabSize }, (_, id) => dummyToken(id));
  const sizes = Object.entries({ ...sizesOf(config), ...keys }).map(
    ([key, value]) => [`${architecture}.${key}`, value] as const,
  );
  return {
    "general.architecture": architecture,
    "general.name": "pi",
    "general.quantization_version": 2,
    ...Object.fromEntries(sizes),
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": vocabulary.map(({ text }) => text),
    "tokenizer.ggml.scores": new Float32Array(config.vocabSize),
    "tokenizer.ggml.token_type": Int32Array.from(vocabulary, ({ type }) => type),
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
  };
}

function sizesOf(config: ModelConfig): Record<string, GgufValue> {
  const rope = { "rope.dimension_count": config.headDim, "rope.freq_base": { f32: config.ropeTheta } };
  return {
    context_length: config.maxPositions,
    embedding_length: config.dim,
    block_count: config.nLayers,
    feed_forward_length: config.nNeurons,
    "attention.head_count": config.nHeads,
    "attention.head_count_kv": config.nKvHeads,
    [`attention.layer_norm_${config.norm === "rms" ? "rms_" : ""}epsilon`]: { f32: config.normEps },
    ...(config.position === "rope" ? rope : {}),
  };
}

/** Loaders insist on the special tokens and on one token a byte. Types: 1 normal, 2 unknown, 3 control, 6 byte. */
function dummyToken(id: number): { text: string; type: number } {
  const special = ["<unk>", "<s>", "</s>"];
  const byte = id - special.length;
  if (byte < 0) return { text: special[id]!, type: id === 0 ? 2 : 3 };
  if (byte < 256) return { text: `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`, type: 6 };
  return { text: `t${id}`, type: 1 };
}
