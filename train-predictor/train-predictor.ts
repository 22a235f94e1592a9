/** `pi train-predictor`: a low-rank MLP per layer that says which neurons a token needs, sized and calibrated until the model's perplexity holds. */
import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { dirname, join } from "node:path";
import { check } from "../formats/errors.ts";
import {
  parsePredictors,
  predictorsMetadata,
  type PredictorMetrics,
  type QualityReport,
} from "../formats/predictors.ts";
import { checkSameInput, provenance, sameProvenance, type Provenance } from "../formats/provenance.ts";
import { sha256File } from "../io/hash.ts";
import { activationsPath, heldoutPath, readActivations, readHeldout, samplesPath } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { readSafetensors, writeSafetensors } from "../io/safetensors-file.ts";
import { isSparse } from "../model/config.ts";
import { readModelFile, type ModelFile } from "../model/model-file.ts";
import { layerTensor, predictorSpecs } from "../model/tensors.ts";
import { passGate, type Candidate } from "./gate.ts";
import { loadSamples } from "./samples.ts";
import { ffnBytes, sizeLayer, type SizedPredictor, type Sizing } from "./size-layer.ts";
import { neuronBytes, PREDICTOR_DTYPES, type NeuronBytes, type PredictorDType } from "./store.ts";

export { PREDICTOR_DTYPES, type PredictorDType } from "./store.ts";

export interface TrainPredictorOptions {
  /** Contribution-weighted recall to start from; the gate only raises it. Default 0.995. */
  recall?: number;
  /** Perplexity with predictors over perplexity dense, on held-out windows. Default 1.002. */
  maxPerplexityRatio?: number;
  /** Type of the matrices; `auto` takes the one that makes a token read least, layer by layer. Default auto. */
  dtype?: PredictorDType | "auto";
  /** Sampled rows of a layer to use at most. Default 32,768. */
  samples?: number;
  /**
   * Passes over the rows for the rank that is chosen; ranks are tried with a third of them. Default: as many as show it
   * some 240,000 rows, four at least.
   */
  epochs?: number;
  seed?: number;
  threads?: number;
  /** Train again even if the output is up to date. */
  force?: boolean;
}

export interface TrainPredictorResult {
  path: string;
  upToDate: boolean;
  metrics: PredictorMetrics[];
  quality: QualityReport;
  /** Expected bytes that a token reads in each layer's FFN, of all neurons and with the predictor. */
  ffnBytes: { dense: number; predictor: number }[];
}

/** What training shows a predictor unless told otherwise: fewer samples are shown more often (docs/log.md). */
const ROWS_SHOWN = 240_000;
const MIN_EPOCHS = 4;

export const predictorsPath = (dir: string): string => join(dir, "predictors.safetensors");

/**
 * Trains, sizes and calibrates a predictor for every layer of the model in `dir` and writes `predictors.safetensors`,
 * the same bytes for the same inputs, options and instruction set. Does nothing when the file is up to date. Throws
 * `E_SMOOTH` for a model whose neurons never idle, `E_SAMPLES` without enough rows or held-out text, `E_MISMATCH` for a
 * profile of other weights, `E_QUALITY` when the perplexity cannot be held, and the signal's reason when aborted.
 */
export async function trainPredictors(
  dir: string,
  options: TrainPredictorOptions,
  context: StageContext,
): Promise<TrainPredictorResult> {
  const plan = await makePlan(dir, options);
  const existing = options.force ? undefined : await upToDate(plan);
  if (existing) return existing;

  const heldout = await readHeldout(heldoutPath(dir));
  checkSameInput("weights", heldoutPath(dir), plan.model.weights, heldout.provenance.inputs?.["model"]);
  check(heldout.windows.length > 0, "E_SAMPLES", () => {
    return `${heldoutPath(dir)}: expected held-out windows to measure quality on, found none; profile more text`;
  });
  const candidatePath = join(dirname(plan.path), `.predictors.${randomBytes(4).toString("hex")}.tmp`);
  try {
    let layers = await sizeLayers(plan, plan.recall, context);
    const candidate = async (): Promise<Candidate> => {
      await writePredictors(candidatePath, plan, layers, { metrics: measure(layers, plan.recall) }, context);
      const thresholds = (recall: number) => Float32Array.from(layers, ({ curve }) => curve.at(recall).threshold);
      return { model: dir, predictors: candidatePath, thresholds };
    };
    const regrow = async (recall: number) => {
      layers = await sizeLayers(plan, recall, context, layers);
      return candidate();
    };
    const gate = { ...plan, windows: heldout.windows };
    const { recall, quality } = await passGate(await candidate(), plan.recall, gate, regrow, context);
    const metrics = measure(layers, recall);
    await writePredictors(plan.path, plan, layers, { metrics, quality }, context);
    return { path: plan.path, upToDate: false, metrics, quality, ffnBytes: expectedBytes(plan, metrics) };
  } finally {
    await rm(candidatePath, { force: true });
  }
}

/** Everything that decides the output. */
interface Plan {
  dir: string;
  path: string;
  model: ModelFile;
  neuron: NeuronBytes;
  recall: number;
  maxPerplexityRatio: number;
  dtypes: readonly PredictorDType[];
  samples: number;
  epochs: number | null;
  seed: number;
  threads: number;
  origin: Provenance;
}

