import type { CurvePoint, PredictorMetrics } from "../../../formats/predictors.ts";
import { ffnBytes } from "../../../train-predictor/ffn-prices.ts";
import { formatBytes, formatMicroseconds, formatNumber } from "../../output.ts";
import {
  curve,
  dot,
  drawing,
  FULL_WIDTH,
  label,
  rule,
  shiftedYAxis,
  spread,
  xAxis,
  type Picture,
  type Point,
} from "../chart.ts";
import type { Contents, Weights } from "../contents.ts";
import { element, type Markup } from "../markup.ts";
import { bytes, microseconds, recalls, type Interval, type Scale } from "../scale.ts";
import { modeBytes, neuronParts } from "../token-bytes.ts";

const ID = "recall-cost";
const HEADING = "Recall and what it costs";
const HEIGHT = 390;
const [TOP, BOTTOM] = [44, 336];

/** Above this next to nothing is missed: it has no place on an axis of misses. */
const COMPLETE = 1 - 1e-4;

/** A threshold: what a token costs in an FFN (predictor and neurons), and how much of its output that finds. */
interface Cost {
  amount: number;
  recall: number;
}

/** What costs are counted in. */
interface Unit {
  /** What a token does with so much of it. */
  verb: "reads" | "takes";
  text(amount: number): string;
  scale(most: number, range: Interval, count?: number): Scale;
}

const BYTES: Unit = { verb: "reads", text: formatBytes, scale: bytes };
const TIME: Unit = { verb: "takes", text: formatMicroseconds, scale: microseconds };

interface LayerCost {
  layer: number;
  /** By recall. */
  curve: Cost[];
  /** At the threshold in use. */
  chosen: Cost;
}

/**
 * What a token is expected to cost in the FFNs against the recall that this buys: of all layers together, and of each. In
 * time where predictors were chosen by that, else in bytes.
 */
export function recallCost(contents: Contents): Picture | undefined {
  const { predictors, model } = contents;
  if (!model || !predictors?.every(({ curve: points }) => points && points.length > 1)) return undefined;
  const unit = predictors.every(isTimed) ? TIME : BYTES;
  const layers = predictors.map((metrics, layer) => layerCost(model, metrics, layer, unit));
  const all = together(layers);
  const recallsShown = [...layers.flatMap(visible), ...visible(all)].map(({ recall }) => recall);
  if (recallsShown.length === 0 || visible(all).length < 2) return undefined;
  const y = recalls([Math.min(...recallsShown), Math.max(...recallsShown)], [BOTTOM, TOP]);
  const dense = unit === BYTES ? `; dense reads ${formatBytes(modeBytes(contents)[0]!.parts.ffn)}` : "";
  const inUse = `at the thresholds in use a token ${unit.verb} ${unit.text(all.chosen.amount)}`;
  const svg = drawing(
    {
      id: ID,
      title: unit === TIME ? "Recall by contribution against time" : "Recall by contribution against bytes read",
      desc: `In all layers' FFNs ${inUse} and finds ${recallText(all.chosen.recall)}${dense}.`,
      width: FULL_WIDTH,
      height: HEIGHT,
    },
    modelPanel(all, unit, y, [64, 528]),
    layersPanel(layers, unit, y, [664, FULL_WIDTH - 96]),
  );
  const note =
    `Every threshold of the predictors: left is cheaper, higher misses less. In all layers' FFNs, predictors included, ${inUse} ` +
    `and finds ${recallText(all.chosen.recall)} of what the neurons contribute${dense}.` +
    (unit === TIME ? " Times are what choosing the predictors expected, on the machine that it was done for." : "");
  return { id: ID, heading: HEADING, note, svg, table: table(layers, predictors, unit), wide: true };
}

export const RECALL_COST_MISSING = {
  id: ID,
  heading: HEADING,
  missing:
    "There are no predictors with curves, or no weights to price them by: pi train-predictor measures curves (with --force " +
    "where predictors were trained before curves were kept), pi place packs them.",
};

const recallText = (recall: number): string => `${formatNumber(100 * recall, 5)} %`;

const isTimed = ({ secondsPerToken, curve: points }: PredictorMetrics): boolean =>
  secondsPerToken !== undefined && points!.every((point) => point.secondsPerToken !== undefined);

