import { check, PiError } from "../formats/errors.ts";
import type { Placement, PlacementMemory } from "../formats/placement.ts";
import type { StageContext } from "../io/progress.ts";
import type { ModelCosts } from "./costs.ts";
import { placementChain, splitOf, withBonus, type Chain } from "./chain.ts";
import { everything, memoryOf, minimumNeurons, nothing, ramOf } from "./plan.ts";
import { predict } from "./predict.ts";
import { priceToken, tokenSeconds, type FfnSplit, type GpuHardware, type Prices, type Split } from "./price.ts";
import { relativeGap, tighten, type Problem } from "./problem.ts";
import { referee } from "./referee.ts";
import { solveChain, type ChainSolution } from "./solve-chain.ts";

/** `greedy` never asks HiGHS, `ilp` always does, `auto` on problems that it solves in seconds. */
export const SOLVERS = ["auto", "greedy", "ilp"] as const;
export type SolverName = (typeof SOLVERS)[number];

/** Bytes that may be taken of each memory; `ram` undefined: as much as it takes. */
export interface Budgets {
  vram: number;
  ram?: number | undefined;
}

/** Most steps of a problem that `auto` has refereed, and the time HiGHS gets for it and for `ilp`. */
const REFEREED_STEPS = 500;
const REFEREE_SECONDS = { auto: 20, ilp: 120 };

/** The bound on HiGHS's own gap: tighter than any difference that matters. */
const REFEREE_GAP = 1e-6;

/** What the placement is decided from. */
interface Case {
  costs: ModelCosts;
  hardware: GpuHardware;
  prices: Prices;
  budgets: Budgets;
  /** Bytes of the GPU's memory for parts of the model. */
  capacity: number;
  /** Bytes that all of the model would need besides its parts. */
  scratch: number;
  count: Count;
}

/** GPU memory of a split, by part. */
export type Count = (split: Split) => PlacementMemory;

/**
 * Decides what goes to the GPU under the budgets, so that a token takes the least time ({@link tokenSeconds}), and says what that should give. Throws `E_BUDGET` when the GPU's is not 0
 * and yet too small for anything, and when what then stays with the CPU does not fit the other one.
 * @param count what the engine allocates for a split, which keeps within the budget by this count; default: the sizes of its parts
 */
export async function choosePlacement(
  costs: ModelCosts,
  hardware: GpuHardware,
  budgets: Budgets,
  solver: SolverName,
  context: StageContext,
  count: Count = (split) => memoryOf(split, costs, hardware.gpu),
): Promise<Placement> {
  const { vram } = budgets;
  const prices = priceToken(costs, hardware);
  const overhead = count(everything(costs));
  const capacity = Math.max(0, vram - overhead.context - overhead.scratch);
  const given: Case = { costs, hardware, prices, budgets, capacity, scratch: overhead.scratch, count };
  check(
    vram <= hardware.gpu.vramBytes,
    "E_BUDGET",
    `VRAM budget: ${hardware.gpu.name}: expected at most ${hardware.gpu.vramBytes} bytes, got ${vram}`,
  );
  const { split, memory, ...outcome } = await decideWithin(given, solver, context);
  if (vram > 0 && memory.total === 0) explainNothing(given, overhead, context);
  const { impactShares, gpuShare, tokensPerSecond } = predict(split, costs, hardware, prices);
  const cpuOnly = predict(nothing(costs.layers.length), costs, hardware, prices);
  return {
    vramBudget: vram,
    hardware,
    layers: split.layers.map((layer, l) => ({
      ...layer,
      minimumNeurons: minimumNeurons(prices.layers[l]!.neuron, hardware.link),
      impactShare: impactShares[l]!,
    })),
    head: split.head,
    memory,
    ram: { budget: budgets.ram ?? null, total: ramOf(split, costs) },
    ...outcome,
    gap: relativeGap(outcome),
    gpuShare,
    predicted: {
      tokensPerSecond,
      cpuOnlyTokensPerSecond: cpuOnly.tokensPerSecond,
      mode: costs.mode,
      contextTokens: costs.kv.tokens,
    },
  };
}

