import { total, type Problem, type Solution } from "./problem.ts";

/** The problem with fractions of steps allowed: an upper bound, and the price of memory at which it is reached. */
export interface Relaxation {
  /** Seconds saved per byte by the last step taken. */
  price: number;
  bound: number;
  /** Options of the whole steps taken. */
  options: number[];
}

/** Steps from option `option - 1` to `option` of `group`, densest first. */
interface Steps {
  group: Int32Array;
  option: Int32Array;
  /** Value per byte, never growing within a group. */
  density: Float64Array;
  /** Indices of the above, densest first; ties go to the earlier group. */
  order: Int32Array;
}

/**
 * Takes steps by value per byte while they fit; what does not fit is left out and smaller steps of other groups may
 * still follow. The relaxed problem, which takes a fraction of the first step that does not fit, bounds every choice.
 * O(n log n) for n options.
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
    if (options[g] !== option - 1) continue;
    const { sizes, values } = problem.groups[g]!;
    const size = sizes[option]! - sizes[option - 1]!;
    if (size <= free) {
      free -= size;
      options[g] = option;
      value += values[option]! - values[option - 1]!;
    } else {
      const price = steps.density[i]!;
      relaxation ??= { price, bound: value + price * free, options: [...options] };
    }
  }
  relaxation ??= { price: 0, bound: value, options: [...options] };
  const objective = total(problem, options).value;
  return { options, objective, bound: Math.max(objective, relaxation.bound), relaxation };
}

function sortSteps({ groups }: Problem): Steps {
  const n = groups.reduce((sum, { sizes }) => sum + sizes.length - 1, 0);
  const steps = { group: new Int32Array(n), option: new Int32Array(n), density: new Float64Array(n) };
  let i = 0;
  for (const [g, { sizes, values }] of groups.entries()) {
    let least = Infinity;
    for (let option = 1; option < sizes.length; option++, i++) {
      // Rounding must not let a later step of a group look better than an earlier one.
      least = Math.min(least, (values[option]! - values[option - 1]!) / (sizes[option]! - sizes[option - 1]!));
      steps.group[i] = g;
      steps.option[i] = option;
      steps.density[i] = least;
    }
  }
  const { density } = steps;
  return { ...steps, order: new Int32Array(n).map((_, k) => k).sort((a, b) => density[b]! - density[a]! || a - b) };
}
