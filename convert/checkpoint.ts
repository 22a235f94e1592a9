import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { check, PiError } from "../formats/errors.ts";
import type { TensorEntry, TensorFile } from "../formats/safetensors.ts";
import { readSafetensors } from "../io/safetensors-file.ts";
import { ONLY_TENSOR, readTorchFile } from "../io/torch-file.ts";

/** A Hugging Face folder: its config and where its tensors are. Only headers have been read. */
export interface Checkpoint {
  folder: string;
  /** Parsed config.json. */
  config: unknown;
  /** Parsed generation_config.json, where there is one. */
  generationConfig: unknown;
  /** Files that shape the conversion, by name: config.json, generation_config.json. */
  configFiles: string[];
  /** In order of file name. */
  shards: Shard[];
  tensors: Map<string, { shard: Shard; entry: TensorEntry }>;
}

/** One weight file of a checkpoint. */
export interface Shard {
  /** File name inside the folder. */
  name: string;
  file: TensorFile;
}

/** A way to store weights: in one file, STEM + EXTENSION, or in shards that an index beside them names. */
export interface WeightFormat {
  stem: string;
  extension: string;
  read: (path: string) => Promise<TensorFile>;
}

/** The preferred one first. */
const WEIGHT_FORMATS: readonly WeightFormat[] = [
  { stem: "model", extension: ".safetensors", read: readSafetensors },
  { stem: "pytorch_model", extension: ".bin", read: readStateDict },
];

const singleOf = ({ stem, extension }: WeightFormat): string => stem + extension;
const indexOf = (format: WeightFormat): string => `${singleOf(format)}.index.json`;

const CONFIG = "config.json";
const GENERATION_CONFIG = "generation_config.json";

/** Far above any real one; a larger file is not JSON that somebody wrote for a model. */
const MAX_JSON_BYTES = 100e6;

/**
 * Opens a local Hugging Face folder with its weights in one file or in shards and their index, safetensors rather than
 * torch's. Throws `E_SOURCE` when it is no such folder, `E_SAFETENSORS`, `E_ZIP`, `E_PICKLE` and `E_TORCH` for damaged
 * files, `E_TENSOR` when index and shards disagree.
 */
export async function openCheckpoint(folder: string): Promise<Checkpoint> {
  const files = new Set(
    await readdir(folder).catch((error: Error) => fail(folder, `cannot be read: ${error.message}`)),
  );
  if (!files.has(CONFIG)) fail(folder, `expected a Hugging Face folder with ${CONFIG}, found none`);
  const config = await readJson(join(folder, CONFIG));
  const generationConfig = files.has(GENERATION_CONFIG) ? await readJson(join(folder, GENERATION_CONFIG)) : undefined;
  const configFiles = [CONFIG, GENERATION_CONFIG].filter((name) => files.has(name));

  const format = chooseFormat(files) ?? refuseOtherFormats(folder, files);
  const weightMap = files.has(singleOf(format)) ? undefined : await readIndex(folder, files, format);
  const names = weightMap ? [...new Set(weightMap.values())].sort() : [singleOf(format)];
  const shards: Shard[] = [];
  for (const name of names) shards.push({ name, file: await format.read(join(folder, name)) });
  const tensors = collectTensors(shards, weightMap, folder, indexOf(format));
  return { folder, config, generationConfig, configFiles, shards, tensors };
}

/** The preferred one of the formats that a folder or repository with these files has. */
export function chooseFormat(files: ReadonlySet<string>): WeightFormat | undefined {
  return WEIGHT_FORMATS.find((format) => files.has(singleOf(format)) || files.has(indexOf(format)));
}

/** Which of `files` belong to weights in this format. */
export function weightFiles(files: ReadonlySet<string>, format: WeightFormat): string[] {
  if (files.has(singleOf(format))) return [singleOf(format)];
  const { stem, extension } = format;
  const shard = (name: string) => name.startsWith(`${stem}-`) && /^[\w-]+$/.test(name.slice(0, -extension.length));
  return [...files].filter((name) => name === indexOf(format) || (name.endsWith(extension) && shard(name)));
}

/** A torch file of named tensors. */
async function readStateDict(path: string): Promise<TensorFile> {
  const file = await readTorchFile(path);
  check(!file.tensors.has(ONLY_TENSOR), "E_TORCH", `${path}: expected a state dict, found a tensor without a name`);
  return file;
}

/** Tensor name to shard name. */
async function readIndex(
  folder: string,
  files: ReadonlySet<string>,
  format: WeightFormat,
): Promise<Map<string, string>> {
  const path = join(folder, indexOf(format));
  const { weight_map: map } = ((await readJson(path)) ?? {}) as { weight_map?: unknown };
  check(map !== null && typeof map === "object", "E_SOURCE", `${path}: expected weight_map to be an object`);
  const entries = Object.entries(map as Record<string, unknown>);
  check(entries.length > 0, "E_SOURCE", `${path}: weight_map names no tensor`);
  for (const [tensor, shard] of entries) {
    // A name from a stranger: a plain file name cannot lead out of the folder.
    const plain = typeof shard === "string" && shard.endsWith(format.extension) && /^[^/\\]+$/.test(shard);
    check(plain, "E_SOURCE", () => {
      return `${path}: ${tensor}: expected a ${format.extension} file of this folder, found ${JSON.stringify(shard)}`;
    });
    check(files.has(shard), "E_SOURCE", `${path}: shard ${shard} is missing`);
  }
  return new Map(entries as [string, string][]);
}

/** Says which other weights there are. `folder` begins the message. */
export function refuseOtherFormats(folder: string, files: ReadonlySet<string>): never {
  const other = [...files].filter((name) => /\.(gguf|safetensors|bin|pt|pth)$/.test(name)).sort()[0];
  const wanted = WEIGHT_FORMATS.flatMap((format) => [singleOf(format), indexOf(format)]);
  return fail(folder, `expected ${wanted.join(" or ")}, found ${other ?? "none of them"}`);
}

/** All tensors of all shards; each must be in one shard only, and in the one that the index names. */
function collectTensors(
  shards: readonly Shard[],
  weightMap: ReadonlyMap<string, string> | undefined,
  folder: string,
  index: string,
): Checkpoint["tensors"] {
  const tensors: Checkpoint["tensors"] = new Map();
  for (const shard of shards) {
    for (const [name, entry] of shard.file.tensors) {
      const other = tensors.get(name)?.shard.name;
      check(other === undefined, "E_TENSOR", `${folder}: tensor ${name} is in ${other} and in ${shard.name}`);
      tensors.set(name, { shard, entry });
    }
  }
  for (const [name, shard] of weightMap ?? []) {
    const actual = tensors.get(name)?.shard.name;
    check(
      actual === shard,
      "E_TENSOR",
      `${folder}: tensor ${name}: expected in ${shard} (${index}), found ${actual === undefined ? "nowhere" : `in ${actual}`}`,
    );
  }
  return tensors;
}

async function readJson(path: string): Promise<unknown> {
  const info = await stat(path);
  check(
    info.isFile() && info.size <= MAX_JSON_BYTES,
    "E_SOURCE",
    `${path}: expected a file of at most ${MAX_JSON_BYTES} bytes`,
  );
  try {
    return JSON.parse(await readFile(path, "utf8")) as unknown;
  } catch (error) {
    throw new PiError("E_SOURCE", `${path}: not JSON: ${(error as Error).message}`);
  }
}

function fail(folder: string, problem: string): never {
  throw new PiError("E_SOURCE", `${folder}: ${problem}`);
}
