import type { PredictorMetrics } from "../../../formats/predictors.ts";
import { formatBytes, formatNumber, rankText } from "../../output.ts";
import { percent } from "../../place.ts";
import { bar, diamond, dot, drawing, HALF_WIDTH, label, rule, spread, xAxis, yAxis, type Picture } from "../chart.ts";
import { weightBytes, type Contents } from "../contents.ts";
import { element, type Markup } from "../markup.ts";
import { bytes, layerSlots, linear, niceSteps, type Scale } from "../scale.ts";

const ID = "predictors";
const HEADING = "Predictors: what they find, what they weigh";
const HEIGHT = 330;
const [LEFT, RIGHT] = [58, HALF_WIDTH - 104];
/** Heights of the two plots: recall above, size below. */
const RECALL = { top: 44, bottom: 148 };
const SIZE = { top: 196, bottom: 276 };

/** Recall of each layer's predictor above its size. */
export function predictors({ predictors: metrics, model }: Contents): Picture | undefined {
  if (!metrics) return undefined;
  const x = layerSlots(metrics.length, [LEFT, RIGHT], 22);
  const total = metrics.reduce((sum, layer) => sum + layer.bytes, 0);
  const worst = metrics.reduce((a, b) => (b.weightedRecall < a.weightedRecall ? b : a));
  const svg = drawing(
    {
      id: ID,
      title: "Recall and size of the predictors by layer",
      desc: `Recall weighted by contribution is at least ${recallText(worst.weightedRecall)}; the predictors take ${formatBytes(total)} in all.`,
      width: HALF_WIDTH,
      height: HEIGHT,
    },
    recallPlot(metrics, x),
    sizePlot(metrics, x),
  );
  const share = model ? ` (${percent(total / weightBytes(model))} of the model)` : "";
  const note =
    `Every layer's predictor finds at least ${recallText(worst.weightedRecall)} of what its active neurons contribute. ` +
    `Together they take ${formatBytes(total)}${share}.`;
  return { id: ID, heading: HEADING, note, svg, table: table(metrics) };
}

export const PREDICTORS_MISSING = {
  id: ID,
  heading: HEADING,
  missing: "There are no predictors: pi train-predictor trains them, and pi place packs them.",
};

const recallText = (share: number): string => `${formatNumber(100 * share, 4)} %`;

/** Recall by contribution (dots) and by number (diamonds). */
function recallPlot(metrics: readonly PredictorMetrics[], x: Scale & { step: number }): Markup {
  const low = Math.min(...metrics.map(({ recall, weightedRecall }) => Math.min(recall, weightedRecall)));
  const from = 1 - niceAbove(1 - low);
  const ticks = niceSteps([100 * from, 100], 4).map((value) => ({
    value: value / 100,
    label: `${formatNumber(value, 5)} %`,
  }));
  const y = linear([from, 1], [RECALL.bottom, RECALL.top], ticks);
  const radius = Math.min(4.5, Math.max(2, x.step / 3));
  const last = metrics.at(-1)!;
  const heights = spread([y(last.weightedRecall), y(last.recall)], 16);
  return element(
    "g",
    { "data-series": "recall" },
    yAxis(y, LEFT, RIGHT, RECALL.top, "active neurons found"),
    metrics.map(({ recall, weightedRecall }, l) => [
      rule([x(l), y(recall)], [x(l), y(weightedRecall)], { class: "base" }),
      diamond([x(l), y(recall)], radius * 1.15, { class: "hollow orange" }),
      dot([x(l), y(weightedRecall)], radius, { class: "blue" }),
    ]),
    label(RIGHT + 8, heights[0]! + 4, "by contribution", { class: "blue" }),
    label(RIGHT + 8, heights[1]! + 4, "by number", { class: "orange" }),
  );
}

/** The next round number from `share` on: what misses are shown from. */
function niceAbove(share: number): number {
  const steps = [0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5];
  return steps.find((step) => step >= share * 1.05) ?? 1;
}

/** Bars of bytes, with the rank on each where there is room. */
function sizePlot(metrics: readonly PredictorMetrics[], x: Scale & { step: number }): Markup {
  const most = Math.max(...metrics.map((layer) => layer.bytes));
  const y = bytes(most * 1.15, [SIZE.bottom, SIZE.top], 3);
  const half = Math.min(14, x.step * 0.36);
  return element(
    "g",
    { "data-series": "size" },
    yAxis(y, LEFT, RIGHT, SIZE.top, x.step >= 26 ? "size of the predictor, with its rank" : "size of the predictor"),
    metrics.map((layer, l) => [
      bar([x(l) - half, y(layer.bytes)], [x(l) + half, SIZE.bottom], { class: "sky", "data-layer": l }),
      x.step >= 26
        ? label(x(l), y(layer.bytes) - 4, layer.rank > 0 ? String(layer.rank) : layer.kind!, {
            class: "middle quiet halo",
          })
        : undefined,
    ]),
    xAxis(x, LEFT, RIGHT, SIZE.bottom, "layer"),
  );
}

function table(metrics: readonly PredictorMetrics[]): Picture["table"] {
  return {
    header: ["layer", "kind", "rank", "recall by contribution", "recall by number", "precision", "threshold", "size"],
    rows: metrics.map((layer, l) => [
      String(l),
      layer.kind ?? "mlp",
      rankText(layer),
      recallText(layer.weightedRecall),
      recallText(layer.recall),
      percent(layer.precision),
      formatNumber(layer.threshold, 4),
      formatBytes(layer.bytes),
    ]),
  };
}
