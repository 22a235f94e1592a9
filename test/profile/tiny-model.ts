/** A random ReLU model of two layers and a byte-level tokenizer, as `pi convert` would leave them in a directory. */
import { copyFile, mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { provenance } from "../../formats/provenance.ts";
import { writeSafetensors } from "../../io/safetensors-file.ts";
import type { ModelConfig } from "../../model/config.ts";
import { MODEL_FILE, weightsIdentity } from "../../model/model-file.ts";
import { tensorSpecs } from "../../model/tensors.ts";
import { normals } from "../native/planted.ts";

export const TINY: ModelConfig = {
  architecture: "llama",
  dim: 32,
  nLayers: 2,
  nHeads: 2,
  nKvHeads: 1,
  headDim: 16,
  nNeurons: 75,
  vocabSize: 330,
  maxPositions: 256,
  norm: "rms",
  normEps: 1e-5,
  position: "rope",
  ropeTheta: 10000,
  ropeScaling: null,
  gated: true,
  activation: { kind: "relu" },
  bias: { qkv: false, attnOut: false, ffn: false, head: false },
  parallelResidual: false,
  sharedNorm: false,
  tiedHead: true,
  bosToken: 0,
  eosTokens: [1],
};

const TOKENIZER = fileURLToPath(new URL("../fixtures/tokenizer/byte-level.json", import.meta.url));

/**
 * Writes the model into the new directory `dir`; another seed gives other weights, `format` another `pi.format`, `vector`
 * other elements of norms and biases than 1.
 */
export async function writeTinyModel(
  dir: string,
  { seed = 1, config = TINY, format = "model", vector = (_name: string, _index: number): number => 1 } = {},
): Promise<void> {
  await mkdir(dir, { recursive: true });
  await copyFile(TOKENIZER, join(dir, "tokenizer.json"));
  await writeFile(join(dir, "tokenizer_config.json"), JSON.stringify({ bos_token: "<s>", eos_token: "</s>" }));
  const normal = normals(seed);
  const tensors = tensorSpecs(config).map(({ name, shape }) => ({ name, dtype: "f32" as const, shape }));
  const metadata = (hashes: Map<string, string>) => {
    const table = tensors.map(({ name, dtype, shape }) => [name, { dtype, shape, sha256: hashes.get(name) }]);
    return {
      "pi.format": format,
      "pi.version": "1",
      "pi.config": JSON.stringify(config),
      "pi.dtype": "f32",
      "pi.weights": weightsIdentity(config, JSON.stringify(Object.fromEntries(table))),
      "pi.provenance": JSON.stringify(provenance("convert", {}, {})),
    };
  };
  await writeSafetensors(join(dir, MODEL_FILE), tensors, {
    metadata,
    produce: ({ name, shape }) => {
      const size = shape.reduce((a, b) => a * b, 1);
      const scale = shape.length === 1 ? 0 : 1 / Math.sqrt(shape[1]!);
      const values = Float32Array.from({ length: size }, (_, i) => (scale === 0 ? vector(name, i) : normal() * scale));
      return Promise.resolve(new Uint8Array(values.buffer));
    },
  });
}
