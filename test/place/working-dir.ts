/** A small random model with activations and predictors, as the earlier stages would leave them in a directory. */
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { encodeActivations, type Activations } from "../../formats/activations.ts";
import type { Hardware } from "../../formats/hardware.ts";
import { predictorsMetadata, type PredictorMetrics } from "../../formats/predictors.ts";
import { provenance } from "../../formats/provenance.ts";
import { sha256 } from "../../io/hash.ts";
import { silentContext } from "../../io/progress.ts";
import { activationsPath } from "../../io/profile-files.ts";
import { readSafetensors, writeSafetensors } from "../../io/safetensors-file.ts";
import type { ModelConfig } from "../../model/config.ts";
import { allOnGpu } from "../../model/gpu-fit.ts";
import { GPU_ROWS, partBytes } from "../../model/gpu-memory.ts";
import { defaultKvType } from "../../model/kv-type.ts";
import { readModelFile, storedTensors, type StoredTensor } from "../../model/model-file.ts";
import { tensorRefs } from "../../model/open.ts";
import { predictorSpecs } from "../../model/tensors.ts";
import { KV_BLOCK, native } from "../../native/index.ts";
import { place } from "../../place/place.ts";
import { normals } from "../native/planted.ts";
import { TINY, writeTinyModel } from "../profile/tiny-model.ts";

/** Three layers of 200 neurons: three batches of 64 and one of 8. */
export const CONFIG: ModelConfig = { ...TINY, nLayers: 3, nNeurons: 200, dim: 64, nHeads: 4, nKvHeads: 2 };

const RANK = 32;
export const TOKENS = 1000;

/** A machine on which every part of so small a model is worth moving. */
export const FAST_GPU: Hardware & { gpu: NonNullable<Hardware["gpu"]> } = {
  name: "test machine",
  cpu: { bandwidth: 10e9 },
  gpu: { name: "test GPU", vramBytes: 2 ** 30, bandwidth: 500e9, reservedBytes: 1000, launchSeconds: 1e-9 },
  link: { bandwidth: 10e9, syncSeconds: 1e-7 },
  source: "made up",
};

/** How often neuron `i` of layer `l` fired: hot neurons scattered, some never, many equally often. */
export const countOf = (l: number, i: number): number =>
  Math.floor(TOKENS * ((i * 37 + l * 11) % 50 === 0 ? 0.9 : 1 / (1 + ((i * 7 + l) % 40))));

/**
 * A budget for {@link FAST_GPU} that holds this share of the converted model in `dir` and its predictors, beside everything that
 * the engine needs in any case.
 */
export async function budgetFor(dir: string, share: number, contextTokens?: number): Promise<number> {
  const model = await readModelFile(dir);
  const predictors = await readSafetensors(join(dir, "predictors.safetensors")).catch(() => undefined);
  const { config } = model;
  const scores = predictors ? storedTensors(predictors) : new Map<string, StoredTensor>();
  const kv = { type: defaultKvType(model.dtype), blocks: Math.ceil((contextTokens ?? config.maxPositions) / KV_BLOCK) };
  const parts = partBytes({ config, tensors: new Map([...model.tensors, ...scores]) }, kv);
  const { scratch, total, context } = native().gpuMemory({
    files: [model.path, ...(predictors ? [predictors.path] : [])],
    tensors: [...tensorRefs(model.tensors, 0), ...tensorRefs(scores, 1)],
    config: JSON.stringify(config),
    thresholds: new Float32Array(predictors ? config.nLayers : 0),
    threads: 1,
    kvBlocks: kv.blocks,
    kvType: kv.type,
    gpu: { ...allOnGpu(parts, config.nNeurons), vramBytes: 2 ** 40, maxRows: GPU_ROWS },
  });
  return FAST_GPU.gpu.reservedBytes + scratch + Math.ceil(share * (total - scratch - context));
}

export interface WorkingDirOptions {
  seed?: number;
  config?: ModelConfig;
  predictors?: boolean;
  /** Predictors that call one neuron in three active, always the same, with no score near the threshold. */
  decided?: boolean;
}

export async function writeWorkingDir(dir: string, options: WorkingDirOptions = {}): Promise<void> {
  const { seed = 1, config = CONFIG, predictors = true, decided = false } = options;
  await mkdir(dir, { recursive: true });
  await writeTinyModel(dir, { seed, config });
  const { weights } = await readModelFile(dir);
  await writeFile(activationsPath(dir), encodeActivations(makeActivations(config, weights)));
  if (predictors) await writePredictors(dir, config, weights, decided);
}

export function makeActivations({ nLayers, nNeurons }: ModelConfig, weights: string): Activations {
  const layers = Array.from({ length: nLayers }, (_, l) => {
    const count = BigUint64Array.from({ length: nNeurons }, (__, i) => BigInt(countOf(l, i)));
    return { count, magnitude: count.slice(), contribution: count.slice() };
  });
  const origin = provenance("profile", {}, { model: weights });
  return { layers, nNeurons, tokens: TOKENS, heldoutTokens: 0, sampleRate: 0, corpora: [], provenance: origin };
}

async function writePredictors(dir: string, config: ModelConfig, weights: string, decided: boolean): Promise<void> {
  const tensors = Array.from({ length: config.nLayers }, (_, layer) => predictorSpecs(config, layer, RANK))
    .flat()
    .map(({ name, shape }) => ({ name, shape, dtype: "f32" as const }));
  const metrics = Array.from({ length: config.nLayers }, (): PredictorMetrics => {
    const rates = { recall: 0.99, weightedRecall: 0.995, precision: 0.5, trueSparsity: 0.9, predictedSparsity: 0.8 };
    return {
      rank: RANK,
      threshold: 0.25,
      ...rates,
      bytes: 4 * (RANK * (config.dim + config.nNeurons + 1) + config.nNeurons),
    };
  });
  const activations = sha256(await readFile(activationsPath(dir)));
  const normal = normals(7);
  await writeSafetensors(join(dir, "predictors.safetensors"), tensors, {
    metadata: () =>
      predictorsMetadata({
        metrics,
        quality: {
          corpus: { sha256: "0".repeat(64), tokens: 100 },
          perplexityDense: 10,
          perplexity: 10.01,
          perplexityRatio: 1.001,
          meanKl: 1e-4,
          p99Kl: 1e-3,
          top1Agreement: 0.99,
          weightedRecall: 0.995,
        },
        provenance: provenance("train-predictor", {}, { model: weights, activations }),
      }),
    produce: ({ name, shape }) => {
      const decide = decided && name.endsWith("fc2.bias");
      const value = (i: number): number => (decide ? 1e6 * (i % 3 === 0 ? 1 : -1) : normal());
      const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, (_, i) => value(i));
      return Promise.resolve(new Uint8Array(values.buffer));
    },
  });
}

/** {@link writeWorkingDir} into `dir/model`, placed as `dir/x.pi` for `dir/hardware.json` ({@link FAST_GPU}) with about half on the GPU. */
export async function writePlaced(dir: string, model: WorkingDirOptions = {}): Promise<void> {
  await writeWorkingDir(join(dir, "model"), model);
  const hardware = join(dir, "hardware.json");
  await writeFile(hardware, JSON.stringify(FAST_GPU));
  const vram = await budgetFor(join(dir, "model"), 0.5);
  const options = { out: join(dir, "x.pi"), vram, hardware, solver: "greedy" as const };
  await place(join(dir, "model"), options, silentContext);
}
