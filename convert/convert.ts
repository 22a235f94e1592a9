import { mkdir, readdir, readFile, realpath, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Scales, WeightDType } from "../formats/dtypes.ts";
import { check } from "../formats/errors.ts";
import { canonicalJson, provenance, sameProvenance, type Provenance } from "../formats/provenance.ts";
import { commitFile, writeAtomic } from "../io/atomic-file.ts";
import { sha256, sha256File } from "../io/hash.ts";
import type { StageContext } from "../io/progress.ts";
import { NO_HASH, SafetensorsWriter, tensorTable, type MetadataOf } from "../io/safetensors-file.ts";
import { readHfConfig } from "../model/architectures.ts";
import type { ModelConfig } from "../model/config.ts";
import {
  COMPANION_FILES,
  MODEL_FILE,
  MODEL_VERSION,
  readModelFile,
  weightsIdentity,
  type ModelFile,
} from "../model/model-file.ts";
import { openCheckpoint, type Checkpoint } from "./checkpoint.ts";
import { resolveSource } from "./hub.ts";
import { PartialFile } from "./journal.ts";
import { planConversion, type Plan } from "./plan.ts";
import { TensorStream } from "./stream.ts";

export interface ConvertOptions {
  /** A local Hugging Face folder, or a hub id `org/name[@revision]`. */
  source: string;
  /** Working directory to write into; created when it is not there. */
  output: string;
  dtype: WeightDType;
  /** Of q4_0; default: fitted. */
  scales?: Scales;
  /** Convert even when the output is up to date, and forget an interrupted conversion. */
  force?: boolean;
}

type Settings = ConvertOptions & { scales: Scales };

export interface ConvertResult {
  path: string;
  /** Identity of the weights: what later stages quote as input `model`. */
  weights: string;
  architecture: string;
  dtype: WeightDType;
  /** False when the output was up to date and nothing was done. */
  converted: boolean;
  tensors: number;
  sourceBytes: number;
  outputBytes: number;
  /** Of the conversion alone, without a download. */
  seconds: number;
}

/**
 * The first stage: a checkpoint becomes `model.safetensors` in split-weight layout, and its tokenizer files are copied
 * beside it. An interrupted conversion goes on where it stopped, and its result is the same to the byte. Errors: those
 * of {@link openCheckpoint}, {@link readHfConfig}, {@link planConversion} and {@link TensorStream}.
 */
export async function convert(given: ConvertOptions, context: StageContext): Promise<ConvertResult> {
  const options = { ...given, scales: given.scales ?? "fitted" };
  const folder = await resolveSource(options.source, context);
  const checkpoint = await openCheckpoint(folder);
  const config = readHfConfig(
    checkpoint.config,
    checkpoint.generationConfig,
    join(folder, "config.json"),
    context.warn,
  );
  const plan = planConversion(checkpoint, config, options, context.warn);
  await mkdir(options.output, { recursive: true });
  const inPlace = (await realpath(folder)) === (await realpath(options.output));
  check(!inPlace, "E_SOURCE", `${options.output}: expected an output folder other than the source`);

  const started = performance.now();
  const path = join(options.output, MODEL_FILE);
  const current = options.force ? undefined : await upToDate(path, checkpoint, options, context);
  if (!current) await writeModel(path, checkpoint, config, plan, options, context);
  await copyCompanions(checkpoint, options.output, context);
  return summarise(current ?? (await readModelFile(path)), plan, !current, (performance.now() - started) / 1000);
}

