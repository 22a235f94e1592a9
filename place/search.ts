import type { Relaxation } from "./greedy.ts";
import { total, type Group, type Problem, type Solution } from "./problem.ts";

export interface SearchOptions {
  /** Stop caring about gains below this share of the bound. */
  tolerance: number;
  /** About how many states all groups together may make, so that time stays bounded. */
  maxStates: number;
}

/** Most options of one group that are looked at. */
const MAX_CANDIDATES = 256;

/** Choices for the groups done, by ascending size and value: none is beaten by a smaller one. */
interface States {
  size: Float64Array;
  value: Float64Array;
  /** State of the stage before, and option chosen, that each came from. */
  parent: Int32Array;
  option: Int32Array;
  count: number;
}

/**
 * Improves `incumbent` to a proven optimum (within `tolerance`): goes through the groups keeping every choice so far
 * that no smaller choice beats and that, completed at best, may still beat the best solution known.
 *
 * "At best" is the Lagrangian bound: at the relaxed problem's price of memory every option loses some value against the
 * best option of its group, and no solution is worth more than the relaxed bound minus what its options lose. What is
 * dropped only to bound the time (see `maxStates`) raises the bound returned to the best that it could have become.
 */
export function search(
  problem: Problem,
  relaxation: Relaxation,
  incumbent: Solution,
  settings: SearchOptions,
): Solution {
  const { bound, price, options: relaxed } = relaxation;
  const groups = coarseFirst(problem, relaxation);
  let best = { options: incumbent.options, objective: incumbent.objective };
  const slack = (): number => bound * (1 - settings.tolerance) - best.objective;
  let leastDropped = Infinity;
  const drop = (loss: number): void => void (leastDropped = Math.min(leastDropped, loss));

  // Worth, at the price, of the relaxed options of the groups done: no state surpasses it.
  let reference = 0;
  // What the relaxed options of the groups to come take and are worth.
  const rest = total(problem, relaxed);
  const loss = (size: number, value: number): number => reference - (value - price * size);

  let states: States = { ...allocate(1), count: 1 };
  const history: States[] = [];
  for (const [depth, g] of groups.entries()) {
    const group = problem.groups[g]!;
    const candidates = chooseCandidates(group, relaxed[g]!, price, slack(), drop);
    thin(states, Math.ceil(settings.maxStates / (groups.length * candidates.length)), loss, drop);
    states = expand(states, group, candidates, problem.capacity);
    history.push(states);

    const size = group.sizes[relaxed[g]!]!;
    const value = group.values[relaxed[g]!]!;
    rest.size -= size;
    rest.value -= value;
    reference += value - price * size;
    const winner = lastWithin(states, problem.capacity - rest.size);
    if (winner >= 0 && states.value[winner]! + rest.value > best.objective) {
      const options = trace(history, groups, depth, winner, relaxed);
      best = { options, objective: total(problem, options).value };
    }
    keep(states, (i) => loss(states.size[i]!, states.value[i]!) < slack());
  }
  const unseen = Math.max(best.objective + bound * settings.tolerance, bound - leastDropped);
  return { ...best, bound: Math.max(best.objective, Math.min(bound, unseen)) };
}

/** Groups by number of options, so that the fine-grained ones fill what the coarse ones leave. */
function coarseFirst({ groups }: Problem, { options }: Relaxation): number[] {
  const fineness = (g: number): number => groups[g]!.sizes.length;
  return options.map((_, g) => g).sort((a, b) => fineness(a) - fineness(b) || a - b);
}

/** Options that lose less than `slack` against the relaxed one, those that lose least (and then the nearest) first. */
function chooseCandidates(
  { sizes, values }: Group,
  relaxed: number,
  price: number,
  slack: number,
  drop: (loss: number) => void,
): number[] {
  const worth = (o: number): number => values[o]! - price * sizes[o]!;
  const loss = (o: number): number => (o === relaxed ? 0 : worth(relaxed) - worth(o));
  const useful = sizes.map((_, o) => o).filter((o) => o === relaxed || loss(o) < slack);
  useful.sort((a, b) => loss(a) - loss(b) || Math.abs(a - relaxed) - Math.abs(b - relaxed));
  if (useful.length > MAX_CANDIDATES) drop(loss(useful[MAX_CANDIDATES]!));
  return useful.slice(0, MAX_CANDIDATES);
}

