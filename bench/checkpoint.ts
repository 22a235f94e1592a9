import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { tensorBytes } from "../formats/dtypes.ts";
import { writeSafetensors, type OutputTensor } from "../io/safetensors-file.ts";

export interface CheckpointSize {
  dim: number;
  nNeurons: number;
  nLayers: number;
  vocabSize: number;
}

/** A Hugging Face folder of Llama's shape with pseudo-random weights below 1/16; returns the bytes of its weights. */
export async function writeLlamaCheckpoint(
  folder: string,
  size: CheckpointSize,
  dtype: "f16" | "f32" = "f16",
): Promise<number> {
  const { dim, nNeurons, nLayers, vocabSize } = size;
  const config = {
    model_type: "llama",
    hidden_act: "relu",
    hidden_size: dim,
    intermediate_size: nNeurons,
    num_hidden_layers: nLayers,
    num_attention_heads: dim / 64,
    vocab_size: vocabSize,
    tie_word_embeddings: false,
  };
  const tensors: OutputTensor[] = [];
  const add = (name: string, ...shape: number[]) => tensors.push({ name, dtype, shape });
  add("model.embed_tokens.weight", vocabSize, dim);
  for (let layer = 0; layer < nLayers; layer++) {
    const at = `model.layers.${layer}`;
    add(`${at}.input_layernorm.weight`, dim);
    for (const part of ["q", "k", "v", "o"]) add(`${at}.self_attn.${part}_proj.weight`, dim, dim);
    add(`${at}.post_attention_layernorm.weight`, dim);
    for (const part of ["gate", "up"]) add(`${at}.mlp.${part}_proj.weight`, nNeurons, dim);
    add(`${at}.mlp.down_proj.weight`, dim, nNeurons);
  }
  add("model.norm.weight", dim);
  add("lm_head.weight", vocabSize, dim);

  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
  const block = noise(1 << 20, dtype);
  await writeSafetensors(join(folder, "model.safetensors"), tensors, {
    metadata: () => ({}),
    produce: (tensor) => repeat(block, tensorBytes(dtype, tensor.shape)),
  });
  return tensors.reduce((sum, { shape }) => sum + tensorBytes(dtype, shape), 0);
}

/** `n` values, |x| < 1/16, in a fixed pseudo-random order: sign and fraction are random, and most of the exponent. */
function noise(n: number, dtype: "f16" | "f32"): Uint8Array {
  const values = dtype === "f16" ? new Uint16Array(n) : new Uint32Array(n);
  const [sign, below] = dtype === "f16" ? [0x8000, 0x2c00] : [0x80000000, 0x3d800000];
  let state = 1;
  for (let i = 0; i < n; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    values[i] = ((state & 0x80000000) === 0 ? 0 : sign) + ((state >>> 1) % below);
  }
  return new Uint8Array(values.buffer);
}

async function* repeat(block: Uint8Array, bytes: number): AsyncGenerator<Uint8Array> {
  for (let left = bytes; left > 0; left -= block.length) yield block.subarray(0, Math.min(left, block.length));
}