function layerCost(model: Weights, metrics: PredictorMetrics, layer: number, unit: Unit): LayerCost {
  const { bytes: size, trueSparsity, recall: found, weightedRecall: weighted } = metrics;
  // A curve tells recall by contribution only. Misses by number, which decide how much of the neurons is read, are taken
  // to be in proportion: exact at the threshold in use.
  const ratio = weighted < 1 ? (1 - found) / (1 - weighted) : 0;
  const cost = ({ weightedRecall, predictedSparsity, secondsPerToken }: Omit<CurvePoint, "threshold">): Cost => {
    if (unit === TIME) return { amount: secondsPerToken!, recall: weightedRecall };
    const recall = Math.max(0, 1 - ratio * (1 - weightedRecall));
    const point = { recall, predictedSparsity, trueSparsity };
    return { amount: ffnBytes(size, model.config.nNeurons, neuronParts(model, layer), point), recall: weightedRecall };
  };
  const points = metrics.curve!.map(cost).sort((a, b) => a.recall - b.recall);
  return { layer, curve: points, chosen: cost(metrics) };
}

/** All layers at the same recall, where all their curves have it; in use, the sum of what is and the mean recall. */
function together(layers: readonly LayerCost[]): Pick<LayerCost, "curve" | "chosen"> {
  const sum = (of: (layer: LayerCost) => number): number => layers.reduce((total, layer) => total + of(layer), 0);
  const least = Math.max(...layers.map((layer) => layer.curve[0]!.recall));
  const most = Math.min(...layers.map((layer) => layer.curve.at(-1)!.recall));
  const levels = [...new Set(layers.flatMap((layer) => layer.curve.map(({ recall }) => recall)))]
    .filter((recall) => recall >= least && recall <= most && recall < COMPLETE)
    .sort((a, b) => a - b);
  const chosen = { amount: sum((layer) => layer.chosen.amount), recall: sum((l) => l.chosen.recall) / layers.length };
  return { curve: levels.map((recall) => ({ recall, amount: sum((layer) => amountAt(layer.curve, recall)) })), chosen };
}

/** Cost at a recall within a curve, on a straight line between its points. */
function amountAt(points: readonly Cost[], recall: number): number {
  const k = Math.max(
    1,
    points.findIndex((point) => point.recall >= recall),
  );
  const [from, to] = [points[k - 1]!, points[k]!];
  const share = to.recall > from.recall ? (recall - from.recall) / (to.recall - from.recall) : 0;
  return from.amount + share * (to.amount - from.amount);
}

const visible = ({ curve: points }: Pick<LayerCost, "curve">): Cost[] =>
  points.filter(({ recall }) => recall < COMPLETE);
const place = ({ amount, recall }: Cost, x: Scale, y: Scale): Point => [x(amount), y(recall)];

/** From nothing to a little past the dearest point shown. */
function costScale(costs: readonly Cost[], unit: Unit, range: Interval): Scale {
  return unit.scale(1.04 * Math.max(...costs.map((cost) => cost.amount)), range, 5);
}

const axisText = (unit: Unit): string => (unit === TIME ? "time that a token takes" : "bytes a token reads");

function modelPanel(all: Pick<LayerCost, "curve" | "chosen">, unit: Unit, y: Scale, [left, right]: Interval): Markup {
  const x = costScale([...visible(all), all.chosen], unit, [left, right]);
  return element(
    "g",
    {},
    shiftedYAxis(y, left, right, TOP, "recall by contribution"),
    xAxis(x, left, right, BOTTOM, `${axisText(unit)} in the FFNs of all layers, predictors included`),
    curve(
      visible(all).map((cost) => place(cost, x, y)),
      { class: "line thick ink", "data-curve": "model" },
    ),
    all.chosen.recall < COMPLETE ? chosenDot(all.chosen, unit, place(all.chosen, x, y), left) : undefined,
  );
}

/** The dot of the thresholds in use with its numbers: left of it, where the curve never is, if there is room. */
function chosenDot({ recall, amount }: Cost, unit: Unit, at: Point, left: number): Markup[] {
  const before = at[0] - left > 150;
  const [x, y] = before ? [at[0] - 12, at[1] - 4] : [at[0] + 12, at[1] + 16];
  const side = before ? "end halo" : "halo";
  return [
    dot(at, 4.5, { class: "ink" }),
    label(x, y, `in use: ${recallText(recall)}`, { class: `strong ${side}` }),
    label(x, y + 16, `for ${unit.text(amount)}`, { class: side }),
  ];
}

