import type { Activations } from "./activations.ts";
import { check } from "./errors.ts";
import { Fields } from "./fields.ts";

/**
 * How unequally neurons fire: what an artifact keeps of `activations.arrow` (`pi.activity`). Sums at some forty ranks a
 * layer, whatever its width: about 50 kB of JSON for 80 layers of 28,672 neurons, where the counts would be 9 MB.
 */
export interface Activity {
  /** Rows that were counted. */
  tokens: number;
  layers: ActivityCurve[];
  /** The neurons of all layers in one order. */
  model: ActivityCurve;
}

/** Counts of neurons sorted hot first, summed. */
export interface ActivityCurve {
  /** Ranks, ascending from 0 to the number of neurons. */
  neurons: number[];
  /** How often the hottest `neurons[k]` neurons fired, all together. */
  activations: number[];
  /** Fewest neurons that make up 80 % of the activations. */
  hot80: number;
  /** Neurons that never fired. */
  never: number;
}

/** The share of activations of {@link ActivityCurve.hot80}, as in the paper. */
export const HOT_SHARE = 0.8;

/** Steps of a curve, shorter where it is steep: rank k is (k / STEPS)² of the neurons. */
const STEPS = 40;

/** Sorts all counts twice: about a second for 80 layers of 28,672 neurons. */
export function activityOf({ layers, nNeurons, tokens }: Activations): Activity {
  const all = new Float64Array(layers.length * nNeurons);
  const curves = layers.map(({ count }, layer) => {
    const counts = Float64Array.from(count, Number);
    all.set(counts, layer * nNeurons);
    return activityCurve(counts);
  });
  return { tokens, layers: curves, model: activityCurve(all) };
}

/** The curve of some neurons' counts, which it sorts in place. */
export function activityCurve(counts: Float64Array): ActivityCurve {
  counts.sort().reverse();
  const n = counts.length;
  const total = counts.reduce((sum, count) => sum + count, 0);
  const neurons = curveRanks(n);
  const activations = neurons.map(() => 0);
  let hot80 = 0;
  for (let rank = 0, sum = 0, k = 0; rank <= n; rank++) {
    if (neurons[k] === rank) activations[k++] = sum;
    if (sum < HOT_SHARE * total) hot80 = rank + 1;
    sum += counts[rank] ?? 0;
  }
  const idle = counts.indexOf(0);
  return { neurons, activations, hot80, never: idle < 0 ? 0 : n - idle };
}

const curveRanks = (n: number): number[] => [
  ...new Set(Array.from({ length: STEPS + 1 }, (_, k) => Math.round(n * (k / STEPS) ** 2))),
];

/** Parses `pi.activity` of a model of `nLayers` layers of `nNeurons`. Throws `E_FORMAT`. */
export function parseActivity(text: string, file: string, shape: { nLayers: number; nNeurons: number }): Activity {
  const where = `${file}: pi.activity`;
  const fields = Fields.parse(text, where, "E_FORMAT");
  const { nLayers, nNeurons } = shape;
  const tokens = fields.integer("tokens");
  const curve = (of: Fields, what: string, size: number) => readCurve(of, `${where}: ${what}`, size, tokens);
  return {
    tokens,
    layers: fields.objects("layers", nLayers).map((layer, l) => curve(layer, `layer ${l}`, nNeurons)),
    model: curve(fields.object("model"), "model", nLayers * nNeurons),
  };
}

/** A curve of `n` neurons, none of which can have fired more than `tokens` times, the hotter the more often. */
function readCurve(fields: Fields, where: string, n: number, tokens: number): ActivityCurve {
  const [neurons, activations] = [fields.numbers("neurons"), fields.numbers("activations")];
  const whole = [...neurons, ...activations].every(Number.isSafeInteger);
  const ends = neurons[0] === 0 && neurons.at(-1) === n && activations[0] === 0;
  check(
    whole && ends && neurons.length === activations.length,
    "E_FORMAT",
    () =>
      `${where}: expected as many ranks, from 0 to ${n}, as sums, from 0 on, as whole numbers; found ${neurons.length}, ` +
      `from ${neurons[0]} to ${neurons.at(-1)}, and ${activations.length}, from ${activations[0]}`,
  );
  let steepest = tokens;
  for (let k = 1; k < neurons.length; k++) {
    const slope = (activations[k]! - activations[k - 1]!) / (neurons[k]! - neurons[k - 1]!);
    check(
      neurons[k]! > neurons[k - 1]! && slope >= 0 && slope <= steepest,
      "E_FORMAT",
      `${where}: expected neurons hot first, of at most ${steepest} activations each, found ${slope} up to rank ${neurons[k]}`,
    );
    steepest = slope;
  }
  return { neurons, activations, hot80: fields.integer("hot80", 0, n), never: fields.integer("never", 0, n) };
}
