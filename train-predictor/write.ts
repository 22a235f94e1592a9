import {
  predictorsMetadata,
  type ConsideredPredictor,
  type PredictorMetrics,
  type QualityReport,
} from "../formats/predictors.ts";
import type { Provenance } from "../formats/provenance.ts";
import { readSafetensors, readTensorBytes, writeSafetensors } from "../io/safetensors-file.ts";
import { storedTensors } from "../model/model-file.ts";
import { layerTensor, predictorSpecs } from "../model/tensors.ts";
import type { FinishedLayer, TrainingJournal } from "./journal.ts";
import type { Plan } from "./plan.ts";

interface Measured {
  metrics: PredictorMetrics[];
  /** Absent: a candidate that has yet to be measured. */
  quality?: QualityReport;
  considered?: ConsideredPredictor[][];
}

/** Writes the predictors of all layers, one tensor in memory at a time. */
export async function writePredictors(
  path: string,
  { model, trainedFrom }: Pick<Plan, "model" | "trainedFrom">,
  journal: TrainingJournal,
  layers: readonly { finished: FinishedLayer }[],
  measured: Measured,
  signal: AbortSignal,
): Promise<void> {
  const tensors = layers.flatMap(({ finished }, layer) =>
    predictorSpecs(model.config, layer, finished.rank, finished.kind).map(({ name, shape }) => {
      const part = name.slice(layerTensor(layer, "predictor.").length);
      return { name, shape, dtype: finished.tensors[part]!.dtype, bytes: () => journal.tensor(finished, part) };
    }),
  );
  const produce = new Map(tensors.map(({ name, bytes }) => [name, bytes]));
  await writeSafetensors(
    path,
    tensors.map(({ name, shape, dtype }) => ({ name, shape, dtype })),
    { metadata: metadataOf(measured, trainedFrom), produce: ({ name }) => produce.get(name)!(), signal },
  );
}

/** Writes the plan's predictors again, the same but for what was measured of them and on what. */
export async function rewriteQuality(plan: Plan, measured: Measured, signal: AbortSignal): Promise<void> {
  const file = await readSafetensors(plan.path);
  const tensors = [...storedTensors(file)].filter(([name]) => !name.startsWith("pad."));
  await writeSafetensors(
    plan.path,
    tensors.map(([name, { dtype, shape }]) => ({ name, dtype, shape })),
    { metadata: metadataOf(measured, plan.origin), produce: ({ name }) => readTensorBytes(file, name), signal },
  );
}

function metadataOf(measured: Measured, provenance: Provenance): () => Record<string, string> {
  const metadata = predictorsMetadata({ ...measured, provenance });
  return () => metadata;
}
