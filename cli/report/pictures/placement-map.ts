import { HOT_SHARE } from "../../../formats/activity.ts";
import type { LayerPlacement, Placement } from "../../../formats/placement.ts";
import { formatNumber } from "../../output.ts";
import { percent } from "../../place.ts";
import { bar, diamond, drawing, FULL_WIDTH, label, xAxis, type Picture } from "../chart.ts";
import type { Contents } from "../contents.ts";
import { element, type Markup } from "../markup.ts";
import { shares, type Scale } from "../scale.ts";

const ID = "placement";
const HEADING = "Placement: which neurons live where";
/** Columns: layer numbers, attention, predictor, neurons, what that gives. */
const COLUMN = { layer: 40, attention: 74, predictor: 140, left: 196, right: FULL_WIDTH - 280 };
const TOP = 56;

/** Every layer's neurons by rank, the GPU's part filled; squares for attention, predictor and head. */
export function placementMap({ placement, model, activity, predictors }: Contents): Picture | undefined {
  if (!placement || !model) return undefined;
  const { nNeurons } = model.config;
  const { layers } = placement;
  const step = Math.max(8, Math.min(24, 560 / layers.length));
  const bottom = TOP + step * layers.length;
  const x = shares([0, 1], [COLUMN.left, COLUMN.right], 10);
  const every = [1, 2, 4, 5, 10].find((k) => k * step >= 13) ?? 20;
  const middle = (layer: number): number => TOP + step * (layer + 0.5);
  const rows = layers.map((layer, l) => [
    l % every === 0 ? label(COLUMN.layer, middle(l) + 4, String(l), { class: "tick end" }) : undefined,
    square(COLUMN.attention, middle(l), step, layer.attention),
    predictors ? square(COLUMN.predictor, middle(l), step, layer.predictor) : undefined,
    layerBar(layer, l, nNeurons, x, middle(l), step),
    activity ? hotMark(activity.layers[l]!.hot80 / nNeurons, x, middle(l), step) : undefined,
    l % every === 0 ? label(COLUMN.right + 14, middle(l) + 4, gives(layer, nNeurons), { class: "tick" }) : undefined,
  ]);
  const svg = drawing(
    {
      id: ID,
      title: HEADING,
      desc: describe(placement, nNeurons),
      width: FULL_WIDTH,
      height: bottom + 44 + (predictors || placement.head ? 26 : 0),
    },
    header(predictors !== undefined, activity !== undefined),
    ...rows,
    xAxis(x, COLUMN.left, COLUMN.right, bottom + 4, "neurons of the layer by rank, hot first"),
    square(COLUMN.attention, bottom + 22, 24, placement.head),
    label(COLUMN.layer, bottom + 26, "head", { class: "tick end" }),
  );
  return {
    id: ID,
    heading: HEADING,
    note: note(placement, nNeurons),
    svg,
    table: table(placement, nNeurons),
    wide: true,
  };
}

export const PLACEMENT_MISSING = {
  id: ID,
  heading: HEADING,
  missing: "No placement was made: pi place decides what the GPU holds and packs it into an artifact.",
};

/** Names of the columns, and what the two fills mean. */
function header(predictors: boolean, activity: boolean): Markup {
  const y = TOP - 14;
  const key = COLUMN.left;
  return element(
    "g",
    {},
    label(COLUMN.layer, y, "layer", { class: "axis end" }),
    label(COLUMN.attention, y, "attention", { class: "axis middle" }),
    predictors ? label(COLUMN.predictor, y, "predictor", { class: "axis middle" }) : undefined,
    bar([key, y - 10], [key + 12, y + 2], { class: "blue" }),
    label(key + 18, y, "on the GPU", { class: "blue strong" }),
    bar([key + 106, y - 10], [key + 118, y + 2], { class: "idle" }),
    label(key + 124, y, "with the CPU", {}),
    activity
      ? [
          diamond([key + 226, y - 4], 5, { class: "hollow ink" }),
          label(key + 237, y, `up to here ${percent(HOT_SHARE)} of the layer's activations`, {}),
        ]
      : undefined,
    label(COLUMN.right + 14, y, "GPU neurons, and their activations", { class: "axis" }),
  );
}

function square(x: number, y: number, step: number, gpu: boolean): Markup | undefined {
  const half = Math.min(6, step * 0.36);
  return bar([x - half, y - half], [x + half, y + half], { class: gpu ? "blue" : "idle" });
}

function layerBar(layer: LayerPlacement, l: number, nNeurons: number, x: Scale, y: number, step: number): Markup {
  const half = step * 0.36;
  const edge = x(layer.gpuNeurons / nNeurons);
  return element(
    "g",
    { "data-layer": l },
    bar([x(0), y - half], [edge, y + half], { class: "blue" }),
    bar([edge, y - half], [x(1), y + half], { class: "idle" }),
  );
}

const hotMark = (share: number, x: Scale, y: number, step: number): Markup =>
  diamond([x(share), y], Math.min(5, step * 0.4), { class: "hollow ink" });

const gives = ({ gpuNeurons, impactShare }: LayerPlacement, nNeurons: number): string =>
  gpuNeurons === 0 ? "none" : `${formatNumber(gpuNeurons)} of ${formatNumber(nNeurons)}: ${percent(impactShare)}`;

function describe({ layers, head, gpuShare }: Placement, nNeurons: number): string {
  const placed = layers.reduce((sum, { gpuNeurons }) => sum + gpuNeurons, 0) / (layers.length * nNeurons);
  return (
    `On the GPU: ${percent(placed)} of the neurons, which do ${percent(gpuShare)} of the neuron work; the attention of ` +
    `${layers.filter(({ attention }) => attention).length} of ${layers.length} layers${head ? "; the head" : ""}.`
  );
}

function note(placement: Placement, nNeurons: number): string {
  const { hardware, predicted, vramBudget } = placement;
  if (vramBudget === 0) return `Placed with a budget of 0: everything stays with the CPU (${hardware.name}).`;
  const speeds = `predicted ${formatNumber(predicted.tokensPerSecond)} tokens/s, ${formatNumber(predicted.cpuOnlyTokensPerSecond)} with the CPU alone`;
  return `${describe(placement, nNeurons)} For ${hardware.name} with ${hardware.gpu?.name ?? "no GPU"}: ${speeds}.`;
}

function table({ layers }: Placement, nNeurons: number): Picture["table"] {
  const device = (gpu: boolean): string => (gpu ? "GPU" : "CPU");
  return {
    header: [
      "layer",
      "GPU neurons",
      "of its neurons",
      "of its activations",
      "at least (C_l)",
      "attention",
      "predictor",
    ],
    rows: layers.map((layer, l) => [
      String(l),
      formatNumber(layer.gpuNeurons),
      percent(layer.gpuNeurons / nNeurons),
      percent(layer.impactShare),
      layer.minimumNeurons === null ? "–" : formatNumber(layer.minimumNeurons),
      device(layer.attention),
      device(layer.predictor),
    ]),
  };
}
