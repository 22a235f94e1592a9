import { miss, type OperatingPoint } from "./curve.ts";

/** A layer whose threshold is to be chosen. */
export interface Candidates {
  /** In ascending order of recall; the last one misses nothing. */
  points: readonly OperatingPoint[];
  /** Expected seconds of a token in the layer's FFN at a point. */
  seconds(point: OperatingPoint): number;
  /** What a miss does to the model: the layer adds sensitivity * miss ** exponent to its divergence. */
  sensitivity: number;
}

/** Seconds that a unit of divergence may be worth; and halvings of its logarithm: 36 decades, a double has 16 digits. */
const PRICES = { lowest: 1e-15, highest: 1e21 };
const HALVINGS = 60;

/** The divergence that `chosen`, one point a layer, is expected to add to the model. */
export function expectedLoss(
  layers: readonly Candidates[],
  chosen: readonly OperatingPoint[],
  exponent: number,
): number {
  return layers.reduce((sum, { sensitivity }, i) => sum + sensitivity * miss(chosen[i]!) ** exponent, 0);
}

/**
 * One point a layer, that take the least time in all, whose expected loss is at most `loss` (up to the gaps of the curves'
 * convex hulls): every layer minimises seconds + price * loss at one common price, so the last second saved costs the same
 * quality in every layer. The price is found by bisection. O(layers * points * 60).
 */
export function allocate(layers: readonly Candidates[], loss: number, exponent: number): OperatingPoint[] {
  const tables = layers.map((layer) => costs(layer, exponent));
  const at = (price: number) => tables.map((table) => cheapest(table, price));
  const lossAt = (price: number) => tables.reduce((sum, table) => sum + table.losses[cheapest(table, price)]!, 0);
  let [low, high] = [PRICES.lowest, PRICES.highest];
  for (let i = 0; i < HALVINGS; i++) {
    const price = Math.sqrt(low * high);
    if (lossAt(price) <= loss) high = price;
    else low = price;
  }
  return at(high).map((index, i) => layers[i]!.points[index]!);
}

/** Seconds and expected losses of a layer's points. */
interface Costs {
  seconds: Float64Array;
  losses: Float64Array;
}

function costs({ points, seconds, sensitivity }: Candidates, exponent: number): Costs {
  return {
    seconds: Float64Array.from(points, (point) => seconds(point)),
    losses: Float64Array.from(points, (point) => sensitivity * miss(point) ** exponent),
  };
}

/** Index of the point of least seconds + price * loss; of equals the one that misses least. */
function cheapest({ seconds, losses }: Costs, price: number): number {
  let best = seconds.length - 1;
  for (let i = best; i >= 0; i--) {
    if (seconds[i]! + price * losses[i]! < seconds[best]! + price * losses[best]!) best = i;
  }
  return best;
}
