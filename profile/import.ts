/** `pi profile --import`: activation counts as PowerInfer publishes them become activations.arrow. */
import type { Activations, LayerActivations } from "../formats/activations.ts";
import { check, PiError } from "../formats/errors.ts";
import { provenance, sameProvenance } from "../formats/provenance.ts";
import { sha256File } from "../io/hash.ts";
import { layerFiles } from "../io/layer-files.ts";
import { activationsPath, readActivations } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { readTensorBytes } from "../io/safetensors-file.ts";
import { ONLY_TENSOR, readTorchFile } from "../io/torch-file.ts";
import { readModelFile, type ModelFile } from "../model/model-file.ts";
import { native } from "../native/index.ts";
import { ProfileOutput } from "./output.ts";
import type { ProfileResult } from "./profile.ts";

export interface ImportActivationsOptions {
  /** Holds `activation_L.pt`, one a layer: how often each neuron fired, [nNeurons] of whole numbers of any type. */
  import: string;
  /** How many tokens were counted. Default: the highest count, which is the least there can have been. */
  tokens?: number;
  /** Where activations.arrow goes; default: the model's directory. */
  out?: string;
  /** Import again even if the output is up to date. */
  force?: boolean;
}

/**
 * Writes activations.arrow for the model in `dir` from counts that were made elsewhere. What they do not say is left at
 * zero: magnitudes, contributions, held-out tokens, corpora; samples of an earlier profile go away with its counts. Throws
 * `E_IMPORT` for files of another number of layers or neurons or of other values than counts, and what reading them throws.
 */
export async function importActivations(
  dir: string,
  options: ImportActivationsOptions,
  context: StageContext,
): Promise<ProfileResult> {
  const model = await readModelFile(dir);
  check(model.format === "model", "E_FORMAT", `${model.path}: expected a converted model, found an artifact`);
  const paths = await layerFiles(options.import, "activation", model.config.nLayers);
  const hashes: [string, string][] = [];
  for (const [layer, path] of paths.entries()) hashes.push([`activation:${layer}`, await sha256File(path)]);
  const inputs = { model: model.weights, ...Object.fromEntries(hashes) };
  const origin = provenance("profile", { imported: true, tokens: options.tokens ?? null }, inputs);

  const out = options.out ?? dir;
  const existing = options.force ? undefined : await readActivations(activationsPath(out)).catch(() => undefined);
  if (existing && sameProvenance(existing.provenance, origin)) {
    return { activations: existing, upToDate: true, tokensPerSecond: 0 };
  }
  const layers = await readLayers(paths, model, context);
  const tokens = countedTokens(layers, options, context);
  const { nNeurons } = model.config;
  const activations: Activations = {
    layers,
    nNeurons,
    tokens,
    heldoutTokens: 0,
    sampleRate: 0,
    corpora: [],
    provenance: origin,
  };
  await ProfileOutput.write(out, [], () => Promise.resolve({ activations }));
  return { activations, upToDate: false, tokensPerSecond: 0 };
}

async function readLayers(
  paths: readonly string[],
  { config: { nNeurons } }: ModelFile,
  context: StageContext,
): Promise<LayerActivations[]> {
  const layers: LayerActivations[] = [];
  for (const [layer, path] of paths.entries()) {
    context.signal.throwIfAborted();
    const count = await readCounts(path, nNeurons);
    layers.push({ count, magnitude: new BigUint64Array(nNeurons), contribution: new BigUint64Array(nNeurons) });
    context.progress({ label: "import", done: layer + 1, total: paths.length, unit: "steps", note: "layers" });
  }
  return layers;
}

/** The counts of one layer. Throws `E_IMPORT` unless they are `nNeurons` whole numbers of at least 0. */
async function readCounts(path: string, nNeurons: number): Promise<BigUint64Array> {
  const file = await readTorchFile(path);
  const entry = file.tensors.get(ONLY_TENSOR);
  const found = entry ? `${entry.dtype} [${entry.shape}]` : "a dictionary";
  const fits = entry && `${entry.shape}` === `${nNeurons}`;
  check(fits, "E_IMPORT", `${path}: expected one tensor of counts [${nNeurons}], found ${found}`);
  const values = await decode(await readTensorBytes(file, ONLY_TENSOR), entry.dtype, path);
  return BigUint64Array.from(values, (value, neuron) => {
    const valid = Number.isSafeInteger(value) && value >= 0;
    check(valid, "E_IMPORT", () => `${path}: neuron ${neuron}: expected a count of tokens, found ${value}`);
    return BigInt(value);
  });
}

/** Bytes of one dimension as numbers; integers past 2^53 round, and are refused as they are. */
async function decode(bytes: Uint8Array, dtype: string, path: string): Promise<number[]> {
  const { buffer, byteOffset, byteLength } = bytes.slice();
  switch (dtype) {
    case "I64":
      return Array.from(new BigInt64Array(buffer, byteOffset, byteLength / 8), Number);
    case "I32":
      return [...new Int32Array(buffer, byteOffset, byteLength / 4)];
    case "F64":
      return [...new Float64Array(buffer, byteOffset, byteLength / 8)];
    case "F32":
    case "F16":
    case "BF16": {
      const type = dtype.toLowerCase() as "f32" | "f16" | "bf16";
      return [...(await native().dequantize(bytes, type, 1, byteLength / (type === "f32" ? 4 : 2)))];
    }
    default:
      throw new PiError("E_IMPORT", `${path}: expected counts of I64, I32, F64, F32, F16 or BF16, found ${dtype}`);
  }
}

/** What the counts are shares of. */
function countedTokens(
  layers: readonly LayerActivations[],
  { import: folder, tokens }: ImportActivationsOptions,
  context: StageContext,
): number {
  const highest = layers.map(({ count }) => count.reduce((a, b) => (a > b ? a : b)));
  const most = Number(highest.reduce((a, b) => (a > b ? a : b)));
  const layer = highest.indexOf(BigInt(most));
  check(most > 0, "E_IMPORT", `${folder}: expected neurons that fired, found counts of 0 only`);
  check(tokens === undefined || most <= tokens, "E_IMPORT", () => {
    return `${folder}: expected counts of at most ${tokens} tokens, found ${most} in layer ${layer}`;
  });
  if (tokens === undefined) {
    context.warn(
      `${folder}: how many tokens were counted is not said: at least ${most}, which is taken; frequencies may be too high (--tokens)`,
    );
  }
  return tokens ?? most;
}