type Outcome = Pick<Placement, "objective" | "bound" | "solver" | "referee"> & { split: Split };

/** Room that is worth deciding again for, as a share of what there was. */
const ROOM = 0.01;

/**
 * Decides by the sizes of parts, and again with less room while allocations, which are rounded up, exceed the budget. A split
 * may need much less scratch than all of a model: that room is then tried, too.
 */
async function decideWithin(given: Case, solver: SolverName, context: StageContext) {
  const decided = async (capacity: number) => {
    const outcome = await decide({ ...given, capacity }, solver, context);
    return { ...outcome, memory: given.count(outcome.split) };
  };
  const { vram } = given.budgets;
  let { capacity } = given;
  let best = await decided(capacity);
  while (best.memory.total > vram) {
    capacity -= best.memory.total - vram;
    best = await decided(capacity);
  }
  const room = given.scratch - best.memory.scratch;
  if (best.memory.total === 0 || room <= ROOM * capacity) return best;
  const roomier = await decided(capacity + room);
  return roomier.memory.total <= vram && roomier.objective > best.objective ? roomier : best;
}

async function decide(given: Case, solver: SolverName, context: StageContext): Promise<Outcome> {
  const { costs, prices, budgets, capacity, count } = given;
  const chain = placementChain(costs, prices);
  const found = await refereed(chain, solveChain(chain, capacity), solver, context);
  const whole = everything(costs);
  const value = chain.nothing - tokenSeconds(whole, prices);
  if (count(whole).total <= budgets.vram && value > found.objective) {
    return { split: whole, solver: found.solver, objective: value, bound: value, referee: null };
  }
  return ramOf(found.split, costs) <= (budgets.ram ?? Infinity) ? found : withinRam(given, found.bound);
}

/** With HiGHS's choice of FFNs, where it is asked and knows a better one, beside attention and head as they are. */
async function refereed(
  chain: Chain,
  { chosen, ...ours }: ChainSolution,
  solver: SolverName,
  context: StageContext,
): Promise<Outcome> {
  const theirs = chosen && (await ask(chosen.problem, chosen.options, solver, context));
  if (!theirs) return { ...ours, referee: null };
  const saved = (seconds: number): number => chain.nothing - chosen.problem.seconds + seconds;
  const opinion = { objective: saved(theirs.objective), bound: saved(theirs.bound) };
  const better = solver === "ilp" || opinion.objective > ours.objective * (1 + REFEREE_GAP);
  if (!better) return { ...ours, referee: opinion };
  const split = splitOf(chain, chosen.course, chosen.problem, theirs.options);
  const bound = Math.max(ours.bound, opinion.objective);
  return { split, objective: opinion.objective, bound, solver: "ilp", referee: opinion };
}

/** Seconds per byte between which the price of main memory is sought: beyond the last nothing else counts. */
const BONUSES = { least: 1e-15, most: 1e-3, precision: 1e-4 };

/**
 * The best placement that leaves no more with the CPU than fits. Every byte moved earns a bonus, the lowest with which
 * enough is moved; no placement that moves enough is worth more than the bound with the bonus, less the bonus on what must
 * be moved (Lagrange), nor than `free`, the bound without this budget. Throws `E_BUDGET` with the numbers when no bonus is enough.
 */
