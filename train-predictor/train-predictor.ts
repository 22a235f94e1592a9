/** `pi train-predictor`: a low-rank MLP per layer that says which neurons a token needs, sized and calibrated until the model's perplexity holds. */
import { PiError } from "../formats/errors.ts";
import type {
  ConsideredPredictor,
  PredictorMetrics,
  PredictorsMetadata,
  QualityReport,
} from "../formats/predictors.ts";
import type { StageContext } from "../io/progress.ts";
import { passGate } from "./gate.ts";
import { TrainingJournal } from "./journal.ts";
import type { Cost } from "./ffn-prices.ts";
import { makePlan, priced, pricesOf, upToDate, type Plan, type TrainPredictorOptions } from "./plan.ts";
import { measureThresholds } from "./thresholds.ts";
import { consideredOf, metricsOf, TrainingRun } from "./training-run.ts";
import { rewriteQuality, writePredictors } from "./write.ts";

export { predictorsPath, type TrainPredictorOptions } from "./plan.ts";
export { PREDICTOR_DTYPES, type PredictorDType } from "./store.ts";

export interface TrainPredictorResult {
  path: string;
  upToDate: boolean;
  metrics: PredictorMetrics[];
  quality: QualityReport;
  /** Per layer, every predictor that was considered, the simplest kind first, with its recall-cost curve. */
  considered: ConsideredPredictor[][];
  /** Expected of a token in each layer's FFN, of all neurons and with the predictor. */
  ffn: { dense: Cost; predictor: Cost }[];
  /** Of all predictors over those of the model. */
  sizeShare: number;
}

/**
 * Trains, sizes and calibrates a predictor for every layer of the model in `dir` and writes `predictors.safetensors`,
 * the same bytes for the same inputs, options and instruction set. Does nothing when the file is up to date; goes on
 * where an interrupted run stopped. Throws `E_SMOOTH` for a model whose neurons never idle, `E_SAMPLES` without enough
 * rows or held-out text, `E_MISMATCH` for a profile of other weights, `E_QUALITY` when the perplexity cannot be held,
 * and the signal's reason when aborted.
 */
export async function trainPredictors(
  dir: string,
  options: TrainPredictorOptions,
  context: StageContext,
): Promise<TrainPredictorResult> {
  const plan = await makePlan(dir, options);
  const existing = options.force ? undefined : await upToDate(plan);
  if (existing?.complete) return report(plan, true, existing);
  if (existing) return report(plan, false, await measureElsewhere(plan, existing, context));

  const journal = await TrainingJournal.open(dir, plan, !options.force);
  let keep = true;
  try {
    const trained = await trainAll(plan, journal, context);
    keep = false;
    return report(plan, false, plan.crossCorpus ? await measureElsewhere(plan, trained, context) : trained);
  } catch (error) {
    // Quality that cannot be held would not be the next time; anything else may be over by then.
    keep = !(error instanceof PiError && error.code === "E_QUALITY");
    throw error;
  } finally {
    await journal.close(keep);
  }
}

type Trained = Pick<PredictorsMetadata, "metrics" | "quality" | "considered" | "cpu">;

async function trainAll(unpriced: Plan, journal: TrainingJournal, context: StageContext): Promise<Trained> {
  const plan = await priced(unpriced, (measure) => journal.measured("cpu", measure));
  const run = new TrainingRun(plan, journal, context);
  const start = await run.sizeAll();
  const { layers, points, quality } = await passGate(
    start,
    plan,
    (sized) => run.measureWith(sized),
    (sized, wanted) => run.resize(sized, wanted),
    plan.dir,
    context,
  );
  const chosen = layers.map((layer, i) => layer.owner(points[i]!));
  const metrics = chosen.map((candidate, i) => metricsOf(candidate, points[i]!));
  const measured = { metrics, quality, considered: layers.map(consideredOf), cpu: plan.cpu };
  await writePredictors(plan.path, plan, journal, chosen, measured, context.signal);
  return measured;
}

/** Measures predictors that are in place on text from elsewhere too, and writes down what came of it. */
async function measureElsewhere(plan: Plan, { quality, ...trained }: Trained, context: StageContext): Promise<Trained> {
  const thresholds = Float32Array.from(trained.metrics, ({ threshold }) => threshold);
  const where = { model: plan.dir, predictors: plan.path, threads: plan.threads };
  const crossCorpus = await measureThresholds(where, thresholds, plan.crossCorpus!, context);
  const measured = { ...trained, quality: { ...quality, crossCorpus } };
  await rewriteQuality(plan, measured, context.signal);
  return measured;
}

function report(plan: Plan, isUpToDate: boolean, trained: Trained): TrainPredictorResult {
  const { metrics, quality, considered = [], cpu } = trained;
  const prices = pricesOf(plan, cpu!);
  return {
    path: plan.path,
    upToDate: isUpToDate,
    metrics,
    quality,
    considered,
    ffn: metrics.map((layer) => {
      const { bytes } = prices.at({ bytes: layer.bytes, seconds: 0 }, layer);
      return { dense: prices.dense(), predictor: { bytes, seconds: layer.secondsPerToken! } };
    }),
    sizeShare: metrics.reduce((sum, { bytes }) => sum + bytes, 0) / plan.modelBytes,
  };
}
