/**
 * Checkpoints of any shape with planted activation sparsity: random weights whose FFN neurons fire for a chosen share of
 * tokens, few of them nearly always and most seldom, predictably from the FFN's normed input.
 *
 * How it is planted: BLOCK channels of the residual stream always hold 1, the next BLOCK are the signal. No attention or
 * FFN output reaches the former, and their additions to the others are small, so that the stream keeps its statistics
 * through all layers. Row i of the matrix that decides whether neuron i fires has random weights on the signal, which make
 * up nearly all of its variance; one value on the constant channels, which sets how often the sum is positive; and a little
 * noise on the other channels. Channels come in whole blocks of the quantised types, so that no scale is shared.
 */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { DTYPES, tensorBytes } from "../formats/dtypes.ts";
import { check } from "../formats/errors.ts";
import { writeSafetensors } from "../io/safetensors-file.ts";
import { readHfConfig, tensorSources } from "../model/architectures.ts";
import type { ModelConfig } from "../model/config.ts";
import { MODEL_FILE } from "../model/model-file.ts";
import { tensorSpecs } from "../model/tensors.ts";
import { native } from "../native/index.ts";
import { frequencies, Noise, normalQuantile } from "./synthetic-random.ts";

export interface SyntheticShape {
  /** Llama with a ReLU gate, or OPT: layer norms, biases and no gate. */
  family: "llama" | "opt";
  dim: number;
  nNeurons: number;
  nLayers: number;
  nHeads: number;
  nKvHeads: number;
  vocabSize: number;
  /** Mean share of neurons that fire for a token, and minus the exponent of frequency over rank. */
  active: number;
  skew: number;
}

const LLAMA = { family: "llama", vocabSize: 32_000, active: 0.1, skew: 1 } as const;

export const SHAPES = {
  "100m": { ...LLAMA, dim: 768, nNeurons: 2048, nLayers: 12, nHeads: 12, nKvHeads: 12 },
  "1.26b": { ...LLAMA, dim: 2048, nNeurons: 5632, nLayers: 22, nHeads: 32, nKvHeads: 32 },
  opt: { ...LLAMA, family: "opt", dim: 2048, nNeurons: 8192, nLayers: 12, nHeads: 32, nKvHeads: 32, active: 0.04 },
  "7b": { ...LLAMA, dim: 4096, nNeurons: 11_008, nLayers: 32, nHeads: 32, nKvHeads: 32 },
} as const satisfies Record<string, SyntheticShape>;

/** Channels that are constant, and then channels that hold the signal: one block of the quantised types each. */
export const BLOCK = DTYPES.q4_0.blockSize;

/** Standard deviation of what a gate adds to the signal's, whose is 1: what a predictor cannot know. */
export const GATE_NOISE = 0.06;

/** How large what a layer adds to the stream is, beside the stream itself. */
const UPDATE = 0.04;

/** Of the logits: sampled text is then varied, and not uniform. */
const LOGIT_SCALE = 1.5;

/** Elements that are made at a time. */
const CHUNK = 1 << 20;

/**
 * Writes a Hugging Face folder of `shape` (config.json, model.safetensors, tokenizer files) and returns the bytes of its
 * weights. The same for the same shape, type and seed. Memory is a few MB, whatever the shape. Throws `E_SHAPE`.
 */
export async function writeCheckpoint(
  folder: string,
  shape: SyntheticShape,
  { dtype = "f16", seed = 1 }: { dtype?: "f16" | "bf16" | "f32"; seed?: number } = {},
): Promise<number> {
  checkShape(shape);
  const json = configJson(shape);
  const config = readHfConfig(json, undefined, "config.json", () => undefined);
  // The architecture table says what a checkpoint calls its tensors: with every name there, the first choice of each.
  const everyName = { has: () => true } as unknown as ReadonlySet<string>;
  const sources = tensorSources(config, everyName, folder);
  const roles = new Map(tensorSpecs(config).map(({ name }) => [sources.get(name)!.name, name]));
  const tensors = [...sources.values()].map(({ name, shape: size }) => ({ name, dtype, shape: size }));

  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "config.json"), JSON.stringify(json, undefined, 2));
  await writeTokenizer(folder, shape.vocabSize);
  const planted = frequencies(shape.nNeurons, shape.active, shape.skew);
  await writeSafetensors(join(folder, MODEL_FILE), tensors, {
    metadata: () => ({ format: "pt" }),
    produce: (tensor) => {
      const role = roles.get(tensor.name)!;
      const [rows, cols = 1] = tensor.shape as [number, number?];
      return elements(fillOf(role, config, planted, new Noise(seed, role)), rows, cols, dtype);
    },
  });
  return tensors.reduce((sum, tensor) => sum + tensorBytes(dtype, tensor.shape), 0);
}

