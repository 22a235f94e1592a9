/** Opening a converted model or an artifact: the header is checked against the config before anything is mapped. */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { DTYPES, tensorBytes, WEIGHT_DTYPES, type DType, type WeightDType } from "../formats/dtypes.ts";
import { check, PiError } from "../formats/errors.ts";
import { canonicalJson, type Provenance } from "../formats/provenance.ts";
import { storedShape, type SafetensorsFile } from "../formats/safetensors.ts";
import { sha256 } from "../io/hash.ts";
import { hashRanges } from "../io/hash-ranges.ts";
import { readSafetensors } from "../io/safetensors-file.ts";
import { checkConfig } from "./check-config.ts";
import type { ModelConfig } from "./config.ts";
import { tensorSpecs, type TensorSpec } from "./tensors.ts";

/** A tensor as stored: logical type and shape, and its bytes in the file. */
export interface StoredTensor {
  dtype: DType;
  /** Elements, also for block types. */
  shape: number[];
  /** Bytes from the start of the file. */
  offset: number;
  bytes: number;
  sha256: string;
}

export interface ModelFile {
  path: string;
  format: "model" | "artifact";
  config: ModelConfig;
  dtype: WeightDType;
  /** Identity of the weights (`pi.weights`): what other files quote as input `model`. */
  weights: string;
  tensors: Map<string, StoredTensor>;
  metadata: Record<string, string>;
  provenance: Provenance;
}

/** Version of both layouts that this code reads. */
export const MODEL_VERSION = "1";

const SHA256 = /^[0-9a-f]{64}$/;

/** Name of the split weights inside a working directory. */
export const MODEL_FILE = "model.safetensors";

/** Text files that travel with a model, beside `model.safetensors` or in an artifact's `pi.files`. */
export const COMPANION_FILES = [
  "tokenizer.json",
  "tokenizer_config.json",
  "generation_config.json",
  "chat_template.jinja",
] as const;

/**
 * Reads the header of `X.pi`, `DIR/model.safetensors` or a working directory, and checks that every tensor its config
 * needs is there with the right type and shape. Throws `E_FILE`, `E_SAFETENSORS`, `E_FORMAT`, `E_VERSION`, `E_TENSOR`.
 */
export async function readModelFile(path: string): Promise<ModelFile> {
  const isDirectory = (await stat(path).catch(() => undefined))?.isDirectory();
  const file = await readSafetensors(isDirectory ? join(path, MODEL_FILE) : path);
  const format = file.metadata["pi.format"];
  check(
    format === "model" || format === "artifact",
    "E_FORMAT",
    () => `${file.path}: expected a converted model or an artifact, found ${describeFormat(format)}`,
  );
  const version = file.metadata["pi.version"];
  check(
    version === MODEL_VERSION,
    "E_VERSION",
    `${file.path}: expected format version ${MODEL_VERSION}, found ${version}`,
  );
  const dtype = file.metadata["pi.dtype"] as WeightDType;
  check(WEIGHT_DTYPES.includes(dtype), "E_FORMAT", `${file.path}: unknown pi.dtype ${dtype}`);

  const config = metadataJson<ModelConfig>(file, "pi.config");
  checkConfig(config, file.path);
  const tensors = storedTensors(file);
  for (const spec of tensorSpecs(config)) checkTensor(file.path, spec, tensors.get(spec.name));
  const weights = file.metadata["pi.weights"] ?? "";
  const own = format === "model" ? weightsIdentity(config, file.metadata["pi.tensors"]!) : weights;
  check(
    SHA256.test(weights) && weights === own,
    "E_FORMAT",
    `${file.path}: expected pi.weights ${own}, found ${weights}`,
  );
  const provenance = metadataJson<Provenance>(file, "pi.provenance");
  return { path: file.path, format, config, dtype, weights, tensors, metadata: file.metadata, provenance };
}

const describeFormat = (format: string | undefined): string =>
  format === undefined ? "a safetensors file that pi did not write (see pi convert)" : `a ${format} file`;

/** JSON of a metadata entry. Throws `E_FORMAT` when it is missing or no object. */
export function metadataJson<T>(file: SafetensorsFile, key: string): T {
  try {
    const value = JSON.parse(file.metadata[key] ?? "") as T;
    if (value !== null && typeof value === "object") return value;
  } catch {
    // Reported below, like any other value that is no object.
  }
  throw new PiError("E_FORMAT", `${file.path}: expected metadata ${key} to be JSON of an object`);
}

/** Joins `pi.tensors` (logical types, hashes) with the header (where the bytes are). Throws `E_TENSOR` when they disagree. */
export function storedTensors(file: SafetensorsFile): Map<string, StoredTensor> {
  type Entry = { dtype?: DType; shape?: number[]; sha256?: string };
  const table = metadataJson<Record<string, Entry>>(file, "pi.tensors");
  const tensors = new Map<string, StoredTensor>();
  for (const [name, { dtype, shape, sha256: hash }] of Object.entries(table)) {
    const fail = (problem: string): never => {
      throw new PiError("E_TENSOR", `${file.path}: tensor ${name}: ${problem}`);
    };
    if (dtype === undefined || !Object.hasOwn(DTYPES, dtype)) return fail(`unknown dtype ${dtype}`);
    if (!Array.isArray(shape) || !shape.every((n) => Number.isSafeInteger(n) && n >= 0)) return fail(`bad shape`);
    if (!SHA256.test(hash ?? "")) return fail(`bad sha256`);
    const entry = file.tensors.get(name) ?? fail("named in pi.tensors but not in the file");
    const expected = `${DTYPES[dtype].safetensors} [${storedShape(dtype, shape)}]`;
    const actual = `${entry.dtype} [${entry.shape}]`;
    if (actual !== expected) fail(`expected ${dtype} [${shape}] stored as ${expected}, found ${actual}`);
    tensors.set(name, { dtype, shape, offset: entry.begin, bytes: tensorBytes(dtype, shape), sha256: hash! });
  }
  return tensors;
}

function checkTensor(path: string, spec: TensorSpec, tensor: StoredTensor | undefined): void {
  check(tensor, "E_TENSOR", `${path}: missing tensor ${spec.name}, expected with shape [${spec.shape}]`);
  check(
    `${tensor.shape}` === `${spec.shape}`,
    "E_TENSOR",
    `${path}: tensor ${spec.name}: expected shape [${spec.shape}], found [${tensor.shape}]`,
  );
  const type = spec.matrix ? WEIGHT_DTYPES.some((dtype) => dtype === tensor.dtype) : tensor.dtype === "f32";
  check(
    type,
    "E_TENSOR",
    `${path}: tensor ${spec.name}: expected ${spec.matrix ? "a weight type" : "f32"}, found ${tensor.dtype}`,
  );
}

/** `pi.weights`: sha256 of the canonical JSON of config and tensor table (`pi.tensors`, as JSON). */
export function weightsIdentity(config: ModelConfig, tensors: string): string {
  return sha256(canonicalJson({ config, tensors: JSON.parse(tensors) as unknown }));
}

/** Reads every tensor and compares its sha256 with the one recorded. Throws `E_CHECKSUM` naming the first that differs. */
export async function verifyTensors(file: Pick<ModelFile, "path" | "tensors">): Promise<void> {
  const hashes = await hashRanges(file.path, [...file.tensors.values()]);
  [...file.tensors].forEach(([name, { sha256: expected }], i) => {
    check(
      hashes[i] === expected,
      "E_CHECKSUM",
      `${file.path}: tensor ${name}: expected sha256 ${expected}, found ${hashes[i]}`,
    );
  });
}
