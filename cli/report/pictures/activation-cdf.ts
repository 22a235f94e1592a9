import { HOT_SHARE, type Activity, type ActivityCurve } from "../../../formats/activity.ts";
import { formatNumber } from "../../output.ts";
import {
  curve,
  dot,
  drawing,
  FULL_WIDTH,
  label,
  rule,
  shiftedYAxis,
  xAxis,
  type Picture,
  type Point,
} from "../chart.ts";
import type { Contents } from "../contents.ts";
import { element, type Markup } from "../markup.ts";
import { percent } from "../../place.ts";
import { shares, type Scale } from "../scale.ts";

const ID = "activation-cdf";
const HEADING = "Activation CDF";
const HEIGHT = 420;
const [TOP, BOTTOM] = [44, 366];

/** Share of the neurons, hot first, against their share of all activations: figure 5 of the PowerInfer paper. */
export function activationCdf({ activity }: Contents): Picture | undefined {
  if (!activity || total(activity.model) === 0) return undefined;
  const { model, layers, tokens } = activity;
  const hot = percent(model.hot80 / size(model));
  const chosen = highlights(layers);
  const desc =
    `${hot} of all neurons give ${percent(HOT_SHARE)} of the activations. By layer, the share of the neurons that give ` +
    `${percent(HOT_SHARE)}: ${chosen.map(({ layer }) => `layer ${layer} ${hotShare(layers[layer]!)}`).join(", ")}.`;
  const svg = drawing(
    {
      id: ID,
      title: "Cumulative share of activations by share of neurons, hot first",
      desc,
      width: FULL_WIDTH,
      height: HEIGHT,
    },
    modelPanel(model, 52, 528),
    layersPanel(layers, chosen, 652, FULL_WIDTH - 24),
  );
  const never = model.never === 0 ? "all of them did at least once" : `${percent(model.never / size(model))} never did`;
  const note =
    `Neurons sorted by how often they fired over ${formatNumber(tokens)} tokens; ${never}. ` +
    `The dashed diagonal is what neurons that all fire equally often would give.`;
  return {
    id: ID,
    heading: `${HEADING}: ${hot} of the neurons give ${percent(HOT_SHARE)} of the activations`,
    note,
    svg,
    table: table(activity),
    wide: true,
  };
}

export const ACTIVATION_CDF_MISSING = {
  id: ID,
  heading: HEADING,
  missing: "There are no activation counts: pi profile makes them, and pi place keeps their curve in the artifact.",
};

const size = ({ neurons }: ActivityCurve): number => neurons.at(-1)!;
const total = ({ activations }: ActivityCurve): number => activations.at(-1)!;
const hotShare = (of: ActivityCurve): string => percent(of.hot80 / size(of));

function scales(left: number, right: number): { x: Scale; y: Scale } {
  return { x: shares([0, 1], [left, right]), y: shares([0, 1], [BOTTOM, TOP]) };
}

function axes(x: Scale, y: Scale, left: number, right: number, what: string): Markup[] {
  return [shiftedYAxis(y, left, right, TOP, "share of activations"), xAxis(x, left, right, BOTTOM, what)];
}

/** A curve's points in pixels, from no neuron to all. Layers that never fired have none. */
function pointsOf(of: ActivityCurve, x: Scale, y: Scale): Point[] {
  return of.neurons.map((rank, k): Point => [x(rank / size(of)), y(of.activations[k]! / total(of))]);
}

/** The whole model, with the point at which its hot neurons have given 80 %. */
function modelPanel(model: ActivityCurve, left: number, right: number): Markup {
  const { x, y } = scales(left, right);
  const hot: Point = [x(model.hot80 / size(model)), y(HOT_SHARE)];
  const drop = { class: "mark dashed" };
  return element(
    "g",
    {},
    ...axes(x, y, left, right, "share of the model's neurons, hot first"),
    equality(x, y),
    rule([left, hot[1]], hot, drop),
    rule(hot, [hot[0], BOTTOM], drop),
    curve(pointsOf(model, x, y), { class: "line thick ink", "data-curve": "model" }),
    dot(hot, 4.5, { class: "ink" }),
    label(hot[0] + 12, hot[1] + 22, `${percent(model.hot80 / size(model))} of the neurons`, { class: "strong halo" }),
    label(hot[0] + 12, hot[1] + 38, `give ${percent(HOT_SHARE)} of the activations`, { class: "halo" }),
  );
}