function checkShape({ family, dim, nHeads, nKvHeads, vocabSize, active }: SyntheticShape): void {
  const whole = `a multiple of ${BLOCK} of at least ${3 * BLOCK}`;
  check(dim % BLOCK === 0 && dim >= 3 * BLOCK, "E_SHAPE", `dim: expected ${whole}, got ${dim}`);
  check(dim % nHeads === 0, "E_SHAPE", `heads: expected a divisor of dim ${dim}, got ${nHeads}`);
  const grouped = family === "opt" && nKvHeads !== nHeads;
  check(!grouped, "E_SHAPE", `kv-heads: expected as many as heads ${nHeads} in opt, got ${nKvHeads}`);
  check(vocabSize >= FIRST_WORD, "E_SHAPE", `vocab: expected at least ${FIRST_WORD}, got ${vocabSize}`);
  check(active > 0 && active < 0.9, "E_SHAPE", `active: expected a share between 0 and 0.9, got ${active}`);
}

function configJson(shape: SyntheticShape): Record<string, unknown> {
  const { family, dim, nNeurons, nLayers, nHeads, nKvHeads, vocabSize } = shape;
  const common = {
    model_type: family,
    hidden_size: dim,
    num_hidden_layers: nLayers,
    num_attention_heads: nHeads,
    vocab_size: vocabSize,
    max_position_embeddings: family === "opt" ? 2048 : 4096,
    tie_word_embeddings: false, // a token tied to itself would repeat itself for ever
    bos_token_id: BOS,
    eos_token_id: EOS,
  };
  if (family === "opt") {
    const relu = { activation_function: "relu", do_layer_norm_before: true, enable_bias: true };
    return { architectures: ["OPTForCausalLM"], ...common, ...relu, ffn_dim: nNeurons, word_embed_proj_dim: dim };
  }
  const sizes = { intermediate_size: nNeurons, num_key_value_heads: nKvHeads };
  return { architectures: ["LlamaForCausalLM"], ...common, ...sizes, hidden_act: "relu", rms_norm_eps: 1e-6 };
}

/** Fills rows [first, first + out.length / cols) of a tensor. */
type Fill = (out: Float32Array, first: number, cols: number) => void;

/** The values of the tensor that becomes `role` in the split-weight layout. */
function fillOf(role: string, config: ModelConfig, planted: Float64Array, noise: Noise): Fill {
  const { dim, nHeads, headDim } = config;
  const part = role.replace(/^layers\.\d+\./, "");
  const active = planted.reduce((sum, frequency) => sum + frequency, 0);
  const normal =
    (scale: number): Fill =>
    (out) =>
      noise.normal(out, 0, out.length, scale);
  switch (part) {
    case "embed.weight":
      return embedding(config, normal(1));
    case "pos_embed.weight":
      return constantColumns(0, normal(0.05));
    case "attn.o.weight":
      return unreachedRows(normal(UPDATE / Math.sqrt(nHeads * headDim)));
    case "ffn.down_t.weight": // [dim, nNeurons] in a checkpoint; a neuron that fires does so with about 1
      return unreachedRows(normal(UPDATE / Math.sqrt(active)));
    case "attn.o.bias":
    case "ffn.down.bias":
      return unreachedRows(normal(UPDATE));
    case config.gated ? "ffn.gate.weight" : "ffn.up.weight":
      return plantedGate(noise.shuffle(planted), noise);
    case "head.weight":
      return normal(LOGIT_SCALE / Math.sqrt(dim));
  }
  if (part.endsWith("norm.weight")) return (out) => out.fill(1);
  if (part.endsWith("norm.bias")) return (out) => out.fill(0);
  return normal(part.endsWith("bias") ? GATE_NOISE / 3 : 1 / Math.sqrt(dim));
}

