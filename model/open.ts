import { readFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { check, PiError } from "../formats/errors.ts";
import { parsePredictorMetrics } from "../formats/predictors.ts";
import { checkSameInput, parseProvenance } from "../formats/provenance.ts";
import { readSafetensors } from "../io/safetensors-file.ts";
import {
  KV_BLOCK,
  native,
  type Engine,
  type FfnMode,
  type KvType,
  type OpenOptions,
  type TensorRef,
} from "../native/index.ts";
import { isSparse, type ModelConfig } from "./config.ts";
import {
  gpuOptions,
  openingError,
  placedContext,
  planDevice,
  wantedGpu,
  type DeviceOptions,
  type DeviceUse,
} from "./device.ts";
import { defaultKvType } from "./kv-type.ts";
import { readModelFile, storedTensors, verifyTensors, type ModelFile, type StoredTensor } from "./model-file.ts";

export interface OpenModelOptions extends DeviceOptions {
  /** Threads of the engine; default: all that this process may use. */
  threads?: number;
  /** KV cache capacity in tokens, all sequences together; default: on a GPU what was placed for, else `usualTokens`. */
  contextTokens?: number;
  /** Default: the checkpoint's longest context. */
  usualTokens?: number;
  /** Default: about as finely as the weights, {@link defaultKvType}. */
  kvType?: KvType;
  /** `predictors.safetensors` to use with a converted model; an artifact carries its own. */
  predictors?: string;
  /** Check the sha256 of every tensor before use (default true). */
  verify?: boolean;
}

/** A model ready to step, whatever it was opened from. */
export interface OpenModel {
  file: ModelFile;
  config: ModelConfig;
  engine: Engine;
  hasPredictors: boolean;
  /** What the model is called: the artifact's name, or the directory's. */
  name: string;
  /** The cheapest FFN mode whose quality was measured: predictor where there are any, exact where neurons idle. */
  defaultMode: FfnMode;
  /** KV cache capacity in tokens. */
  kvTokens: number;
  /** What of it is on a GPU. */
  device: DeviceUse;
  /** Text of a tokenizer or config file that came with the model; undefined where the checkpoint had none. */
  textFile(name: string): Promise<string | undefined>;
  close(): void;
}

/**
 * Opens an artifact or a converted model and maps it into the engine. Errors: those of {@link readModelFile} and
 * {@link verifyTensors}; `E_MISMATCH` for predictors of other weights; `E_DEVICE` and `E_VRAM` of {@link planDevice};
 * `E_ENGINE` when the native side refuses.
 */
export async function openModel(path: string, options: OpenModelOptions = {}): Promise<OpenModel> {
  return openModelFile(await readModelFile(path), options);
}

/** {@link openModel} of a file whose header was read. */
export async function openModelFile(file: ModelFile, options: OpenModelOptions = {}): Promise<OpenModel> {
  const predictors = options.predictors === undefined ? undefined : await readPredictors(options.predictors, file);
  const thresholds = readThresholds(predictors?.metadata ?? file.metadata, file.config, predictors?.path ?? file.path);
  const tensors = [...tensorRefs(file.tensors, 0), ...(predictors ? tensorRefs(predictors.tensors, 1) : [])];
  const wanted = wantedGpu(file, options);
  const placed = wanted.found && placedContext(file);
  const capacity = options.contextTokens ?? placed ?? options.usualTokens ?? file.config.maxPositions;
  const kvBlocks = Math.ceil(capacity / KV_BLOCK);
  const opening: OpenOptions = {
    files: [file.path, ...(predictors ? [predictors.path] : [])].map((p) => resolve(p)),
    tensors,
    config: JSON.stringify(file.config),
    thresholds,
    threads: options.threads ?? availableParallelism(),
    kvBlocks,
    kvType: options.kvType ?? defaultKvType(file.dtype),
  };
  const device = planDevice(file, opening, wanted, options);
  // All of it before any of it is used: several threads hash a gigabyte in a third of a second, so there is little to gain
  // from doing it later, and nothing wrong is ever computed with.
  if (options.verify ?? true) {
    await verifyTensors(file);
    if (predictors) await verifyTensors(predictors);
  }
  const engine = openEngine(file, opening, device);
  const hasPredictors = thresholds.length > 0;
  return {
    file,
    config: file.config,
    engine,
    hasPredictors,
    name: file.metadata["pi.name"] ?? basename(dirname(resolve(file.path))),
    defaultMode: hasPredictors ? "predictor" : isSparse(file.config.activation) ? "exact" : "dense",
    kvTokens: kvBlocks * KV_BLOCK,
    device,
    textFile: (name) => readTextFile(file, name),
    close: () => engine.close(),
  };
}

function openEngine(file: ModelFile, options: OpenOptions, { gpu }: DeviceUse): Engine {
  try {
    return native().openEngine(gpu ? { ...options, gpu: gpuOptions(file.config, gpu) } : options);
  } catch (error) {
    throw error instanceof PiError ? error : openingError(file.path, error as Error, gpu);
  }
}

/** The engine's view of the tensors of file number `file`. Neuron indices and padding are not its business. */
export function tensorRefs(tensors: Map<string, StoredTensor>, file: number): TensorRef[] {
  return [...tensors]
    .filter(([, { dtype }]) => dtype !== "i32")
    .map(([name, { dtype, shape, offset }]) => ({ name, file, dtype, shape, offset }));
}

async function readPredictors(path: string, model: ModelFile) {
  const file = await readSafetensors(path);
  check(
    file.metadata["pi.format"] === "predictors",
    "E_FORMAT",
    `${path}: expected predictors, found ${file.metadata["pi.format"]}`,
  );
  const { inputs } = parseProvenance(file.metadata["pi.provenance"], path, "E_FORMAT");
  checkSameInput("weights", path, model.weights, inputs["model"]);
  return { path: file.path, metadata: file.metadata, tensors: storedTensors(file) };
}

/** The predictors' thresholds, one a layer; empty without predictors. */
function readThresholds(metadata: Record<string, string>, config: ModelConfig, path: string): Float32Array {
  const text = metadata["pi.predictors"];
  if (text === undefined) return new Float32Array();
  return Float32Array.from(parsePredictorMetrics(text, path, config.nLayers), ({ threshold }) => threshold);
}

/** Text of a tokenizer or config file that came with a model; undefined where the checkpoint had none. */
export async function readTextFile(file: ModelFile, name: string): Promise<string | undefined> {
  const packed = file.metadata["pi.files"];
  if (packed !== undefined) return (JSON.parse(packed) as Record<string, string>)[name];
  return readFile(join(dirname(file.path), name), "utf8").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw error;
  });
}
