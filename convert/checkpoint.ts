import { readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { check, PiError } from "../formats/errors.ts";
import type { SafetensorsFile, TensorEntry } from "../formats/safetensors.ts";
import { readSafetensors } from "../io/safetensors-file.ts";

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

/** One safetensors file of a checkpoint. */
export interface Shard {
  /** File name inside the folder. */
  name: string;
  file: SafetensorsFile;
}

const SINGLE = "model.safetensors";
const INDEX = "model.safetensors.index.json";
const CONFIG = "config.json";
const GENERATION_CONFIG = "generation_config.json";

/** Far above any real one; a larger file is not JSON that somebody wrote for a model. */
const MAX_JSON_BYTES = 100e6;

/**
 * Opens a local Hugging Face folder with `model.safetensors` or shards and their index. Throws `E_SOURCE` when it is no
 * such folder, `E_SAFETENSORS` for damaged files, `E_TENSOR` when index and shards disagree.
 */
export async function openCheckpoint(folder: string): Promise<Checkpoint> {
  const files = new Set(
    await readdir(folder).catch((error: Error) => fail(folder, `cannot be read: ${error.message}`)),
  );
  if (!files.has(CONFIG)) fail(folder, `expected a Hugging Face folder with ${CONFIG}, found none`);
  const config = await readJson(join(folder, CONFIG));
  const generationConfig = files.has(GENERATION_CONFIG) ? await readJson(join(folder, GENERATION_CONFIG)) : undefined;
  const configFiles = [CONFIG, GENERATION_CONFIG].filter((name) => files.has(name));

  const weightMap = files.has(SINGLE) ? undefined : await readIndex(folder, files);
  const names = weightMap ? [...new Set(weightMap.values())].sort() : [SINGLE];
  const shards: Shard[] = [];
  for (const name of names) shards.push({ name, file: await readSafetensors(join(folder, name)) });
  return { folder, config, generationConfig, configFiles, shards, tensors: collectTensors(shards, weightMap, folder) };
}

/** Tensor name to shard name. */
async function readIndex(folder: string, files: ReadonlySet<string>): Promise<Map<string, string>> {
  if (!files.has(INDEX)) refuseOtherFormats(folder, files);
  const path = join(folder, INDEX);
  const { weight_map: map } = ((await readJson(path)) ?? {}) as { weight_map?: unknown };
  check(map !== null && typeof map === "object", "E_SOURCE", `${path}: expected weight_map to be an object`);
  const entries = Object.entries(map as Record<string, unknown>);
  check(entries.length > 0, "E_SOURCE", `${path}: weight_map names no tensor`);
  for (const [tensor, shard] of entries) {
    // A name from a stranger: a plain file name cannot lead out of the folder.
    const plain = typeof shard === "string" && /^[^/\\]+\.safetensors$/.test(shard);
    check(
      plain,
      "E_SOURCE",
      () => `${path}: ${tensor}: expected a .safetensors file of this folder, found ${JSON.stringify(shard)}`,
    );
    check(files.has(shard), "E_SOURCE", `${path}: shard ${shard} is missing`);
  }
  return new Map(entries as [string, string][]);
}

/** Says which other weights there are, and what to do. `folder` begins the message. */
export function refuseOtherFormats(folder: string, files: ReadonlySet<string>): never {
  const found = (pattern: RegExp) => [...files].filter((name) => pattern.test(name)).sort();
  const [pickle] = found(/\.(bin|pt|pth)$/);
  if (pickle !== undefined) {
    fail(
      folder,
      `only ${pickle} found, whose format can run code when it is read; save the model as safetensors first (transformers: model.save_pretrained(folder))`,
    );
  }
  const [other] = found(/\.(gguf|safetensors)$/);
  return fail(folder, `expected ${SINGLE} or ${INDEX}, found ${other ?? "neither"}`);
}

/** All tensors of all shards; each must be in one shard only, and in the one that the index names. */
function collectTensors(
  shards: readonly Shard[],
  weightMap: ReadonlyMap<string, string> | undefined,
  folder: string,
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
      `${folder}: tensor ${name}: expected in ${shard} (${INDEX}), found ${actual === undefined ? "nowhere" : `in ${actual}`}`,
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