async function makePlan(dir: string, options: TrainPredictorOptions): Promise<Plan> {
  const model = await readModelFile(dir);
  check(model.format === "model", "E_FORMAT", `${model.path}: expected a converted model, found an artifact`);
  check(isSparse(model.config.activation), "E_SMOOTH", () => {
    const { kind } = model.config.activation;
    return `${model.path}: activation ${kind} is smooth: no neuron is ever idle, so there is nothing to predict; expected a ReLU-family model`;
  });
  const activations = await readActivations(activationsPath(dir));
  checkSameInput("weights", activationsPath(dir), model.weights, activations.provenance.inputs["model"]);
  const {
    dtype = "auto",
    recall = 0.995,
    maxPerplexityRatio = 1.002,
    samples = 32768,
    epochs = 12,
    seed = 0,
  } = options;
  const described = { recall, maxPerplexityRatio, dtype, samples, epochs, seed };
  const inputs = { model: model.weights, activations: await sha256File(activationsPath(dir)) };
  const stored = (part: string) => model.tensors.get(layerTensor(0, `ffn.${part}.weight`))?.dtype;
  const [gate, up, down] = [stored("gate"), stored("up")!, stored("down_t")!];
  return {
    ...described,
    dir,
    path: predictorsPath(dir),
    model,
    neuron: neuronBytes(model.config.dim, gate ? { gate, up, down } : { up, down }),
    dtypes: dtype === "auto" ? PREDICTOR_DTYPES : [dtype],
    threads: options.threads ?? availableParallelism(),
    origin: provenance("train-predictor", described, inputs),
  };
}

/** The predictors in place, if this very run made them. */
async function upToDate(plan: Plan): Promise<TrainPredictorResult | undefined> {
  const file = await readSafetensors(plan.path).catch(() => undefined);
  if (!file) return undefined;
  try {
    const {
      metrics,
      quality,
      provenance: origin,
    } = parsePredictors(file.metadata, plan.path, plan.model.config.nLayers);
    if (!sameProvenance(origin, plan.origin)) return undefined;
    return { path: plan.path, upToDate: true, metrics, quality, ffnBytes: expectedBytes(plan, metrics) };
  } catch {
    return undefined;
  }
}

/**
 * Sizes every layer for `recall`, from the ranks of `previous` if there are any, one after the other: the samples of one
 * layer are in memory at a time.
 */
async function sizeLayers(
  plan: Plan,
  recall: number,
  context: StageContext,
  previous?: readonly SizedPredictor[],
): Promise<SizedPredictor[]> {
  const { nLayers } = plan.model.config;
  const layers: SizedPredictor[] = [];
  for (let layer = 0; layer < nLayers; layer++) {
    context.signal.throwIfAborted();
    const samples = await loadSamples(samplesPath(plan.dir, layer), plan.model.weights, plan.samples);
    const epochs = plan.epochs ?? Math.max(MIN_EPOCHS, Math.round(ROWS_SHOWN / samples.train.length));
    const sizing: Sizing = { ...plan, recall, epochs, seed: plan.seed + layer };
    layers.push(await sizeLayer(samples, sizing, `train layer ${layer}`, context, previous?.[layer]?.stored.rank));
  }
  return layers;
}

function measure(layers: readonly SizedPredictor[], recall: number): PredictorMetrics[] {
  return layers.map(({ stored: { rank, bytes }, curve }) => ({ rank, ...curve.at(recall), bytes }));
}

function expectedBytes(
  { model, neuron }: Plan,
  metrics: readonly PredictorMetrics[],
): TrainPredictorResult["ffnBytes"] {
  const { nNeurons } = model.config;
  return metrics.map((layer) => ({
    dense: nNeurons * (neuron.test + neuron.rest),
    predictor: ffnBytes(layer.bytes, nNeurons, neuron, layer),
  }));
}

/** Writes the predictors of all layers; without `quality` it is a candidate that has yet to be measured. */
async function writePredictors(
  path: string,
  { model, origin }: Plan,
  layers: readonly SizedPredictor[],
  measured: { metrics: PredictorMetrics[]; quality?: QualityReport },
  context: StageContext,
): Promise<void> {
  const tensors = layers.flatMap(({ stored }, layer) =>
    predictorSpecs(model.config, layer, stored.rank).map(({ name, shape }) => {
      const part = name.slice(layerTensor(layer, "predictor.").length) as keyof typeof stored.tensors;
      const { dtype, bytes } = stored.tensors[part];
      return { name, shape, dtype, bytes };
    }),
  );
  const bytes = new Map(tensors.map((tensor) => [tensor.name, tensor.bytes]));
  const metadata = predictorsMetadata({ ...measured, provenance: origin });
  await writeSafetensors(
    path,
    tensors.map(({ name, shape, dtype }) => ({ name, shape, dtype })),
    {
      metadata: () => metadata,
      produce: ({ name }) => Promise.resolve(bytes.get(name)!),
      signal: context.signal,
    },
  );
}
