import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { OutputTensor } from "../io/safetensors-file.ts";
import { writeSafetensors } from "../io/safetensors-file.ts";

export interface CheckpointSize {
  dim: number;
  nNeurons: number;
  nLayers: number;
  vocabSize: number;
}

/** A Hugging Face folder of Llama's shape with pseudo-random f16 weights of ordinary size; returns the bytes of its weights. */
export async function writeLlamaCheckpoint(folder: string, size: CheckpointSize): Promise<number> {
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
  const add = (name: string, ...shape: number[]) => tensors.push({ name, dtype: "f16", shape });
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
  const noise = halfNoise(1 << 20);
  const bytesOf = ({ shape }: OutputTensor) => 2 * shape.reduce((a, b) => a * b, 1);
  await writeSafetensors(join(folder, "model.safetensors"), tensors, {
    metadata: () => ({}),
    produce: (tensor) => repeat(noise, bytesOf(tensor)),
  });
  return tensors.reduce((sum, tensor) => sum + bytesOf(tensor), 0);
}

/** `n` f16 values, |x| < 0.0625, in a fixed pseudo-random order. */
function halfNoise(n: number): Uint8Array {
  const values = new Uint16Array(n);
  let state = 1;
  for (let i = 0; i < n; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    values[i] = ((state >>> 16) & 0x8000) | ((state >>> 8) % 0x2c00);
  }
  return new Uint8Array(values.buffer);
}

async function* repeat(block: Uint8Array, bytes: number): AsyncGenerator<Uint8Array> {
  for (let left = bytes; left > 0; left -= block.length) yield block.subarray(0, Math.min(left, block.length));
}
