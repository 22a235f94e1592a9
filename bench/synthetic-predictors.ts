/** The predictors of a converted synthetic model: what its gates were planted with, stored as `pi train-predictor` would. */
import { join } from "node:path";
import { check } from "../formats/errors.ts";
import { predictorsMetadata, type PredictorMetrics, type QualityReport } from "../formats/predictors.ts";
import { provenance } from "../formats/provenance.ts";
import type { StageContext } from "../io/progress.ts";
import { readSafetensors, readTensorBytes, writeSafetensors } from "../io/safetensors-file.ts";
import { forcedStep } from "../model/forced-logits.ts";
import { readModelFile, type ModelFile } from "../model/model-file.ts";
import { openModel, type OpenModel } from "../model/open.ts";
import { measureQuality, qualityTokens } from "../model/quality.ts";
import { layerTensor, predictorSpecs } from "../model/tensors.ts";
import { KV_BLOCK, native, type EngineStats, type PredictorWeights } from "../native/index.ts";
import { storePredictor, type PredictorDType, type StoredPredictor } from "../train-predictor/store.ts";
import { BLOCK, GATE_NOISE } from "./synthetic.ts";

/** Hidden units: the signal, the signal negated, and the constant channels. */
const RANK = 3 * BLOCK;

/** Two standard deviations of what a predictor cannot know below 0: it then misses about 0.2 % of the active neurons. */
const THRESHOLD = -2 * GATE_NOISE;

/** Random texts that the metrics are measured on, and tokens of each. */
const TEXTS = 4;
const TEXT_TOKENS = 64;

interface Measured {
  metrics: PredictorMetrics[];
  quality: QualityReport;
}

/**
 * Writes `dir/predictors.safetensors` for the synthetic model that was converted into `dir`: its gates without their
 * noise, with the metrics measured on random tokens. No bias is needed, because the constant channels stand for it.
 * Throws `E_FORMAT` for an artifact.
 */
export async function writePlantedPredictors(
  dir: string,
  dtype: PredictorDType,
  context: StageContext,
): Promise<Measured & { path: string }> {
  const model = await readModelFile(dir);
  check(model.format === "model", "E_FORMAT", `${model.path}: expected a converted model, found an artifact`);
  const { dim, nLayers, nNeurons } = model.config;
  const layers: StoredPredictor[] = [];
  for (let layer = 0; layer < nLayers; layer++) {
    layers.push(await storePredictor(plantedPredictor(await gateWeights(model, layer), dim), dim, dtype));
  }
  const path = join(dir, "predictors.safetensors");
  const write = (measured: Pick<Measured, "metrics"> & Partial<Measured>) =>
    writePredictors(path, model, layers, measured, context);
  await write({ metrics: layers.map((stored) => metricsOf(stored, nNeurons, NO_ROWS)) });
  const measured = await measure(dir, path, layers, context);
  await write(measured);
  return { path, ...measured };
}

/** Stored rows of the matrix that decides which neurons of `layer` fire, as f32. */
async function gateWeights({ path, config, tensors }: ModelFile, layer: number): Promise<Float32Array> {
  const name = layerTensor(layer, `ffn.${config.gated ? "gate" : "up"}.weight`);
  const bytes = await readTensorBytes(await readSafetensors(path), name);
  return native().dequantize(bytes, tensors.get(name)!.dtype, config.nNeurons, config.dim);
}

