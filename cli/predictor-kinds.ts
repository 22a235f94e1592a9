import {
  PREDICTOR_KINDS,
  type ConsideredPredictor,
  type PredictorKind,
  type PredictorMetrics,
} from "../formats/predictors.ts";
import type { TrainPredictorResult } from "../train-predictor/train-predictor.ts";
import { formatBytes, formatNumber, printTable } from "./output.ts";

/** Weighted recalls of the table of kinds. */
const RECALLS = [0.99, 0.995, 0.999];

/** What every kind that was considered would have all layers read at some recalls, and how many layers took it. */
export function printKinds({ considered, metrics, ffnBytes }: TrainPredictorResult): void {
  const kinds = PREDICTOR_KINDS.filter((kind) => considered.every((layer) => layer.some((p) => p.kind === kind)));
  if (kinds.length === 0) return;
  process.stdout.write("\n");
  const row = (kind: PredictorKind) => {
    const ofLayers = considered.map((layer) => layer.find((predictor) => predictor.kind === kind)!);
    return [
      kind,
      `${metrics.filter((layer) => layer.kind === kind).length} of ${metrics.length}`,
      formatBytes(ofLayers.reduce((sum, { bytes }) => sum + bytes, 0)),
      ...RECALLS.map((recall) => formatBytes(ofLayers.reduce((sum, predictor) => sum + bytesAt(predictor, recall), 0))),
    ];
  };
  const chosen = [
    "chosen",
    `${metrics.length}`,
    formatBytes(metrics.reduce((sum, { bytes }) => sum + bytes, 0)),
    `${formatBytes(ffnBytes.reduce((sum, { predictor }) => sum + predictor, 0))} at ${recallText(metrics)}`,
  ];
  const header = ["kind", "layers", "size", ...RECALLS.map((recall) => `FFN bytes/token at ${100 * recall} %`)];
  printTable(header, [...kinds.map(row), [...chosen, ...RECALLS.slice(1).map(() => "")]]);
  process.stdout.write("\n");
}

const recallText = (metrics: readonly PredictorMetrics[]): string =>
  `${formatNumber((100 * metrics.reduce((sum, { weightedRecall }) => sum + weightedRecall, 0)) / metrics.length, 4)} %`;

/** Of the first point on a curve that reaches `recall`; of its last where none does. */
function bytesAt({ curve }: ConsideredPredictor, recall: number): number {
  return (curve.find(({ weightedRecall }) => weightedRecall >= recall) ?? curve.at(-1)!).bytesPerToken;
}
