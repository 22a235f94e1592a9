import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Activations } from "../formats/activations.ts";
import { check } from "../formats/errors.ts";
import { parsePredictors, type PredictorsMetadata, type QualityReport } from "../formats/predictors.ts";
import { canonicalJson, checkSameInput } from "../formats/provenance.ts";
import { sha256, sha256File } from "../io/hash.ts";
import { activationsPath, readActivations } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { readSafetensors } from "../io/safetensors-file.ts";
import { COMPANION_FILES, readModelFile, storedTensors, type ModelFile } from "../model/model-file.ts";
import { checkActivations } from "./costs.ts";
import type { PackSource } from "./pack.ts";

/** About what storing weights in four bits costs (docs/log.md); predictors that hold their targets are far below. */
export const DEFAULT_MAX_KL = 0.01;

/** What the earlier stages left in a working directory, checked to be of one model. */
export interface Inputs {
  model: ModelFile;
  activations: Activations;
  predictors: (PackSource & PredictorsMetadata) | undefined;
  /** Text of the tokenizer files, by name. */
  files: Record<string, string>;
  /** sha256 by role, for the provenance. */
  hashes: Record<string, string>;
}

/**
 * Reads everything that goes into an artifact but the tensors themselves. Without predictors it goes on with a warning:
 * the artifact then has no predictor mode. Throws `E_FILE`, `E_FORMAT`, `E_MISMATCH` for files made for other weights, and
 * `E_QUALITY` for predictors whose mean divergence from dense was more than `maxKl` nats on any text they were measured on.
 */
export async function readInputs(dir: string, context: StageContext, maxKl = DEFAULT_MAX_KL): Promise<Inputs> {
  const model = await readModelFile(dir);
  check(model.format === "model", "E_FORMAT", `${model.path}: expected a converted model, found an artifact`);
  const path = activationsPath(dir);
  const activations = await readActivations(path);
  checkSameInput("weights", path, model.weights, activations.provenance.inputs["model"]);
  checkActivations(activations, model.config, path);
  const predictors = await readPredictors(join(dir, "predictors.safetensors"), model, activations, context);
  if (predictors) checkQuality(predictors, maxKl);
  const files = await readCompanions(dir);
  const hashes = {
    model: model.weights,
    activations: activations.sha256!,
    files: sha256(canonicalJson(files)),
    ...(predictors ? { predictors: await sha256File(predictors.path) } : {}),
  };
  return { model, activations, predictors, files, hashes };
}

async function readPredictors(
  path: string,
  model: ModelFile,
  activations: Activations,
  context: StageContext,
): Promise<Inputs["predictors"]> {
  const file = await readSafetensors(path).catch((error: unknown) => {
    if ((error as { code?: string }).code === "E_FILE") return undefined;
    throw error;
  });
  if (!file) {
    context.warn(`${path}: no such file: the artifact will have no predictor mode (pi train-predictor makes it)`);
    return undefined;
  }
  const metadata = parsePredictors(file.metadata, path, model.config.nLayers);
  const { inputs } = metadata.provenance;
  checkSameInput("weights", path, model.weights, inputs["model"]);
  if (inputs["activations"] !== activations.sha256) {
    context.warn(`${path}: trained on another profile than the one that decides the placement`);
  }
  return { path, tensors: storedTensors(file), ...metadata };
}

function checkQuality({ path, quality }: { path: string; quality: QualityReport }, maxKl: number): void {
  const reports = [quality, ...(quality.crossCorpus ? [quality.crossCorpus] : [])];
  for (const { meanKl, perplexityRatio, corpus } of reports) {
    check(meanKl <= maxKl, "E_QUALITY", () => {
      const found = `${meanKl.toPrecision(3)} (perplexity ratio ${perplexityRatio.toFixed(5)})`;
      const text = `${corpus.tokens} tokens (${corpus.sha256.slice(0, 12)})`;
      return `${path}: expected a mean KL of at most ${maxKl} against dense, found ${found} on ${text}; train with a higher --recall, or raise --max-kl`;
    });
  }
}

async function readCompanions(dir: string): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  for (const name of COMPANION_FILES) {
    const text = await readFile(join(dir, name), "utf8").catch((error: NodeJS.ErrnoException) => {
      if (error.code === "ENOENT") return undefined;
      throw error;
    });
    if (text !== undefined) files[name] = text;
  }
  return files;
}