/** score = gate · x over the planted channels: relu(x) - relu(-x) = x for the signal, relu(1) = 1 for the constant. */
function plantedPredictor(gate: Float32Array, dim: number): PredictorWeights {
  const nNeurons = gate.length / dim;
  const fc1 = new Float32Array(RANK * dim);
  const fc2 = new Float32Array(nNeurons * RANK);
  for (let j = 0; j < BLOCK; j++) {
    fc1[j * dim + BLOCK + j] = 1;
    fc1[(BLOCK + j) * dim + BLOCK + j] = -1;
    fc1[(2 * BLOCK + j) * dim + j] = 1;
  }
  for (let i = 0; i < nNeurons; i++) {
    const [constant, signal] = [
      gate.subarray(i * dim, i * dim + BLOCK),
      gate.subarray(i * dim + BLOCK, i * dim + 2 * BLOCK),
    ];
    fc2.set(signal, i * RANK);
    fc2.set(
      signal.map((weight) => -weight),
      i * RANK + BLOCK,
    );
    fc2.set(constant, i * RANK + 2 * BLOCK);
  }
  return { fc1, fc1Bias: new Float32Array(RANK), fc2, fc2Bias: new Float32Array(nNeurons) };
}

async function writePredictors(
  path: string,
  { config, weights }: ModelFile,
  layers: readonly StoredPredictor[],
  measured: Pick<Measured, "metrics"> & Partial<Measured>,
  context: StageContext,
): Promise<void> {
  const tensors = layers.flatMap(({ tensors: stored }, layer) =>
    predictorSpecs(config, layer, RANK).map(({ name, shape }) => {
      const part = name.slice(layerTensor(layer, "predictor.").length) as keyof typeof stored;
      const { dtype, bytes } = stored[part];
      return { name, shape, dtype, bytes };
    }),
  );
  const bytes = new Map(tensors.map((tensor) => [tensor.name, tensor.bytes]));
  const origin = provenance("train-predictor", { planted: true, dtype: layers[0]!.dtype }, { model: weights });
  await writeSafetensors(path, tensors, {
    metadata: () => predictorsMetadata({ ...measured, provenance: origin }),
    produce: ({ name }) => Promise.resolve(bytes.get(name)!),
    signal: context.signal,
  });
}

async function measure(
  dir: string,
  predictors: string,
  layers: readonly StoredPredictor[],
  context: StageContext,
): Promise<Measured> {
  const model = await openModel(dir, { predictors, contextTokens: qualityTokens(TEXT_TOKENS, 1), verify: false });
  try {
    const texts = Array.from({ length: TEXTS }, (_, i) => randomText(model.config.vocabSize, i));
    const metrics = await layerMetrics(model, texts, layers);
    const report = await measureQuality(model, texts, "predictor", context);
    const { bytesPerToken: _, bytesPerTokenDense: __, ...quality } = report;
    return { metrics, quality };
  } finally {
    model.close();
  }
}

/** Tokens spread over the whole vocabulary. */
function randomText(vocabSize: number, text: number): Int32Array {
  const golden = 0.618033988749895;
  return Int32Array.from({ length: TEXT_TOKENS }, (_, i) => vocabSize * ((golden * (1 + text * TEXT_TOKENS + i)) % 1));
}

async function layerMetrics(
  { engine, config }: OpenModel,
  texts: readonly Int32Array[],
  layers: readonly StoredPredictor[],
): Promise<PredictorMetrics[]> {
  engine.setRecallTracking(true);
  engine.resetStats();
  for (const text of texts) {
    await engine.step(forcedStep(text, 0, text.length, "predictor", Math.ceil(text.length / KV_BLOCK), 0));
  }
  engine.setRecallTracking(false);
  return engine.stats().layers.map((stats, layer) => metricsOf(layers[layer]!, config.nNeurons, stats));
}

type LayerStats = EngineStats["layers"][number];

/** Stands for what is yet to be measured. */
const NO_ROWS: LayerStats = { rows: 1, active: 1, predicted: 1, hit: 0, weightedRecall: 0 };

function metricsOf({ bytes }: StoredPredictor, nNeurons: number, stats: LayerStats): PredictorMetrics {
  const { rows, active, predicted, hit, weightedRecall } = stats;
  return {
    rank: RANK,
    threshold: THRESHOLD,
    recall: hit / active,
    weightedRecall: weightedRecall / rows,
    precision: hit / predicted,
    trueSparsity: 1 - active / (rows * nNeurons),
    predictedSparsity: 1 - predicted / (rows * nNeurons),
    bytes,
  };
}
