/**
 * A converted model as the GGUF that other engines read, so that all run the same weights. What is the same and what is
 * not: f16, q8_0 and q4_0 are GGUF's own types and copied as they are, except that
 *
 * - rows of q and k change places inside a head, from half-split to interleaved rotary embedding: same logits;
 * - llama.cpp's family wants the down projection as [dim, nNeurons]: transposed here, which is exact for floats and
 *   rounds a second time for block types, whose blocks then run along the neurons;
 * - a dense engine applies SiLU where the model has ReLU (GGUF has no key for it): same bytes, same work, other text;
 * - the vocabulary is made up: sizes count, not words;
 * - PowerInfer's predictors have no biases and one threshold for the whole model, and read the residual before the FFN's
 *   norm, where ours read the normed vector. That is the residual times a positive number if the norm's weights are ones,
 *   and so are the scores: with threshold 0 the same neurons are computed, with another one as many more or fewer as the
 *   residual's scale differs from 1. Synthetic models (bench/synthetic.ts) have a scale near 1; other predictors are refused.
 */
import { open } from "node:fs/promises";
import { DTYPES, rowBytes, type WeightDType } from "../formats/dtypes.ts";
import { check, PiError } from "../formats/errors.ts";
import { parsePredictors } from "../formats/predictors.ts";
import { readRange, readSafetensors } from "../io/safetensors-file.ts";
import type { ModelConfig } from "../model/config.ts";
import { storedTensors, type ModelFile, type StoredTensor } from "../model/model-file.ts";
import { layerTensor } from "../model/tensors.ts";
import { native } from "../native/index.ts";
import type { GgufFile, GgufTensor, GgufValue } from "./gguf-file.ts";

/** For llama.cpp, ik_llama.cpp and node-llama-cpp. Throws `E_CONFIG` for what GGUF's `llama` cannot say. */
export function denseGguf(model: ModelFile): GgufFile {
  checkArchitecture(model);
  const { nLayers } = model.config;
  const layers = Array.from({ length: nLayers }, (_, i) => [...commonLayer(model, i), transposedDown(model, i)]);
  return { magic: "GGUF", metadata: metadataOf(model.config), tensors: [...outer(model), ...layers.flat()] };
}

/** For PowerInfer, with the predictors of `path`. Throws `E_CONFIG`, and `E_PREDICTOR` for predictors it cannot run. */
export async function powerInferGguf(model: ModelFile, path: string): Promise<GgufFile> {
  checkArchitecture(model);
  const { nLayers } = model.config;
  const file = await readSafetensors(path);
  const thresholds = new Set(parsePredictors(file.metadata, path, nLayers).metrics.map(({ threshold }) => threshold));
  check(
    thresholds.size === 1,
    "E_PREDICTOR",
    `${path}: expected one threshold for all layers, found ${[...thresholds]}`,
  );
  const [threshold] = [...thresholds] as [number];
  const source = { path, tensors: storedTensors(file) };
  const layers: GgufTensor[] = [];
  for (let layer = 0; layer < nLayers; layer++) {
    const part = (name: string) => layerTensor(layer, `predictor.${name}`);
    for (const bias of ["fc1.bias", "fc2.bias"]) await checkZero(source, part(bias));
    layers.push(...commonLayer(model, layer));
    layers.push(copied(model, layerTensor(layer, "ffn.down_t.weight"), `blk.${layer}.ffn_down_t.weight`));
    for (const name of ["fc1", "fc2"]) {
      layers.push(copied(source, part(`${name}.weight`), `blk.${layer}.${name}.weight`));
    }
  }
  const metadata = { ...metadataOf(model.config), "powerinfer.sparse_threshold": { f32: threshold } };
  return { magic: "PWRI", metadata, tensors: [...outer(model), ...layers] };
}

function checkArchitecture({ path, config }: ModelFile): void {
  const { architecture, norm, position, ropeScaling, gated, bias, parallelResidual } = config;
  const plain = norm === "rms" && position === "rope" && ropeScaling === null && gated && !parallelResidual;
  check(
    plain && !Object.values(bias).includes(true),
    "E_CONFIG",
    `${path}: expected Llama's architecture without biases and rope scaling, found ${architecture}`,
  );
}

/** Embedding, final norm and head; a tied head is written out, which PowerInfer needs and costs no speed. */
function outer(model: ModelFile): GgufTensor[] {
  return [
    copied(model, "embed.weight", "token_embd.weight"),
    copied(model, "norm.weight", "output_norm.weight"),
    copied(model, model.config.tiedHead ? "embed.weight" : "head.weight", "output.weight"),
  ];
}

