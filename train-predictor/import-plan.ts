/** What one run of `pi train-predictor --import` is going to do. */
import { stat } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { check } from "../formats/errors.ts";
import { checkSameInput, provenance, type Provenance } from "../formats/provenance.ts";
import { sha256File } from "../io/hash.ts";
import { activationsPath, heldoutPath, readActivations, readHeldout, samplesPath } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { isSparse } from "../model/config.ts";
import { readModelFile, type ModelFile } from "../model/model-file.ts";
import { openPublished, type PublishedPredictors } from "./published.ts";
import type { PredictorDType } from "./store.ts";

export interface ImportPredictorsOptions {
  /** Holds `model_L.pt`, one a layer: see published.ts. */
  import: string;
  /** Contribution-weighted recall to calibrate thresholds for; the gate only raises it. Default 0.995. */
  recall?: number;
  /** Perplexity with predictors over perplexity dense. Default 1.001. */
  maxPerplexityRatio?: number;
  /** Type of the matrices; default (and `auto`): q8_0. */
  dtype?: PredictorDType | "auto";
  /** Sampled rows of a layer to calibrate on, about. Default 32,768. */
  samples?: number;
  threads?: number;
  /** Import again even if the output is up to date. */
  force?: boolean;
}

/** Tokens of held-out text that quality is measured on, in whole windows spread over the corpus. */
const GATE_TOKENS = 16384;
/** Everything that decides the output. */
export interface ImportPlan {
  dir: string;
  path: string;
  model: ModelFile;
  published: PublishedPredictors;
  dtype: PredictorDType;
  recall: number;
  maxPerplexityRatio: number;
  samples: number;
  threads: number;
  /** Held-out windows, where there are samples to calibrate on too. */
  heldout: Int32Array[] | undefined;
  origin: Provenance;
}

/** Reads and hashes all inputs but the weights and samples. */
export async function makePlan(dir: string, options: ImportPredictorsOptions): Promise<ImportPlan> {
  const model = await readModelFile(dir);
  check(model.format === "model", "E_FORMAT", `${model.path}: expected a converted model, found an artifact`);
  check(isSparse(model.config.activation), "E_SMOOTH", () => {
    return `${model.path}: activation ${model.config.activation.kind} is smooth: expected a ReLU-family model`;
  });
  const published = await openPublished(options.import, model);
  const { dtype = "auto", recall = 0.995, maxPerplexityRatio = 1.001, samples = 32768 } = options;
  const heldout = await readHeldoutWindows(dir, model);
  const described = {
    imported: true,
    dtype: dtype === "auto" ? "q8_0" : dtype,
    recall,
    maxPerplexityRatio,
    samples,
  } as const;
  const inputs = { model: model.weights, ...(await activationsInput(dir, model)), ...published.hashes };
  return {
    ...described,
    dir,
    path: join(dir, "predictors.safetensors"),
    model,
    published,
    threads: options.threads ?? availableParallelism(),
    heldout,
    origin: provenance("train-predictor", { ...described, text: heldout ? "held-out" : "own" }, inputs),
  };
}

const exists = (path: string): Promise<boolean> =>
  stat(path).then(
    () => true,
    () => false,
  );

/** Counts need not be there; where they are, `pi place` knows the predictors to belong to them. */
async function activationsInput(dir: string, model: ModelFile): Promise<Record<string, string>> {
  const path = activationsPath(dir);
  if (!(await exists(path))) return {};
  const activations = await readActivations(path);
  checkSameInput("weights", path, model.weights, activations.provenance.inputs["model"]);
  return { activations: await sha256File(path) };
}

/** Undefined without samples, or without text to measure on. */
async function readHeldoutWindows(dir: string, model: ModelFile): Promise<Int32Array[] | undefined> {
  if (!(await exists(samplesPath(dir, 0))) || !(await exists(heldoutPath(dir)))) return undefined;
  const { windows, provenance: origin } = await readHeldout(heldoutPath(dir));
  checkSameInput("weights", heldoutPath(dir), model.weights, origin.inputs["model"]);
  const tokens = windows.reduce((sum, window) => sum + window.length, 0);
  const stride = Math.max(1, Math.round(tokens / GATE_TOKENS));
  return windows.length > 0 ? windows.filter((_, i) => i % stride === 0) : undefined;
}

/** A threshold other than 0 is on the scale of scores before the norm, which differs from token to token. */
export function checkThreshold({ published: { folder, threshold }, heldout }: ImportPlan, context: StageContext): void {
  if (threshold === 0) {
    if (!heldout)
      context.warn(
        "no samples of a profile: thresholds stay at 0, and quality is measured on text that the model samples",
      );
    return;
  }
  const why = `sparse_threshold ${threshold} is for scores before the norm and means nothing after it`;
  check(heldout, "E_IMPORT", `${folder}: ${why}; expected samples to calibrate on, found none (pi profile makes them)`);
  context.warn(`${folder}: ${why}: thresholds are calibrated anew`);
}