/** `fill`, but for the constant channels of every row. */
const constantColumns =
  (value: number, fill: Fill): Fill =>
  (out, first, cols) => {
    fill(out, first, cols);
    for (let at = 0; at < out.length; at += cols) out.fill(value, at, at + BLOCK);
  };

/** Ones and `fill`. Where norms subtract the mean, the channels without a part in the planting make it 0. */
const embedding =
  ({ norm, dim }: ModelConfig, fill: Fill): Fill =>
  (out, first, cols) => {
    constantColumns(1, fill)(out, first, cols);
    const offset = norm === "layer" ? BLOCK / (dim - 2 * BLOCK) : 0;
    for (let at = 0; at < out.length; at += cols) {
      for (let i = at + 2 * BLOCK; i < at + cols; i++) out[i]! -= offset;
    }
  };

/** `fill`, but for the rows that would write to the constant channels. */
const unreachedRows =
  (fill: Fill): Fill =>
  (out, first, cols) => {
    fill(out, first, cols);
    out.fill(0, 0, Math.max(0, BLOCK - first) * cols);
  };

/** Rows that are positive on the planted share of inputs whose channels are 1, 1, …, and then standard normal. */
const plantedGate =
  (planted: Float64Array, noise: Noise): Fill =>
  (out, first, cols) => {
    for (let at = 0; at < out.length; at += cols) {
      const [signal, rest, end] = [at + BLOCK, at + 2 * BLOCK, at + cols];
      noise.normal(out, signal, rest, 1 / Math.sqrt(BLOCK));
      noise.normal(out, rest, end, GATE_NOISE / Math.sqrt(end - rest));
      const variance = out.subarray(signal, rest).reduce((sum, weight) => sum + weight * weight, GATE_NOISE ** 2);
      const mean = Math.sqrt(variance) * normalQuantile(planted[first + at / cols]!);
      out.fill(mean / BLOCK, at, signal);
    }
  };

/** The bytes of a tensor, some rows at a time. */
async function* elements(
  fill: Fill,
  rows: number,
  cols: number,
  dtype: "f16" | "bf16" | "f32",
): AsyncGenerator<Uint8Array> {
  const rowsAtOnce = Math.max(1, Math.floor(CHUNK / cols));
  const buffer = new Float32Array(Math.min(rows, rowsAtOnce) * cols);
  const stored = new Uint8Array(tensorBytes(dtype, [buffer.length]));
  for (let first = 0; first < rows; first += rowsAtOnce) {
    const count = Math.min(rowsAtOnce, rows - first);
    const chunk = buffer.subarray(0, count * cols);
    fill(chunk, first, cols);
    const bytes = new Uint8Array(chunk.buffer, 0, chunk.byteLength);
    yield native().convertTensor(bytes, "f32", dtype, count, cols, false, stored);
  }
}

/** Begin and end of a text, then a token a byte, then words that no text is made of. */
const [BOS, EOS, FIRST_BYTE] = [0, 1, 2];
const FIRST_WORD = FIRST_BYTE + 256;

async function writeTokenizer(folder: string, vocabSize: number): Promise<void> {
  const special = ["<s>", "</s>"];
  const words = Array.from({ length: vocabSize - FIRST_WORD }, (_, i) => `Ġw${FIRST_WORD + i}`);
  const tokens = [...special, ...byteCharacters(), ...words];
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true };
  const tokenizer = {
    version: "1.0",
    added_tokens: special.map((content, id) => ({ id, content, special: true, normalized: false })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges: [] },
  };
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
  const settings = { bos_token: special[BOS], eos_token: special[EOS], add_bos_token: true };
  await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify(settings));
}

/** How byte-level tokenizers write the bytes: printable ones as they are, the others from U+0100 on. */
function byteCharacters(): string[] {
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => {
    const printable = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
    return String.fromCodePoint(printable ? byte : next++);
  });
}