function withinRam({ costs, prices, budgets, capacity }: Case, free: number): Outcome {
  const ram = budgets.ram!;
  const chain = placementChain(costs, prices);
  const solved = (bonus: number, quick: boolean) => solveChain(withBonus(chain, bonus), capacity, quick);
  const splitBy = (bonus: number): Split => solved(bonus, true).split;
  const least = ramOf(splitBy(BONUSES.most), costs);
  check(
    least <= ram,
    "E_BUDGET",
    () =>
      `RAM budget: expected at least ${least} bytes for what stays with the CPU beside ${budgets.vram} bytes ` +
      `of GPU memory, got ${ram}`,
  );
  let { least: low, most: high } = BONUSES;
  while (high / low > 1 + BONUSES.precision) {
    const middle = Math.sqrt(low * high);
    if (ramOf(splitBy(middle), costs) <= ram) high = middle;
    else low = middle;
  }
  const { bound, solver, split: searched } = solved(high, false);
  // The search is worth more with the bonus than the greedy choice, but may have paid for that with a few bytes.
  const split = ramOf(searched, costs) <= ram ? searched : splitBy(high);
  const objective = chain.nothing - tokenSeconds(split, prices);
  const must = ramOf(nothing(costs.layers.length), costs) - ram;
  const lower = Math.min(free, bound - high * must);
  return { split, solver, objective, bound: Math.max(objective, lower), referee: null };
}

/**
 * A budget that holds nothing worthwhile: throws `E_BUDGET` with the numbers where a part that is worthwhile by itself would need
 * more, and warns where there is none.
 */
function explainNothing({ costs, prices, budgets }: Case, overhead: PlacementMemory, context: StageContext): void {
  const part = smallestUseful(costs, prices);
  if (!part) {
    return context.warn(
      "nothing of this model saves what its synchronisation with the GPU costs: all of it stays with the CPU",
    );
  }
  const needed = overhead.context + overhead.scratch + part.size;
  throw new PiError(
    "E_BUDGET",
    `VRAM budget: expected 0 (CPU only) or at least ${needed} bytes (runtime context ${overhead.context}, ` +
      `scratch ${overhead.scratch}, ${part.name} ${part.size}), got ${budgets.vram}`,
  );
}

/** What saves time with nothing else on the GPU. */
function smallestUseful(costs: ModelCosts, prices: Prices): { name: string; size: number } | null {
  const chain = placementChain(costs, prices);
  const parts = chain.layers.flatMap(({ splits, sizes, seconds, attention }, l) => {
    const ffn = splits.findIndex((_, o) => seconds[0][0][o]! < seconds[0][0][0]!);
    const one = costs.layers.map((_, other) => ({ gpuNeurons: 0, predictor: false, attention: other === l }));
    const worthwhile = tokenSeconds({ layers: one, head: false }, prices) < chain.nothing;
    return [
      ...(ffn > 0 ? [{ name: `${describe(splits[ffn]!)} of layer ${l}`, size: sizes[ffn]! }] : []),
      ...(worthwhile ? [{ name: `attention of layer ${l}`, size: attention.size }] : []),
    ];
  });
  const head = { ...nothing(costs.layers.length), head: true };
  if (tokenSeconds(head, prices) < chain.nothing) parts.push({ name: "head", size: chain.head.size });
  return parts.reduce<(typeof parts)[number] | null>((a, b) => (!a || b.size < a.size ? b : a), null);
}

function describe({ gpuNeurons, predictor }: FfnSplit): string {
  return [...(gpuNeurons > 0 ? [`${gpuNeurons} neurons`] : []), ...(predictor ? ["predictor"] : [])].join(" and ");
}

/** HiGHS's solution, where it is asked and finds one in time; a warning otherwise. */
async function ask(problem: Problem, start: number[], solver: SolverName, context: StageContext) {
  const tight = tighten(problem);
  const steps = tight.groups.reduce((sum, { sizes }) => sum + sizes.length - 1, 0);
  if (solver === "greedy" || steps === 0 || (solver === "auto" && steps > REFEREED_STEPS)) return undefined;
  const seconds = REFEREE_SECONDS[solver];
  const result = await referee(tight, { seconds, gap: REFEREE_GAP, start, signal: context.signal });
  if (!("failure" in result)) return result;
  context.warn(`HiGHS did not referee the placement: ${result.failure}`);
  return undefined;
}