/** Every state with every candidate of the group, without the beaten ones and those that do not fit. */
function expand(states: States, group: Group, candidates: readonly number[], capacity: number): States {
  let lists = candidates.map((option) => shift(states, group, option, capacity));
  while (lists.length > 1) {
    lists = lists.flatMap((a, i) => (i % 2 === 1 ? [] : i + 1 < lists.length ? [merge(a, lists[i + 1]!)] : [a]));
  }
  return lists[0]!;
}

function shift(states: States, { sizes, values }: Group, option: number, capacity: number): States {
  const out = allocate(states.count);
  let count = 0;
  for (; count < states.count && states.size[count]! + sizes[option]! <= capacity; count++) {
    out.size[count] = states.size[count]! + sizes[option]!;
    out.value[count] = states.value[count]! + values[option]!;
    out.parent[count] = count;
  }
  out.option.fill(option, 0, count);
  return { ...out, count };
}

/** Both lists in one, ascending in size and value. */
function merge(a: States, b: States): States {
  const out = allocate(a.count + b.count);
  let count = 0;
  let most = -Infinity;
  for (let i = 0, j = 0; i < a.count || j < b.count;) {
    const order = i >= a.count ? 1 : j >= b.count ? -1 : a.size[i]! - b.size[j]! || b.value[j]! - a.value[i]!;
    const from = order <= 0 ? a : b;
    const k = order <= 0 ? i++ : j++;
    if (from.value[k]! <= most) continue;
    most = from.value[k]!;
    out.value[count] = most;
    out.size[count] = from.size[k]!;
    out.parent[count] = from.parent[k]!;
    out.option[count++] = from.option[k]!;
  }
  return { ...out, count };
}

/** Index of the last (so the most valuable) state of at most `space` bytes, or -1. */
function lastWithin(states: States, space: number): number {
  let low = 0;
  for (let high = states.count; low < high;) {
    const middle = (low + high) >> 1;
    if (states.size[middle]! <= space) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/**
 * Keeps, in place, about `limit` states: those that lose least and, as many may lose the same, one of each stretch of
 * neighbours in size.
 */
function thin(
  states: States,
  limit: number,
  loss: (size: number, value: number) => number,
  drop: (loss: number) => void,
): void {
  if (states.count <= limit) return;
  const losses = states.size.slice(0, states.count).map((size, i) => loss(size, states.value[i]!));
  const threshold = losses.toSorted()[limit >> 1]!;
  const stretch = Math.ceil((2 * states.count) / limit);
  keep(states, (i) => {
    if (losses[i]! < threshold || i % stretch === 0) return true;
    drop(losses[i]!);
    return false;
  });
}

/** Removes, in place, the states that `wanted` refuses. */
function keep(states: States, wanted: (i: number) => boolean): void {
  let count = 0;
  for (let i = 0; i < states.count; i++) {
    if (!wanted(i)) continue;
    states.size[count] = states.size[i]!;
    states.value[count] = states.value[i]!;
    states.parent[count] = states.parent[i]!;
    states.option[count++] = states.option[i]!;
  }
  states.count = count;
}

/** Options of all groups: the state's own for the groups done, the relaxed ones for the rest. */
function trace(
  history: readonly States[],
  groups: readonly number[],
  depth: number,
  state: number,
  relaxed: readonly number[],
): number[] {
  const options = [...relaxed];
  for (let i = state, d = depth; d >= 0; d--) {
    options[groups[d]!] = history[d]!.option[i]!;
    i = history[d]!.parent[i]!;
  }
  return options;
}

function allocate(n: number): Omit<States, "count"> {
  return {
    size: new Float64Array(n),
    value: new Float64Array(n),
    parent: new Int32Array(n),
    option: new Int32Array(n),
  };
}
