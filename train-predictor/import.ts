/** `pi train-predictor --import`: predictors that were trained elsewhere, calibrated and measured like our own. */
import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { check } from "../formats/errors.ts";
import {
  parsePredictors,
  predictorsMetadata,
  type PredictorMetrics,
  type QualityReport,
} from "../formats/predictors.ts";
import { checkSameInput, sameProvenance } from "../formats/provenance.ts";
import { samplesPath } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { readSafetensors, readTensorBytes, writeSafetensors } from "../io/safetensors-file.ts";
import { openSamples, readSamples } from "../io/samples-file.ts";
import { storedTensors } from "../model/model-file.ts";
import { openModel, type OpenModel } from "../model/open.ts";
import { measureQuality, qualityTokens } from "../model/quality.ts";
import { predictorSpecs } from "../model/tensors.ts";
import { native } from "../native/index.ts";
import { RecallCurve, RECALLS, storedCurve, type OperatingPoint } from "./curve.ts";
import { checkThreshold, makePlan, type ImportPlan, type ImportPredictorsOptions } from "./import-plan.ts";
import { measureLayers, ownText, ownTextTokens } from "./own-text.ts";
import { paddedRank, readPublished } from "./published.ts";
import { matrixDType, storePredictor, type StoredPredictor } from "./store.ts";
import { HYPERPARAMETERS } from "./train.ts";

export type { ImportPredictorsOptions } from "./import-plan.ts";

export interface ImportPredictorsResult {
  path: string;
  upToDate: boolean;
  metrics: PredictorMetrics[];
  quality: QualityReport;
}

/** How often the misses may be halved before the gate gives up. */
const ROUNDS = 7;

/**
 * Writes predictors.safetensors for the model in `dir` from published predictors. With the samples of a profile every
 * layer's threshold is calibrated, and raised in recall until the perplexity on held-out text holds; without, the given
 * threshold stays, and quality is measured on text that the model samples. One layer is in memory at a time. Throws
 * `E_IMPORT` for predictors that do not fit the model, `E_SMOOTH`, `E_MISMATCH` and `E_QUALITY` as training does.
 */
export async function importPredictors(
  dir: string,
  options: ImportPredictorsOptions,
  context: StageContext,
): Promise<ImportPredictorsResult> {
  const plan = await makePlan(dir, options);
  const existing = options.force ? undefined : await upToDate(plan);
  if (existing) return existing;
  checkThreshold(plan, context);
  const candidate = join(dir, `.predictors.${randomBytes(4).toString("hex")}.tmp`);
  try {
    const layers = await writeCandidate(candidate, plan, context);
    const found = plan.heldout
      ? await calibrate(plan, plan.heldout, candidate, layers, context)
      : await measureAsGiven(plan, candidate, context);
    const metrics = found.metrics.map((layer, i) => describeLayer(layers[i]!, layer));
    await copyMeasured(candidate, plan, metrics, found.quality, context);
    return { path: plan.path, upToDate: false, metrics, quality: found.quality };
  } finally {
    await rm(candidate, { force: true });
  }
}

async function upToDate({ path, model, origin }: ImportPlan): Promise<ImportPredictorsResult | undefined> {
  const file = await readSafetensors(path).catch(() => undefined);
  if (!file) return undefined;
  try {
    const found = parsePredictors(file.metadata, path, model.config.nLayers);
    if (!sameProvenance(found.provenance, origin)) return undefined;
    return { path, upToDate: true, metrics: found.metrics, quality: found.quality };
  } catch {
    return undefined;
  }
}

/** What was learnt of a layer while it was written. */
interface ImportedLayer {
  rank: number;
  bytes: number;
  curve: RecallCurve | undefined;
}

function describeLayer({ rank, bytes, curve }: ImportedLayer, point: OperatingPoint): PredictorMetrics {
  const metrics: PredictorMetrics = { ...point, rank, bytes };
  if (curve) metrics.curve = storedCurve(curve.points(RECALLS));
  return metrics;
}

/** Writes the predictors as they will be stored, layer by layer, measuring each where there are samples. */
async function writeCandidate(path: string, plan: ImportPlan, context: StageContext): Promise<ImportedLayer[]> {
  const { model, published, dtype } = plan;
  const ranks = published.layers.map(({ rank }) => paddedRank(rank));
  const tensors = ranks.flatMap((rank, layer) =>
    predictorSpecs(model.config, layer, rank).map(({ name, shape, matrix }) => {
      return { name, shape, dtype: matrix ? matrixDType(shape[1]!, dtype) : ("f32" as const) };
    }),
  );
  const none = {
    threshold: 0,
    recall: 0,
    weightedRecall: 0,
    precision: 0,
    trueSparsity: 0,
    predictedSparsity: 0,
    bytes: 0,
  };
  const unmeasured = ranks.map((rank): PredictorMetrics => Object.assign({ rank }, none));
  const metadata = predictorsMetadata({ metrics: unmeasured, provenance: plan.origin });
  const layers: ImportedLayer[] = [];
  let stored: StoredPredictor | undefined;
  const produce = async (name: string): Promise<Uint8Array> => {
    const [, layer, part] = /^layers\.(\d+)\.predictor\.(.*)$/.exec(name)!;
    if (part === "fc1.weight") {
      stored = await importLayer(plan, Number(layer), context);
      const curve = plan.heldout && (await measureCurve(plan, Number(layer), stored));
      layers.push({ rank: stored.rank, bytes: stored.bytes, curve });
    }
    return stored!.tensors[part as keyof StoredPredictor["tensors"]].bytes;
  };
  await writeSafetensors(path, tensors, {
    metadata: () => metadata,
    produce: ({ name }) => produce(name),
    signal: context.signal,
  });
  return layers;
}

