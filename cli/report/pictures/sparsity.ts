import { formatNumber } from "../../output.ts";
import { percent } from "../../place.ts";
import { curve, diamond, dot, drawing, HALF_WIDTH, label, rule, spread, xAxis, yAxis, type Picture } from "../chart.ts";
import type { Contents } from "../contents.ts";
import { element, type Markup } from "../markup.ts";
import { layerSlots, shares, type Interval } from "../scale.ts";

const ID = "sparsity";
const HEADING = "Sparsity by layer";
const HEIGHT = 330;
const [LEFT, RIGHT, TOP, BOTTOM] = [58, HALF_WIDTH - 104, 44, 276];

/** Idle neurons by layer: really, and as the predictor says. */
export function sparsity(contents: Contents): Picture | undefined {
  const { profiled, heldout, predicted } = series(contents);
  const idle = profiled ?? heldout;
  if (!idle) return undefined;
  const x = layerSlots(idle.length, [LEFT, RIGHT], 22);
  const y = shares(covering([...idle, ...(predicted ?? [])]), [BOTTOM, TOP]);
  const gaps = predicted?.map((share, l) => rule([x(l), y(share)], [x(l), y(idle[l]!)], { class: "base" }));
  const labels = spread([y(idle.at(-1)!), ...(predicted ? [y(predicted.at(-1)!)] : [])], 16);
  const svg = drawing(
    {
      id: ID,
      title: HEADING,
      desc: `Share of neurons that are idle, layers 0 to ${idle.length - 1}: from ${percent(Math.min(...idle))} to ${percent(Math.max(...idle))}.`,
      width: HALF_WIDTH,
      height: HEIGHT,
    },
    yAxis(y, LEFT, RIGHT, TOP, "idle neurons, mean over tokens"),
    xAxis(x, LEFT, RIGHT, BOTTOM, "layer"),
    gaps,
    marks(idle, "blue", (l) => [x(l), y(idle[l]!)], x.step),
    label(RIGHT + 8, labels[0]! + 4, "really idle", { class: "blue" }),
    predicted && [
      marks(predicted, "orange", (l) => [x(l), y(predicted[l]!)], x.step),
      label(RIGHT + 8, labels[1]! + 4, "predicted idle", { class: "orange" }),
    ],
  );
  return {
    id: ID,
    heading: HEADING,
    note: note(contents, idle, predicted),
    svg,
    table: table(profiled, heldout, predicted),
  };
}

export const SPARSITY_MISSING = {
  id: ID,
  heading: HEADING,
  missing: "Nothing says how many neurons are idle: pi profile counts them.",
};

interface Series {
  /** Over the profiled tokens; over the samples that predictors were measured on. */
  profiled: number[] | undefined;
  heldout: number[] | undefined;
  predicted: number[] | undefined;
}

function series({ activity, predictors }: Contents): Series {
  const profiled =
    activity && activity.tokens > 0
      ? activity.layers.map(({ neurons, activations }) => 1 - activations.at(-1)! / (neurons.at(-1)! * activity.tokens))
      : undefined;
  return {
    profiled,
    heldout: predictors?.map(({ trueSparsity }) => trueSparsity),
    predicted: predictors?.map(({ predictedSparsity }) => predictedSparsity),
  };
}

/** An interval of whole twentieths around the values, for dots: it need not begin with 0. */
export function covering(values: readonly number[]): Interval {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [from, to] = [Math.max(0, Math.floor(low * 20 - 0.2) / 20), Math.min(1, Math.ceil(high * 20 + 0.2) / 20)];
  return to > from ? [from, to] : [Math.max(0, from - 0.05), Math.min(1, to + 0.05)];
}

/** A dot (blue) or diamond (orange) a layer, on a line that leads the eye. */
function marks(
  values: readonly number[],
  color: "blue" | "orange",
  at: (layer: number) => readonly [number, number],
  step: number,
): Markup {
  const radius = Math.min(4.5, Math.max(2, step / 3));
  const points = values.map((_, layer) => at(layer));
  return element(
    "g",
    { "data-series": color },
    curve(points, { class: `line ${color}` }),
    ...points.map((point) =>
      color === "blue"
        ? dot(point, radius, { class: "blue" })
        : diamond(point, radius * 1.15, { class: "hollow orange" }),
    ),
  );
}

function note({ activity }: Contents, idle: number[], predicted: number[] | undefined): string {
  const mean = (values: number[]): string => percent(values.reduce((a, b) => a + b, 0) / values.length);
  const really = `On average ${mean(idle)} of the neurons are idle`;
  const counted = activity ? `, counted over ${formatNumber(activity.tokens)} tokens` : "";
  if (!predicted) return `${really}${counted}.`;
  return `${really}${counted}; the predictors say so of ${mean(predicted)}. Most of the gap is work done in vain.`;
}

function table(...[profiled, heldout, predicted]: (number[] | undefined)[]): Picture["table"] {
  const columns = [
    { title: "idle, profiled", values: profiled },
    { title: "idle, held out", values: heldout },
    { title: "predicted idle", values: predicted },
  ].filter(({ values }) => values !== undefined);
  const layers = columns[0]!.values!;
  return {
    header: ["layer", ...columns.map(({ title }) => title)],
    rows: layers.map((_, l) => [String(l)].concat(columns.map(({ values }) => percent(values![l]!)))),
  };
}
