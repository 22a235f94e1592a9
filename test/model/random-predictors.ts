import { join } from "node:path";
import type { DType } from "../../formats/dtypes.ts";
import {
  hasRank,
  predictorsMetadata,
  type PredictorKind,
  type PredictorMetrics,
  type QualityReport,
} from "../../formats/predictors.ts";
import { provenance } from "../../formats/provenance.ts";
import { writeSafetensors } from "../../io/safetensors-file.ts";
import type { ModelConfig } from "../../model/config.ts";
import { readModelFile } from "../../model/model-file.ts";
import { layerTensor, predictorSpecs, predictorTensors } from "../../model/tensors.ts";
import type { PredictorTensor } from "../../native/index.ts";
import { normals } from "../native/planted.ts";

const QUALITY: QualityReport = {
  corpus: { sha256: "0".repeat(64), tokens: 100 },
  perplexityDense: 10,
  perplexity: 10.01,
  perplexityRatio: 1.001,
  meanKl: 1e-4,
  p99Kl: 1e-3,
  top1Agreement: 0.99,
  weightedRecall: 0.995,
};
const RATES = { recall: 0.5, weightedRecall: 0.5, precision: 0.5, trueSparsity: 0.5, predictedSparsity: 0.5 };

/** Tensors of a predictor that knows nothing. Matrices are f32. */
export function randomPredictor(
  shape: Pick<ModelConfig, "dim" | "nNeurons">,
  kind: PredictorKind,
  rank: number,
  seed: number,
): PredictorTensor[] {
  const normal = normals(seed);
  return predictorTensors(shape, rank, kind).map(({ name, shape: sizes }) => {
    const elements = sizes.reduce((a, b) => a * b, 1);
    if (name === "signs.weight") {
      const bytes = Uint8Array.from({ length: elements / 8 }, () => Math.floor(256 * Math.abs(normal())));
      return { name, shape: sizes, dtype: "bit" as DType, bytes };
    }
    const values = Float32Array.from({ length: elements }, () => normal() / 6);
    return { name, shape: sizes, dtype: "f32" as DType, bytes: new Uint8Array(values.buffer) };
  });
}

/**
 * Writes predictors for the converted model in `dir` that know nothing: half of what they say is wrong. `kinds` is one a
 * layer, mlp by default. Returns their path.
 */
export async function writeRandomPredictors(
  dir: string,
  rank: number,
  kinds: readonly PredictorKind[] = [],
): Promise<string> {
  const { config, weights } = await readModelFile(dir);
  const ofLayer = Array.from({ length: config.nLayers }, (_, layer) => kinds[layer] ?? "mlp");
  const stored = new Map(
    ofLayer.flatMap((kind, layer) =>
      randomPredictor(config, kind, rank, 9 + layer).map((tensor) => [
        layerTensor(layer, `predictor.${tensor.name}`),
        tensor,
      ]),
    ),
  );
  const specs = ofLayer.flatMap((kind, layer) => predictorSpecs(config, layer, rank, kind));
  const tensors = specs.map(({ name, shape }) => ({ name, shape, dtype: stored.get(name)!.dtype }));
  const metrics = ofLayer.map((kind): PredictorMetrics => {
    const bytes = kind === "exact" ? 0 : 1;
    return Object.assign({ kind, rank: hasRank(kind) ? rank : 0, threshold: 0, bytes }, RATES);
  });
  const origin = provenance("train-predictor", {}, { model: weights });
  const path = join(dir, "predictors.safetensors");
  await writeSafetensors(path, tensors, {
    metadata: () => predictorsMetadata({ metrics, quality: QUALITY, provenance: origin }),
    produce: ({ name }) => Promise.resolve(stored.get(name)!.bytes),
  });
  return path;
}