async function importLayer(plan: ImportPlan, layer: number, context: StageContext): Promise<StoredPredictor> {
  const { model, published } = plan;
  const { weights, unseen } = await readPublished(published, layer, model);
  if (unseen > 0) {
    context.warn(
      `layer ${layer}: ${unseen} of ${model.config.dim} inputs do not pass the norm; its predictor goes without them`,
    );
  }
  const { nLayers, dim } = model.config;
  context.progress({ label: "import", done: layer + 1, total: nLayers, unit: "steps", note: "layers of predictors" });
  return storePredictor(weights, dim, plan.dtype);
}

/** The recall curve of a layer's predictor as stored, on all sampled rows, or every n-th of them. */
async function measureCurve(plan: ImportPlan, layer: number, { rank, weights }: StoredPredictor): Promise<RecallCurve> {
  const { dim, nNeurons } = plan.model.config;
  const path = samplesPath(plan.dir, layer);
  const reader = await openSamples(path);
  await reader.close();
  checkSameInput("weights", path, plan.model.weights, reader.header.provenance.inputs["model"]);
  check(reader.rows > 0, "E_SAMPLES", `${path}: expected sampled rows to calibrate on, found none; profile more text`);
  const stride = Math.ceil(reader.rows / plan.samples);
  const scorer = native().createTrainer({ ...HYPERPARAMETERS, dim, nNeurons, rank, seed: 0, threads: plan.threads });
  scorer.setWeights(weights);
  const curve = new RecallCurve(nNeurons);
  let row = 0;
  for await (const batch of readSamples(path)) {
    const rows = Int32Array.from({ length: batch.rows }, (_, i) => i).filter(() => row++ % stride === 0);
    const labels = new Uint8Array(rows.length * nNeurons);
    rows.forEach((from, i) =>
      labels.set(batch.contributions.subarray(from * nNeurons, (from + 1) * nNeurons), i * nNeurons),
    );
    if (rows.length === 0) continue;
    curve.add(await scorer.scores(batch.hidden, rows), labels);
  }
  return curve;
}

interface Measured {
  metrics: OperatingPoint[];
  quality: QualityReport;
}

/** Asks all layers for half the misses again and again until the model's perplexity holds. Throws `E_QUALITY`. */
async function calibrate(
  plan: ImportPlan,
  windows: readonly Int32Array[],
  candidate: string,
  layers: readonly ImportedLayer[],
  context: StageContext,
): Promise<Measured> {
  const longest = Math.max(...windows.map((tokens) => tokens.length));
  return withModel(plan, candidate, qualityTokens(longest, 1), async (opened) => {
    let { recall } = plan;
    for (let round = 1; ; round++) {
      const metrics = layers.map(({ curve }) => curve!.at(recall));
      opened.engine.setThresholds(Float32Array.from(metrics, ({ threshold }) => threshold));
      const quality = await qualityOf(opened, windows, context);
      if (quality.perplexityRatio <= plan.maxPerplexityRatio) return { metrics, quality };
      checkRatio(round < ROUNDS, plan, quality, `at weighted recall ${recall.toFixed(5)}`);
      context.warn(
        `perplexity ratio ${quality.perplexityRatio.toFixed(5)} at weighted recall ${recall.toFixed(5)}, above ${plan.maxPerplexityRatio}: asking for fewer misses`,
      );
      recall = 1 - (1 - recall) / 2;
    }
  });
}

/** Measures the predictors with the threshold 0, which needs no calibration. Throws `E_QUALITY`. */
async function measureAsGiven(plan: ImportPlan, candidate: string, context: StageContext): Promise<Measured> {
  return withModel(plan, candidate, ownTextTokens(), async (opened) => {
    const windows = await ownText(opened, context);
    const quality = await qualityOf(opened, windows, context);
    const advice = "at threshold 0; pi profile makes samples to calibrate on";
    checkRatio(quality.perplexityRatio <= plan.maxPerplexityRatio, plan, quality, advice);
    const layers = await measureLayers(opened, windows, context.signal);
    return { metrics: layers.map((layer) => Object.assign(layer, { threshold: 0 })), quality };
  });
}

function checkRatio(holds: boolean, plan: ImportPlan, { perplexityRatio }: QualityReport, at: string): void {
  check(holds, "E_QUALITY", () => {
    return `${plan.dir}: expected a perplexity ratio of at most ${plan.maxPerplexityRatio} with predictors, got ${perplexityRatio.toFixed(5)} ${at}`;
  });
}

async function withModel<T>(
  { dir, threads }: ImportPlan,
  predictors: string,
  contextTokens: number,
  use: (opened: OpenModel) => Promise<T>,
): Promise<T> {
  const opened = await openModel(dir, { predictors, threads, contextTokens, verify: false });
  try {
    return await use(opened);
  } finally {
    opened.close();
  }
}

async function qualityOf(
  opened: OpenModel,
  windows: readonly Int32Array[],
  context: StageContext,
): Promise<QualityReport> {
  const measured = await measureQuality(opened, windows, "predictor", context);
  const { bytesPerToken: _, bytesPerTokenDense: __, ...quality } = measured;
  return quality;
}

/** The candidate's tensors with what was found of them. */
async function copyMeasured(
  candidate: string,
  plan: ImportPlan,
  metrics: PredictorMetrics[],
  quality: QualityReport,
  context: StageContext,
): Promise<void> {
  const file = await readSafetensors(candidate);
  const metadata = predictorsMetadata({ metrics, quality, provenance: plan.origin });
  await writeSafetensors(
    plan.path,
    [...storedTensors(file)].map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
    { metadata: () => metadata, produce: ({ name }) => readTensorBytes(file, name), signal: context.signal },
  );
}