/** All layers thin; the most, the middle and the least skewed one in colour. */
function layersPanel(
  layers: readonly ActivityCurve[],
  chosen: readonly Highlight[],
  left: number,
  right: number,
): Markup {
  const { x, y } = scales(left, right);
  const drawn = layers.map((layer, index) => ({ layer, index })).filter(({ layer }) => total(layer) > 0);
  const rest = drawn.filter(({ index }) => chosen.every(({ layer }) => layer !== index));
  const at = (index: number): Point[] => pointsOf(layers[index]!, x, y);
  const labels = chosen.map(({ layer, color }, i) => {
    const height = BOTTOM - 26 - 20 * (chosen.length - 1 - i);
    return [
      rule([right - 262, height - 4], [right - 240, height - 4], { class: `line thick ${color}` }),
      label(right - 232, height, `layer ${layer}: ${hotShare(layers[layer]!)} of neurons give ${percent(HOT_SHARE)}`, {
        class: color,
      }),
    ];
  });
  return element(
    "g",
    {},
    ...axes(x, y, left, right, "share of the layer's neurons, hot first"),
    equality(x, y),
    ...rest.map(({ index }) => curve(at(index), { "data-curve": `layer-${index}` })),
    ...chosen.map(({ layer, color }) =>
      curve(at(layer), { class: `line thick ${color}`, "data-curve": `layer-${layer}` }),
    ),
    rest.length > 0 ? othersLabel(rest.length, right, BOTTOM - 26 - 20 * chosen.length) : undefined,
    ...labels,
  );
}

function othersLabel(count: number, right: number, height: number): Markup[] {
  const text = count === 1 ? "the other layer" : `the other ${formatNumber(count)} layers`;
  return [
    rule([right - 262, height - 4], [right - 240, height - 4], { class: "line" }),
    label(right - 232, height, text, { class: "quiet" }),
  ];
}

/** What neurons that all fire equally often would give. */
function equality(x: Scale, y: Scale): Markup {
  return rule([x(0), y(0)], [x(1), y(1)], { class: "base dashed" });
}

interface Highlight {
  layer: number;
  color: "blue" | "green" | "orange";
}

/** The layers whose 80 % need the fewest, a middling number and the most neurons, in this order. */
function highlights(layers: readonly ActivityCurve[]): Highlight[] {
  const active = [...layers.keys()].filter((layer) => total(layers[layer]!) > 0);
  const bySkew = active.sort((a, b) => layers[a]!.hot80 - layers[b]!.hot80 || a - b);
  const picks = [0, Math.floor((bySkew.length - 1) / 2), bySkew.length - 1].map((i) => bySkew[i]!);
  const colors = ["blue", "green", "orange"] as const;
  return [...new Set(picks)].map((layer, i) => ({ layer, color: colors[i]! }));
}

/** Shares of the neurons for which the table tells the share of activations. */
const TABLE_SHARES = [0.01, 0.05, 0.1, 0.2, 0.5];

function table({ model, layers, tokens }: Activity): Picture["table"] {
  const row = (name: string, of: ActivityCurve): string[] => [
    name,
    ...TABLE_SHARES.map((share) => percent(shareAt(of, share))),
    hotShare(of),
    percent(1 - total(of) / (size(of) * tokens)),
    percent(of.never / size(of)),
  ];
  return {
    header: [
      "layer",
      ...TABLE_SHARES.map((share) => `hottest ${percent(share)} give`),
      `neurons giving ${percent(HOT_SHARE)}`,
      "idle",
      "never active",
    ],
    rows: [row("all", model), ...layers.map((layer, index) => row(String(index), layer))],
  };
}

/** Share of the activations that the hottest `share` of the neurons give, on a straight line between the curve's ranks. */
export function shareAt(of: ActivityCurve, share: number): number {
  const rank = share * size(of);
  const k = Math.max(
    1,
    of.neurons.findIndex((neurons) => neurons >= rank),
  );
  const [from, to] = [of.neurons[k - 1]!, of.neurons[k]!];
  const [below, above] = [of.activations[k - 1]!, of.activations[k]!];
  return (below + ((rank - from) / (to - from)) * (above - below)) / total(of);
}
