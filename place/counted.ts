import { solveGreedy } from "./greedy.ts";
import { hull } from "./hull.ts";
import { total, type Group } from "./problem.ts";

/** A choice of some of a few groups. */
export interface Counted {
  /** No choice of as many groups that fits is worth more. */
  bound: number;
  options: number[];
  value: number;
}

/** Halvings of the range of prices in which the lowest bound is sought. */
const HALVINGS = 50;

/**
 * Bounds choices by how many groups they take anything of: a layer's FFN begins with its predictor, large and worth little by
 * itself, of which a relaxed problem takes half where no choice can. With their number given, `price` seconds a byte allow the
 * groups that are worth most at that price, each with its best option, and the lowest such bound over all prices is nearly reached
 * (Lagrange). Numbers that cannot beat `floor` are left out: null where none can.
 */
export function bestOfCounts(groups: readonly Group[], capacity: number, floor: number): Counted | null {
  const taken = groups.map(withoutNothing);
  const range = pricesOf(groups);
  const best: Counted = { bound: -Infinity, options: [], value: -Infinity };
  for (let count = 0; count <= groups.length; count++) {
    const found = ofCount(taken, count, capacity, range, floor);
    if (found === null) continue;
    best.bound = Math.max(best.bound, found.bound);
    const completed = complete(groups, found.options, capacity);
    if (completed.value > best.value) Object.assign(best, completed);
  }
  return best.bound === -Infinity ? null : best;
}

/** Options of a group, by ascending size. */
type Taken = { option: number; size: number; value: number }[];

/** A group's hull without option 0. */
function withoutNothing({ sizes, values }: Group): Taken {
  if (sizes.length === 1) return [];
  const rest = { sizes: sizes.slice(1), values: values.slice(1) };
  return hull(rest).map((o) => ({ option: o + 1, size: rest.sizes[o]!, value: rest.values[o]! }));
}

/** The least and the greatest value per byte of any step. */
function pricesOf(groups: readonly Group[]) {
  const prices = groups.flatMap(({ sizes, values }) =>
    sizes.slice(1).flatMap((size, k) => [values[k + 1]! / size, (values[k + 1]! - values[k]!) / (size - sizes[k]!)]),
  );
  return prices.reduce(({ low, high }, p) => ({ low: Math.min(low, p), high: Math.max(high, p) }), {
    low: Infinity,
    high: 0,
  });
}

/** What `count` groups are worth at most, and those of them that fit; null where they do not fit, or no more than `floor`. */
function ofCount(
  groups: readonly Taken[],
  count: number,
  capacity: number,
  range: { low: number; high: number },
  floor: number,
): { bound: number; options: number[] } | null {
  const at = (price: number) => atPrice(groups, count, price);
  let [low, high] = [range.low / 2, 2 * range.high];
  const cheap = at(0);
  if (cheap === null) return null;
  if (cheap.size <= capacity) return cheap.value > floor ? { bound: cheap.value, options: cheap.options } : null;
  let fitting = at(high)!;
  let bound = Math.min(cheap.value, fitting.worth + high * capacity);
  for (let i = 0; i < HALVINGS && bound > floor; i++) {
    const middle = Math.sqrt(low * high);
    const found = at(middle)!;
    bound = Math.min(bound, found.worth + middle * capacity);
    if (found.size > capacity) low = middle;
    else {
      high = middle;
      fitting = found;
    }
  }
  return bound > floor && fitting.size <= capacity ? { bound, options: fitting.options } : null;
}

/** The `count` groups that are worth most at a price, with their best options; null where there are not as many. */
function atPrice(groups: readonly Taken[], count: number, price: number) {
  const bests = groups.flatMap((group, g) => (group.length > 0 ? [{ g, ...bestAt(group, price) }] : []));
  if (bests.length < count) return null;
  bests.sort((a, b) => b.worth - a.worth || a.g - b.g);
  const options = groups.map(() => 0);
  const sums = { worth: 0, size: 0, value: 0 };
  for (const { g, worth, option, size, value } of bests.slice(0, count)) {
    options[g] = option;
    sums.worth += worth;
    sums.size += size;
    sums.value += value;
  }
  return { ...sums, options };
}

/** The option of a hull that is worth most at a price: the last that a step of at least that value per byte leads to. */
function bestAt(group: Taken, price: number) {
  let low = 0;
  for (let high = group.length - 1; low < high;) {
    const middle = (low + high + 1) >> 1;
    const [a, b] = [group[middle - 1]!, group[middle]!];
    if (b.value - a.value >= price * (b.size - a.size)) low = middle;
    else high = middle - 1;
  }
  const { option, size, value } = group[low]!;
  return { option, size, value, worth: value - price * size };
}

/** Adds to a choice what still fits. */
function complete(groups: readonly Group[], options: readonly number[], capacity: number) {
  const rest = groups.map(({ sizes, values }, g) => ({
    sizes: sizes.slice(options[g]).map((size) => size - sizes[options[g]!]!),
    values: values.slice(options[g]).map((value) => value - values[options[g]!]!),
  }));
  const problem = { groups: [...groups], capacity };
  const more = solveGreedy({ groups: rest, capacity: capacity - total(problem, options).size }).options;
  const all = options.map((option, g) => option + more[g]!);
  return { options: all, value: total(problem, all).value };
}
