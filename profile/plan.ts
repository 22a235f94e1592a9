/** What one run of `pi profile` is going to do, and whether it was done before. */
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import type { Activations } from "../formats/activations.ts";
import { check } from "../formats/errors.ts";
import { canonicalJson, provenance, sameProvenance, type Provenance } from "../formats/provenance.ts";
import { sha256 } from "../io/hash.ts";
import { activationsPath, heldoutPath, readActivations, samplesPath } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { readModelFile, type ModelFile } from "../model/model-file.ts";
import { loadTokenizer, type Tokenizer } from "../model/tokenizer.ts";
import { corpusFiles, type CorpusFile } from "./corpus-files.ts";
import type { CorpusOptions } from "./corpus.ts";
import type { Shard } from "./sampling.ts";

export interface ProfileOptions {
  /** Files, directories and patterns. */
  corpus: readonly string[];
  /** Where the outputs go; default: the model's directory. */
  out?: string;
  /** Field of JSON lines and column of Parquet files; default "text". */
  field?: string;
  /** Token budget; default: the whole corpus. */
  tokens?: number;
  /** Rows to sample for training, on average, over all shards; default 20,000. */
  samples?: number;
  /** Tokens of a window, at most the model's longest context; default 512. */
  window?: number;
  /** Chooses other samples and held-out windows; default 0. */
  seed?: number;
  /** Profile the documents of one shard only. */
  shard?: Shard;
  threads?: number;
  /** Profile again even if the output is up to date. */
  force?: boolean;
}

/** Everything that decides the output, resolved and hashed. */
export interface Plan {
  out: string;
  model: ModelFile;
  tokenizer: Tokenizer;
  files: CorpusFile[];
  corpus: CorpusOptions;
  shard: Shard;
  samples: number;
  origin: Provenance;
}

/** Reads and hashes every input but the weights. Throws `E_CORPUS`, `E_FORMAT`, `E_TOKENIZER`. */
export async function makePlan(dir: string, options: ProfileOptions, context: StageContext): Promise<Plan> {
  const model = await readModelFile(dir);
  check(model.format === "model", "E_FORMAT", `${model.path}: expected a converted model, found an artifact`);
  const texts = await tokenizerTexts(dir);
  const tokenizer = await loadTokenizer((name) => Promise.resolve(texts.get(name)), dir);
  const { vocabSize, maxPositions } = model.config;
  check(tokenizer.vocabSize <= vocabSize, "E_TOKENIZER", () => {
    return `${dir}: expected a tokenizer of at most ${vocabSize} tokens as in the model, found ${tokenizer.vocabSize}`;
  });
  const files = await corpusFiles(options.corpus, context);
  const corpus: CorpusOptions = {
    field: options.field ?? "text",
    tokens: options.tokens ?? Infinity,
    window: Math.min(options.window ?? 512, maxPositions),
    seed: options.seed ?? 0,
  };
  const { samples = 20_000, shard = { index: 0, count: 1 } } = options;
  const described = { ...corpus, tokens: options.tokens ?? null, samples, shard: `${shard.index + 1}/${shard.count}` };
  const inputs = {
    model: model.weights,
    tokenizer: sha256(canonicalJson(Object.fromEntries(texts))),
    ...Object.fromEntries(files.map((file, i) => [`corpus:${i}`, file.sha256])),
  };
  const origin = provenance("profile", described, inputs);
  return { out: options.out ?? dir, model, tokenizer, files, corpus, shard, samples, origin };
}

/** Whatever says how the model's text becomes tokens, by file name. */
async function tokenizerTexts(dir: string): Promise<Map<string, string>> {
  const texts = new Map<string, string>();
  for (const name of ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]) {
    const path = join(dir, name);
    if (await exists(path)) texts.set(name, await readFile(path, "utf8"));
  }
  return texts;
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/** The activations in place, if this very run made them and the samples are still beside them. */
export async function upToDate({ out, model, origin }: Plan): Promise<Activations | undefined> {
  const activations = await readActivations(activationsPath(out)).catch(() => undefined);
  if (!activations || !sameProvenance(activations.provenance, origin)) return undefined;
  const samples = Array.from({ length: model.config.nLayers }, (_, layer) => samplesPath(out, layer));
  for (const path of [heldoutPath(out), ...samples]) if (!(await exists(path))) return undefined;
  return activations;
}
