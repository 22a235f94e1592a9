import {
  PREDICTOR_KINDS,
  type ConsideredPredictor,
  type PredictorKind,
  type PredictorMetrics,
} from "../formats/predictors.ts";
import type { TrainPredictorResult } from "../train-predictor/train-predictor.ts";
import type { Cost } from "../train-predictor/ffn-prices.ts";
import { formatBytes, formatMicroseconds, formatNumber, printTable } from "./output.ts";

/** Weighted recalls of the table of kinds. */
const RECALLS = [0.99, 0.995, 0.999];

/** What every kind that was considered would cost in all layers at some recalls, and how many layers took it. */
export function printKinds({ considered, metrics, ffn }: TrainPredictorResult): void {
  const kinds = PREDICTOR_KINDS.filter((kind) => considered.every((layer) => layer.some((p) => p.kind === kind)));
  if (kinds.length === 0) return;
  process.stdout.write("\n");
  const row = (kind: PredictorKind) => {
    const ofLayers = considered.map((layer) => layer.find((predictor) => predictor.kind === kind)!);
    return [
      kind,
      `${metrics.filter((layer) => layer.kind === kind).length} of ${metrics.length}`,
      formatBytes(ofLayers.reduce((sum, { bytes }) => sum + bytes, 0)),
      ...RECALLS.map((recall) => costText(ofLayers.map((predictor) => costAt(predictor, recall)))),
    ];
  };
  const chosen = [
    "chosen",
    `${metrics.length}`,
    formatBytes(metrics.reduce((sum, { bytes }) => sum + bytes, 0)),
    `${costText(ffn.map(({ predictor }) => predictor))} at ${recallText(metrics)}`,
  ];
  const header = ["kind", "layers", "size", ...RECALLS.map((recall) => `FFN a token at ${100 * recall} %`)];
  printTable(header, [...kinds.map(row), [...chosen, ...RECALLS.slice(1).map(() => "")]]);
  process.stdout.write("\n");
}

const recallText = (metrics: readonly PredictorMetrics[]): string =>
  `${formatNumber((100 * metrics.reduce((sum, { weightedRecall }) => sum + weightedRecall, 0)) / metrics.length, 4)} %`;

/** Of all layers together. */
function costText(layers: readonly Cost[]): string {
  const [bytes, seconds] = [layers.map((cost) => cost.bytes), layers.map((cost) => cost.seconds)];
  const sum = (values: number[]): number => values.reduce((a, b) => a + b, 0);
  return `${formatBytes(sum(bytes))}, ${formatMicroseconds(sum(seconds))}`;
}

/** Of the first point on a curve that reaches `recall`; of its last where none does. */
function costAt({ curve }: ConsideredPredictor, recall: number): Cost {
  const point = curve.find(({ weightedRecall }) => weightedRecall >= recall) ?? curve.at(-1)!;
  return { bytes: point.bytesPerToken, seconds: point.secondsPerToken! };
}
