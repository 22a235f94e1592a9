/**
 * Predictors as PowerInfer publishes them: `model_L.pt`, a state dict of `fc1.weight` [rank, dim] and `fc2.weight`
 * [nNeurons, rank] without biases, and optionally config.json with `sparse_threshold`. score = fc2 · relu(fc1 · x), where x
 * is what the FFN's norm reads; our predictors read what it gives. For an RMS norm that is x · w / rms(x), and relu is
 * positively homogeneous, so with fc1 / w in place of fc1 all scores of a token are divided by its rms(x): which are
 * above 0 and which is above which stays the same. A layer norm also subtracts the mean, which nothing brings back.
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { check, PiError } from "../formats/errors.ts";
import { Fields } from "../formats/fields.ts";
import { sha256, sha256File } from "../io/hash.ts";
import { layerFiles } from "../io/layer-files.ts";
import { readSafetensors, readTensorBytes, type TensorFile } from "../io/safetensors-file.ts";
import { readTorchFile } from "../io/torch-file.ts";
import type { ModelFile } from "../model/model-file.ts";
import { layerTensor } from "../model/tensors.ts";
import { native, type PredictorWeights } from "../native/index.ts";

export interface PublishedPredictors {
  folder: string;
  layers: { file: TensorFile; rank: number }[];
  /** Score at or above which a neuron is active, on the scale before the norm. */
  threshold: number;
  /** sha256 by role, for the provenance. */
  hashes: Record<string, string>;
}

/** Ranks are filled up to whole blocks of the block types, with rows and columns of zeros. */
const RANK_STEP = 32;

/** Norm weights below this share of the largest let nothing of their input through that 8 or 16 bits could hold. */
const SMALLEST_WEIGHT = 2 ** -14;

/** Opens the predictors of all layers and checks that they fit `model`. Throws `E_IMPORT`, and what reading files throws. */
export async function openPublished(folder: string, model: ModelFile): Promise<PublishedPredictors> {
  const { config } = model;
  check(config.norm === "rms", "E_IMPORT", () => {
    return `${folder}: these predictors read what comes before the norm, and ${model.path} has layer norms: the mean that those subtract cannot be told from what pi's predictors read; expected a model with RMS norms (pi train-predictor without --import trains predictors for this one)`;
  });
  const hashes: Record<string, string> = {};
  const layers: PublishedPredictors["layers"] = [];
  for (const [layer, path] of (await layerFiles(folder, "model", config.nLayers)).entries()) {
    const file = await readTorchFile(path);
    layers.push({ file, rank: checkShapes(file, config.dim, config.nNeurons) });
    hashes[`predictor:${layer}`] = await sha256File(path);
  }
  const text = await readFile(join(folder, "config.json"), "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
  if (text !== undefined) hashes["predictor:config.json"] = sha256(text);
  return { folder, layers, threshold: readThreshold(text, join(folder, "config.json")), hashes };
}

const THRESHOLD = "sparse_threshold";

function readThreshold(text: string | undefined, path: string): number {
  if (text === undefined || !text.includes(`"${THRESHOLD}"`)) return 0;
  return Fields.parse(text, path, "E_IMPORT").number(THRESHOLD, -Infinity);
}

/** The rank. */
function checkShapes({ path, tensors }: TensorFile, dim: number, nNeurons: number): number {
  const found = [...tensors]
    .map(([name, { shape }]) => `${name || "a tensor"} [${shape}]`)
    .sort()
    .join(", ");
  const rank = tensors.get("fc1.weight")?.shape[0] ?? 0;
  const expected = `fc1.weight [${rank || "rank"},${dim}], fc2.weight [${nNeurons},${rank || "rank"}]`;
  check(
    rank > 0 && found === expected,
    "E_IMPORT",
    () => `${path}: expected ${expected}, found ${found.slice(0, 300)}`,
  );
  for (const [name, { dtype }] of tensors) {
    const float = dtype === "F32" || dtype === "F16" || dtype === "BF16";
    check(float, "E_IMPORT", `${path}: ${name}: expected F32, F16 or BF16, found ${dtype}`);
  }
  return rank;
}

export const paddedRank = (rank: number): number => Math.ceil(rank / RANK_STEP) * RANK_STEP;

/** The predictor of one layer for the norm's output, and how many of the norm's inputs it cannot see. */
export async function readPublished(
  { layers }: PublishedPredictors,
  layer: number,
  model: ModelFile,
): Promise<{ weights: PredictorWeights; unseen: number }> {
  const { file, rank } = layers[layer]!;
  const { dim, nNeurons, sharedNorm } = model.config;
  const norm = layerTensor(layer, `${sharedNorm ? "attn_norm" : "ffn_norm"}.weight`);
  const normWeight = await decode(await readSafetensors(model.path), norm, 1, dim);
  const fc1 = await decode(file, "fc1.weight", rank, dim);
  const fc2 = await decode(file, "fc2.weight", nNeurons, rank);
  const padded = paddedRank(rank);
  const { folded, unseen } = foldNorm(fc1, normWeight);
  const weights = {
    fc1: padded === rank ? folded : resized(folded, padded * dim),
    fc1Bias: new Float32Array(padded),
    fc2: padColumns(fc2, rank, padded),
    fc2Bias: new Float32Array(nNeurons),
  };
  return { weights, unseen };
}

async function decode(file: TensorFile, name: string, rows: number, cols: number): Promise<Float32Array> {
  const bytes = await readTensorBytes(file, name);
  const type = file.tensors.get(name)!.dtype.toLowerCase() as "f32" | "f16" | "bf16";
  const values = await native().dequantize(bytes, type, rows, cols);
  const odd = values.findIndex((value) => !Number.isFinite(value));
  if (odd >= 0)
    throw new PiError("E_IMPORT", `${file.path}: ${name}: expected numbers, found ${values[odd]} at ${odd}`);
  return values;
}

/**
 * Rows of `fc1` [rank, dim], which multiply x, as rows that multiply x · w / rms(x), all up to rms(x). Columns whose
 * weight of the norm is nothing become 0: what they read does not get through. They are counted as `unseen` if fc1
 * makes use of them.
 */
export function foldNorm(fc1: Float32Array, norm: Float32Array): { folded: Float32Array; unseen: number } {
  const dim = norm.length;
  const least = SMALLEST_WEIGHT * norm.reduce((most, w) => Math.max(most, Math.abs(w)), 0);
  const seen = Array.from(norm, (w) => w !== 0 && Math.abs(w) >= least);
  const folded = fc1.map((value, i) => (seen[i % dim] ? value / norm[i % dim]! : 0));
  const used = new Set<number>();
  fc1.forEach((value, i) => value !== 0 && !seen[i % dim] && used.add(i % dim));
  return { folded, unseen: used.size };
}

function resized(values: Float32Array, length: number): Float32Array {
  const longer = new Float32Array(length);
  longer.set(values);
  return longer;
}

/** Rows of `cols` elements with zeros after them. */
function padColumns(values: Float32Array, cols: number, padded: number): Float32Array {
  if (padded === cols) return values;
  const wider = new Float32Array((values.length / cols) * padded);
  for (let row = 0; row * cols < values.length; row++) {
    wider.set(values.subarray(row * cols, (row + 1) * cols), row * padded);
  }
  return wider;
}
