import { readFile } from "node:fs/promises";
import { join } from "node:path";
import type { Activations } from "../formats/activations.ts";
import { check } from "../formats/errors.ts";
import { parsePredictors, type PredictorsMetadata } from "../formats/predictors.ts";
import { canonicalJson, checkSameInput } from "../formats/provenance.ts";
import { sha256, sha256File } from "../io/hash.ts";
import { activationsPath, readActivations } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { readSafetensors } from "../io/safetensors-file.ts";
import { COMPANION_FILES, readModelFile, storedTensors, type ModelFile } from "../model/model-file.ts";
import { checkActivations } from "./costs.ts";
import type { PackSource } from "./pack.ts";

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
 * the artifact then has no predictor mode. Throws `E_FILE`, `E_FORMAT`, and `E_MISMATCH` for files made for other
 * weights.
 */
export async function readInputs(dir: string, context: StageContext): Promise<Inputs> {
  const model = await readModelFile(dir);
  check(model.format === "model", "E_FORMAT", `${model.path}: expected a converted model, found an artifact`);
  const path = activationsPath(dir);
  const activations = await readActivations(path);
  checkSameInput("weights", path, model.weights, activations.provenance.inputs["model"]);
  checkActivations(activations, model.config, path);
  const predictors = await readPredictors(join(dir, "predictors.safetensors"), model, activations, context);
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
