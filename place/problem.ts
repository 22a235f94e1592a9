/**
 * What of the FFNs to place, as the solvers see it: from each group choose one option, so that the options fit the capacity
 * and their values add up to the most. Option 0 of a group is "nothing". Of a placement whose attention and head have their
 * places (`courseProblem`) the groups are the layers' FFNs: one offers its predictor, and with it prefixes of its neurons,
 * hottest first, from C_l neurons on.
 */
export interface Problem {
  /** Bytes. Sizes are whole numbers that doubles hold exactly, so sums stay exact past 4 GiB. */
  capacity: number;
  groups: Group[];
}

/**
 * `sizes[o]` bytes and `values[o]` seconds saved per token by option `o`. Both start at 0 and grow. Value per byte mostly
 * falls from one step to the next (hottest first makes it so) but need not: the first neurons may be worth more than the
 * predictor without which they cannot go.
 */
export interface Group {
  sizes: number[];
  values: number[];
}

export interface Solution {
  /** The chosen option of each group. */
  options: number[];
  objective: number;
  /** No choice that fits is worth more than this. */
  bound: number;
}

/** Bytes and value of a choice. */
export function total(problem: Problem, options: readonly number[]): { size: number; value: number } {
  let size = 0;
  let value = 0;
  for (const [g, { sizes, values }] of problem.groups.entries()) {
    size += sizes[options[g]!]!;
    value += values[options[g]!]!;
  }
  return { size, value };
}

/**
 * (bound - objective) / bound; 0 when nothing can be gained. Where a placement that is forced by a budget costs time, over
 * what it costs.
 */
export function relativeGap({ objective, bound }: { objective: number; bound: number }): number {
  const scale = Math.max(bound, Math.abs(objective));
  return scale > 0 ? Math.min(1, Math.max(0, bound - objective) / scale) : 0;
}

/**
 * The same problem without what cannot be used: options larger than the capacity, and the part of the capacity that is
 * no multiple of the sizes' greatest common divisor. Tightens every bound.
 */
export function tighten(problem: Problem): Problem {
  const groups = problem.groups.map(({ sizes, values }) => {
    const end = sizes.findIndex((size) => size > problem.capacity);
    return end < 0 ? { sizes, values } : { sizes: sizes.slice(0, end), values: values.slice(0, end) };
  });
  const unit = commonDivisor(groups);
  return { capacity: unit > 0 ? problem.capacity - (problem.capacity % unit) : problem.capacity, groups };
}

/** Greatest common divisor of all sizes, 0 when there are none. */
export function commonDivisor(groups: readonly Group[]): number {
  let divisor = 0;
  for (const { sizes } of groups) {
    for (const size of sizes) {
      for (let a = size; a > 0;) [divisor, a] = [a, divisor % a];
      if (divisor === 1) return 1;
    }
  }
  return divisor;
}