/** All layers thin; the cheapest, the middle and the dearest one in colour; a dot at the threshold in use. */
function layersPanel(layers: readonly LayerCost[], unit: Unit, y: Scale, [left, right]: Interval): Markup {
  const x = costScale(
    layers.flatMap((layer) => [...visible(layer), layer.chosen]),
    unit,
    [left, right],
  );
  const colors = highlights(layers);
  const rest = layers.filter(({ layer }) => !colors.has(layer));
  const chosen = layers.filter(({ layer }) => colors.has(layer));
  return element(
    "g",
    {},
    shiftedYAxis(y, left, right, TOP, "recall by contribution"),
    xAxis(x, left, right, BOTTOM, `${axisText(unit)} in one layer's FFN, predictor included`),
    rest.map((layer) => layerLine(layer, x, y, undefined)),
    chosen.map((layer) => layerLine(layer, x, y, colors.get(layer.layer))),
    endLabels(chosen, colors, x, y, right),
  );
}

type Color = "blue" | "green" | "orange";

/** The layers that cost least, a middling amount and most. */
function highlights(layers: readonly LayerCost[]): Map<number, Color> {
  const byCost = layers
    .filter((layer) => visible(layer).length > 1)
    .sort((a, b) => a.chosen.amount - b.chosen.amount || a.layer - b.layer);
  const colors = ["blue", "green", "orange"] as const;
  const picks = [0, Math.floor((byCost.length - 1) / 2), byCost.length - 1].flatMap((i) => byCost[i]?.layer ?? []);
  return new Map([...new Set(picks)].map((layer, i) => [layer, colors[i]!]));
}

function layerLine(layer: LayerCost, x: Scale, y: Scale, color: Color | undefined): Markup {
  const points = visible(layer).map((cost) => place(cost, x, y));
  const chosen = layer.chosen.recall < COMPLETE ? place(layer.chosen, x, y) : undefined;
  return element(
    "g",
    { "data-curve": `layer-${layer.layer}` },
    points.length > 1 ? curve(points, { class: color ? `line thick ${color}` : "line" }) : undefined,
    chosen && dot(chosen, color ? 4.5 : 2.5, { class: color ?? "grey" }),
  );
}

/** Names of the highlighted layers right of the plot, each with a thin line from the upper end of its curve. */
function endLabels(
  layers: readonly LayerCost[],
  colors: ReadonlyMap<number, Color>,
  x: Scale,
  y: Scale,
  right: number,
): Markup {
  const ends = layers.map((layer) => place(visible(layer).at(-1)!, x, y));
  // The dearest ends furthest to the right: its name goes lowest, or the thin lines would cross.
  const order = [...ends.keys()].sort((a, b) => ends[a]![0] - ends[b]![0]);
  const heights = spread(
    order.map((i, rank) => ends[i]![1] + rank * 1e-6),
    18,
  );
  return element(
    "g",
    {},
    ...order.map((i, rank) => [
      rule([ends[i]![0] + 3, ends[i]![1]], [right + 14, heights[rank]!], { class: "base" }),
      label(right + 18, heights[rank]! + 4, `layer ${layers[i]!.layer}`, { class: colors.get(layers[i]!.layer) }),
    ]),
  );
}

function table(layers: readonly LayerCost[], metrics: readonly PredictorMetrics[], unit: Unit): Picture["table"] {
  const rows = layers.flatMap(({ layer, curve: points, chosen }) => {
    const { predictedSparsity, curve: stored } = metrics[layer]!;
    const sorted = [...stored!].sort((a, b) => a.weightedRecall - b.weightedRecall);
    const row = (threshold: string, recall: number, predicted: number, amount: number): string[] => [
      String(layer),
      threshold,
      recallText(recall),
      recallText(predicted),
      unit.text(amount),
    ];
    return [
      row("in use", chosen.recall, 1 - predictedSparsity, chosen.amount),
      ...sorted.map((point, i) =>
        row(formatNumber(point.threshold, 4), point.weightedRecall, 1 - point.predictedSparsity, points[i]!.amount),
      ),
    ];
  });
  return {
    header: [
      "layer",
      "threshold",
      "recall by contribution",
      "neurons predicted",
      unit === TIME ? "time a token" : "bytes a token",
    ],
    rows,
  };
}
