import { hull } from "./hull.ts";
import { total, type Problem, type Solution } from "./problem.ts";

/** The problem with fractions of steps allowed: an upper bound, and the price of memory at which it is reached. */
export interface Relaxation {
  /** Seconds saved per byte by the last step taken. */
  price: number;
  bound: number;
  /** Options of the whole steps taken. */
  options: number[];
}

/** Steps of `group` from option `from` to `option`, neighbours of its hull. */
interface Steps {
  group: Int32Array;
  from: Int32Array;
  option: Int32Array;
  /** Value per byte, never growing within a group. */
  density: Float64Array;
  /** Indices of the above, densest first; ties go to the earlier group. */
  order: Int32Array;
}

/**
 * Takes steps by value per byte while they fit; of one that does not fit it takes the largest option on the way, and smaller
 * steps of other groups may still follow. The relaxed problem, which takes a fraction of the first step that does not fit,
 * bounds every choice. O(n log n) for n options.
 */
export function solveGreedy(problem: Problem): Solution & { relaxation: Relaxation } {
  const steps = sortSteps(problem);
  const options = problem.groups.map(() => 0);
  let relaxation: Relaxation | undefined;
  let free = problem.capacity;
  let value = 0;
  for (const i of steps.order) {
    const g = steps.group[i]!;
    const option = steps.option[i]!;
    const from = steps.from[i]!;
    if (options[g] !== from) continue;
    const { sizes, values } = problem.groups[g]!;
    let reached = option;
    if (sizes[option]! - sizes[from]! > free) {
      const price = steps.density[i]!;
      relaxation ??= { price, bound: value + price * free, options: [...options] };
      while (sizes[reached]! - sizes[from]! > free) reached--;
    }
    free -= sizes[reached]! - sizes[from]!;
    value += values[reached]! - values[from]!;
    options[g] = reached;
  }
  relaxation ??= { price: 0, bound: value, options: [...options] };
  const objective = total(problem, options).value;
  return { options, objective, bound: Math.max(objective, relaxation.bound), relaxation };
}

function sortSteps({ groups }: Problem): Steps {
  const hulls = groups.map(hull);
  const n = hulls.reduce((sum, { length }) => sum + length - 1, 0);
  const ints = () => new Int32Array(n);
  const steps = { group: ints(), from: ints(), option: ints(), density: new Float64Array(n) };
  let i = 0;
  for (const [g, { sizes, values }] of groups.entries()) {
    let least = Infinity;
    for (let k = 1; k < hulls[g]!.length; k++, i++) {
      const [from, option] = [hulls[g]![k - 1]!, hulls[g]![k]!];
      // Rounding must not let a later step of a group look better than an earlier one.
      least = Math.min(least, (values[option]! - values[from]!) / (sizes[option]! - sizes[from]!));
      steps.group[i] = g;
      steps.from[i] = from;
      steps.option[i] = option;
      steps.density[i] = least;
    }
  }
  const { density } = steps;
  return {
    ...steps,
    order: ints()
      .map((_, k) => k)
      .sort((a, b) => density[b]! - density[a]! || a - b),
  };
}