/** A layer without its down projection. */
function commonLayer(model: ModelFile, layer: number): GgufTensor[] {
  const { nHeads, nKvHeads } = model.config;
  const from = (part: string) => layerTensor(layer, `${part}.weight`);
  const to = (part: string) => `blk.${layer}.${part}.weight`;
  return [
    copied(model, from("attn_norm"), to("attn_norm")),
    interleaved(model, from("attn.q"), to("attn_q"), nHeads),
    interleaved(model, from("attn.k"), to("attn_k"), nKvHeads),
    copied(model, from("attn.v"), to("attn_v")),
    copied(model, from("attn.o"), to("attn_output")),
    copied(model, from("ffn_norm"), to("ffn_norm")),
    copied(model, from("ffn.gate"), to("ffn_gate")),
    copied(model, from("ffn.up"), to("ffn_up")),
  ];
}

/** A file and the tensors in it. */
interface Source {
  path: string;
  tensors: ReadonlyMap<string, StoredTensor>;
}

function stored({ path, tensors }: Source, name: string): StoredTensor {
  const tensor = tensors.get(name);
  if (!tensor) throw new PiError("E_TENSOR", `${path}: no tensor ${name}`);
  return tensor;
}

async function read(source: Source, name: string): Promise<Uint8Array> {
  const { offset, bytes } = stored(source, name);
  const file = await open(source.path, "r");
  try {
    return await readRange(file, offset, bytes, source.path);
  } finally {
    await file.close();
  }
}

function copied(source: Source, from: string, name: string): GgufTensor {
  const { dtype, shape } = stored(source, from);
  return { name, dtype, shape, bytes: () => read(source, from) };
}

function interleaved(source: Source, from: string, name: string, heads: number): GgufTensor {
  const { dtype, shape } = stored(source, from);
  const size = rowBytes(dtype, shape[1]!);
  return { name, dtype, shape, bytes: async () => interleaveRows(await read(source, from), size, shape[0]! / heads) };
}

/** In every head of `headDim` rows, row i of the first half is followed by row i of the second. */
export function interleaveRows(rows: Uint8Array, rowSize: number, headDim: number): Uint8Array {
  const out = new Uint8Array(rows.length);
  const half = headDim / 2;
  for (let row = 0; row * rowSize < rows.length; row++) {
    const [head, i] = [Math.floor(row / headDim), row % headDim];
    const to = head * headDim + (i < half ? 2 * i : 2 * (i - half) + 1);
    out.set(rows.subarray(row * rowSize, (row + 1) * rowSize), to * rowSize);
  }
  return out;
}

/** `ffn_down` [dim, nNeurons], from `down_t` [nNeurons, dim]. */
function transposedDown(model: ModelFile, layer: number): GgufTensor {
  const from = layerTensor(layer, "ffn.down_t.weight");
  const dtype = stored(model, from).dtype as WeightDType;
  const { dim, nNeurons } = model.config;
  check(
    nNeurons % DTYPES[dtype].blockSize === 0,
    "E_BLOCK",
    `${model.path}: expected nNeurons to be a multiple of ${dtype}'s block of ${DTYPES[dtype].blockSize}, found ${nNeurons}`,
  );
  const bytes = async () => {
    const values = await native().dequantize(await read(model, from), dtype, nNeurons, dim);
    return native().convertTensor(new Uint8Array(values.buffer), "f32", dtype, dim, nNeurons, true);
  };
  return { name: `blk.${layer}.ffn_down.weight`, dtype, shape: [dim, nNeurons], bytes };
}

async function checkZero(source: Source, name: string): Promise<void> {
  const bytes = await read(source, name);
  const zero = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4).every((value) => value === 0);
  check(zero, "E_PREDICTOR", `${source.path}: ${name}: expected zeros (PowerInfer's predictors have no biases)`);
}

function metadataOf(config: ModelConfig): Record<string, GgufValue> {
  const vocabulary = Array.from({ length: config.vocabSize }, (_, id) => dummyToken(id));
  return {
    "general.architecture": "llama",
    "general.name": "pi",
    "general.quantization_version": 2,
    "llama.context_length": config.maxPositions,
    "llama.embedding_length": config.dim,
    "llama.block_count": config.nLayers,
    "llama.feed_forward_length": config.nNeurons,
    "llama.rope.dimension_count": config.headDim,
    "llama.rope.freq_base": { f32: config.ropeTheta },
    "llama.attention.head_count": config.nHeads,
    "llama.attention.head_count_kv": config.nKvHeads,
    "llama.attention.layer_norm_rms_epsilon": { f32: config.normEps },
    "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": vocabulary.map(({ text }) => text),
    "tokenizer.ggml.scores": new Float32Array(config.vocabSize),
    "tokenizer.ggml.token_type": Int32Array.from(vocabulary, ({ type }) => type),
    "tokenizer.ggml.unknown_token_id": 0,
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
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
