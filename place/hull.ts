import type { Group } from "./problem.ts";

/** Slopes that differ by less are the same but for rounding: equal batches stay steps of their own. */
const ROUNDING = 1e-12;

/**
 * The options of a group that mixtures of two beat nowhere, ascending from 0: from each to the next, value per byte never
 * grows. What fractions of steps between them are worth is the most that any choice of the group's options is worth on
 * average, so bounds of the relaxed problem hold for the options in between as well. O(options).
 */
export function hull({ sizes, values }: Group): number[] {
  const kept = [0];
  const slope = (a: number, b: number): number => (values[b]! - values[a]!) / (sizes[b]! - sizes[a]!);
  for (let option = 1; option < sizes.length; option++) {
    while (kept.length > 1 && slope(kept.at(-1)!, option) > slope(kept.at(-2)!, kept.at(-1)!) * (1 + ROUNDING)) {
      kept.pop();
    }
    kept.push(option);
  }
  return kept;
}
