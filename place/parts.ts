import { bestOfCounts } from "./counted.ts";
import { hull } from "./hull.ts";
import { total, type Problem, type Solution } from "./problem.ts";

/** Choices of whole parts beyond which trying them all would take too long. */
const MAX_CHOICES = 200_000;
/** Choices of whole parts, the most promising first, that are completed with FFNs. */
const MAX_COMPLETED = 40;

/** Equal parts, all there or not: which of them are taken makes no difference, only how many. */
interface Kind {
  size: number;
  value: number;
  groups: number[];
}

/** Numbers taken of each kind so far; none is both smaller and worth more than another. */
interface Choice {
  size: number;
  value: number;
  taken: number;
  before: Choice | null;
}

/**
 * Improves `incumbent` where whole parts of the model (attention, the head) are so large that half of one, which a relaxed
 * problem may take, is worth more than can be had: every choice of whole parts is bounded by itself, with what the FFNs that
 * fit beside it are worth at most, first by steps and, where that is not enough, by how many layers have any of it. Layers
 * being alike, there are few kinds of parts and so few choices; null where there are too many.
 */
export function solveByParts(problem: Problem, incumbent: Solution): Solution | null {
  const kinds = kindsOf(problem);
  const choices = enumerate(kinds, problem.capacity);
  if (!choices) return null;
  const fine = problem.groups.map((group) => (isPart(group) ? { sizes: [0], values: [0] } : group));
  const worth = relaxedValues(fine);
  const bounded = choices.map((choice) => ({ choice, bound: choice.value + worth(problem.capacity - choice.size) }));
  bounded.sort((a, b) => b.bound - a.bound);
  let best = { options: [...incumbent.options], objective: incumbent.objective };
  let highest = bounded[MAX_COMPLETED]?.bound ?? -Infinity;
  for (const { choice, bound } of bounded.slice(0, MAX_COMPLETED)) {
    if (bound <= best.objective) break;
    const found = bestOfCounts(fine, problem.capacity - choice.size, best.objective - choice.value);
    if (!found) continue;
    highest = Math.max(highest, Math.min(bound, choice.value + found.bound));
    take(choice, kinds, found.options);
    const { value } = total(problem, found.options);
    if (value > best.objective) best = { options: found.options, objective: value };
  }
  return { ...best, bound: Math.max(best.objective, Math.min(incumbent.bound, highest)) };
}

const isPart = ({ sizes }: { sizes: readonly number[] }): boolean => sizes.length === 2;

function kindsOf({ groups }: Problem): Kind[] {
  const kinds = new Map<string, Kind>();
  for (const [g, group] of groups.entries()) {
    if (!isPart(group)) continue;
    const [size, value] = [group.sizes[1]!, group.values[1]!];
    const kind = kinds.get(`${size} ${value}`) ?? { size, value, groups: [] };
    kind.groups.push(g);
    kinds.set(`${size} ${value}`, kind);
  }
  return [...kinds.values()];
}

/** All choices that fit and that no smaller one beats. */
function enumerate(kinds: readonly Kind[], capacity: number): Choice[] | null {
  let choices: Choice[] = [{ size: 0, value: 0, taken: 0, before: null }];
  for (const { size, value, groups } of kinds) {
    if (choices.length * (groups.length + 1) > MAX_CHOICES * 16) return null;
    const more = choices.flatMap((before) =>
      Array.from({ length: groups.length + 1 }, (_, taken) => ({
        size: before.size + taken * size,
        value: before.value + taken * value,
        taken,
        before,
      })).filter((choice) => choice.size <= capacity),
    );
    choices = unbeaten(more);
    if (choices.length > MAX_CHOICES) return null;
  }
  return choices;
}

function unbeaten(choices: Choice[]): Choice[] {
  choices.sort((a, b) => a.size - b.size || b.value - a.value);
  let most = -Infinity;
  return choices.filter(({ value }) => value > most && ((most = value), true));
}

/** Sets the options of the parts that `choice` takes. */
function take(choice: Choice, kinds: readonly Kind[], options: number[]): void {
  let state = choice;
  for (const { groups } of kinds.toReversed()) {
    groups.forEach((g, i) => (options[g] = i < state.taken ? 1 : 0));
    state = state.before!;
  }
}

/** What steps of the groups are worth at most that take no more than some bytes: the densest, the last one in part. */
function relaxedValues(groups: Problem["groups"]): (capacity: number) => number {
  const steps = groups.flatMap((group) => {
    const { sizes, values } = group;
    const kept = hull(group);
    return kept.slice(1).map((o, k) => ({ size: sizes[o]! - sizes[kept[k]!]!, value: values[o]! - values[kept[k]!]! }));
  });
  steps.sort((a, b) => b.value / b.size - a.value / a.size);
  const sizes = [0];
  const values = [0];
  for (const { size, value } of steps) {
    sizes.push(sizes.at(-1)! + size);
    values.push(values.at(-1)! + value);
  }
  return (capacity) => {
    let low = 0;
    for (let high = sizes.length - 1; low < high;) {
      const middle = (low + high + 1) >> 1;
      if (sizes[middle]! <= capacity) low = middle;
      else high = middle - 1;
    }
    const step = steps[low];
    return values[low]! + (step ? (step.value * (capacity - sizes[low]!)) / step.size : 0);
  };
}
