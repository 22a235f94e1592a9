import { join } from "node:path";
import { predictorsMetadata } from "../../formats/predictors.ts";
import { provenance } from "../../formats/provenance.ts";
import { writeSafetensors } from "../../io/safetensors-file.ts";
import { readModelFile } from "../../model/model-file.ts";
import { predictorSpecs } from "../../model/tensors.ts";
import { normals } from "../native/planted.ts";

/** Writes predictors for the converted model in `dir` that know nothing: half of what they say is wrong. Returns their path. */
export async function writeRandomPredictors(dir: string, rank: number): Promise<string> {
  const normal = normals(9);
  const { config, weights } = await readModelFile(dir);
  const layers = Array.from({ length: config.nLayers }, (_, layer) => predictorSpecs(config, layer, rank));
  const tensors = layers.flat().map(({ name, shape }) => ({ name, shape, dtype: "f32" as const }));
  const rates = { recall: 0.5, weightedRecall: 0.5, precision: 0.5, trueSparsity: 0.5, predictedSparsity: 0.5 };
  const metric = { rank, threshold: 0, ...rates, bytes: 1 };
  const metrics = layers.map(() => metric);
  const origin = provenance("train-predictor", {}, { model: weights });
  const path = join(dir, "predictors.safetensors");
  await writeSafetensors(path, tensors, {
    metadata: () => predictorsMetadata({ metrics, provenance: origin }),
    produce: ({ shape }) => {
      const values = Float32Array.from({ length: shape.reduce((a, b) => a * b, 1) }, () => normal() / 6);
      return Promise.resolve(new Uint8Array(values.buffer));
    },
  });
  return path;
}