/** The output as it is, when it was made by this tool from the same source with the same options. */
async function upToDate(
  path: string,
  checkpoint: Checkpoint,
  options: Settings,
  context: StageContext,
): Promise<ModelFile | undefined> {
  const existing = await readModelFile(path).catch(() => undefined);
  // Hashing a large source takes a while: first what can be told without.
  if (!existing || !sameProvenance(existing.provenance, describe(options, existing.provenance.inputs)))
    return undefined;
  const total = checkpoint.shards.reduce((sum, { file }) => sum + file.size, 0);
  const inputs: Provenance["inputs"] = {};
  let done = 0;
  for (const name of [...checkpoint.configFiles, ...checkpoint.shards.map((shard) => shard.name)]) {
    inputs[inputRole(name)] = await sha256File(join(checkpoint.folder, name), (bytes) => {
      context.signal.throwIfAborted();
      context.progress({ label: "check source", done: (done += bytes), total, unit: "bytes" });
    });
    if (inputs[inputRole(name)] !== existing.provenance.inputs[inputRole(name)]) return undefined;
  }
  return sameProvenance(existing.provenance, describe(options, inputs)) ? existing : undefined;
}

const inputRole = (fileName: string): string => `source:${fileName}`;

const describe = ({ dtype, scales }: Settings, inputs: Provenance["inputs"]): Provenance =>
  provenance("convert", { dtype, ...(dtype === "q4_0" && { scales }) }, inputs);

async function writeModel(
  path: string,
  checkpoint: Checkpoint,
  config: ModelConfig,
  plan: Plan,
  options: Settings,
  context: StageContext,
): Promise<void> {
  const { output, dtype, force } = options;
  const configHashes: Provenance["inputs"] = {};
  for (const name of checkpoint.configFiles) {
    configHashes[inputRole(name)] = await sha256File(join(checkpoint.folder, name));
  }
  const files = checkpoint.shards.map(({ name, file }) => [name, file.size]);
  const identity = sha256(canonicalJson({ provenance: describe(options, configHashes), config, files })).slice(0, 16);

  const partial = await PartialFile.open(output, identity, !force);
  let keep = false;
  try {
    // The shards' hashes are known when all has been read; until then the header is measured with zeros.
    let shardHashes: ReadonlyMap<string, string> = new Map();
    const metadata: MetadataOf = (hashes) => {
      const sources = checkpoint.shards.map(({ name }) => [inputRole(name), shardHashes.get(name) ?? NO_HASH]);
      return {
        "pi.format": "model",
        "pi.version": MODEL_VERSION,
        "pi.config": JSON.stringify(config),
        "pi.dtype": dtype,
        "pi.weights": weightsIdentity(config, tensorTable(plan.outputs, hashes)),
        "pi.provenance": JSON.stringify(describe(options, { ...configHashes, ...Object.fromEntries(sources) })),
      };
    };
    const writer = new SafetensorsWriter(partial.file, plan.outputs, metadata);
    const stream = new TensorStream(plan, writer, partial, context);
    shardHashes = stream.shardHashes;
    await stream.run();
    await writer.finish();
    await commitFile(partial.file, partial.path, path);
  } catch (error) {
    keep = context.signal.aborted; // an interrupted conversion goes on later; a failed one leaves nothing
    throw error;
  } finally {
    await partial.close(keep);
  }
}

/** Copies tokenizer and generation files; those that the checkpoint does not have are removed from the output. */
async function copyCompanions({ folder }: Checkpoint, output: string, context: StageContext): Promise<void> {
  const present = new Set(await readdir(folder));
  for (const name of COMPANION_FILES) {
    const target = join(output, name);
    if (present.has(name)) {
      const bytes = await readFile(join(folder, name));
      await writeAtomic(target, (file) => file.writeFile(bytes));
    } else {
      await rm(target, { force: true });
    }
  }
  if (!present.has("tokenizer.json")) {
    context.warn(`${folder}: no tokenizer.json: the model will know token ids, but no text`);
  }
}

function summarise(file: ModelFile, plan: Plan, converted: boolean, seconds: number): ConvertResult {
  return {
    path: file.path,
    weights: file.weights,
    architecture: file.config.architecture,
    dtype: file.dtype,
    converted,
    tensors: file.tensors.size,
    sourceBytes: plan.sourceBytes,
    outputBytes: [...file.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0),
    seconds,
  };
}
