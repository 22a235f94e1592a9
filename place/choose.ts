import { check } from "../formats/errors.ts";
import type { Placement, PlacementMemory } from "../formats/placement.ts";
import type { StageContext } from "../io/progress.ts";
import type { ModelCosts } from "./costs.ts";
import { solveGreedy } from "./greedy.ts";
import {
  checkBudget,
  everything,
  memoryOf,
  minimumNeurons,
  nothing,
  placementProblem,
  ramOf,
  savedSeconds,
  splitOf,
  type PlacementProblem,
  type Split,
} from "./plan.ts";
import { predict } from "./predict.ts";
import { priceToken, type GpuHardware, type Prices } from "./price.ts";
import { relativeGap, tighten, type Solution } from "./problem.ts";
import { referee } from "./referee.ts";
import { solve } from "./solver.ts";

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
 * Decides what goes to the GPU under the budgets and says what that should give. Throws `E_BUDGET` when the GPU's is not 0
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
  const useful = checkBudget(placementProblem(costs, prices, hardware.link, capacity), vram, overhead, hardware.gpu);
  if (!useful && vram > 0) {
    context.warn(
      "nothing of this model saves what its synchronisation with the GPU costs: all of it stays with the CPU",
    );
  }
  const { split, memory, ...outcome } = await decideWithin(given, solver, context);
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
  const { costs, hardware, prices, budgets, capacity, count } = given;
  const problem = placementProblem(costs, prices, hardware.link, capacity);
  const { options, ...best } = await solveBy(problem, solver, context);
  const split = splitOf(problem, options, costs.layers.length);
  const found = { ...best, split };
  const whole = everything(costs);
  const seconds = (of: Split): number => 1 / predict(of, costs, hardware, prices).tokensPerSecond;
  const value = seconds(nothing(costs.layers.length)) - seconds(whole);
  const fits = count(whole).total <= budgets.vram;
  if (fits && value > best.objective) {
    return { split: whole, solver: best.solver, objective: value, bound: value, referee: null };
  }
  return ramOf(split, costs) <= (budgets.ram ?? Infinity) ? found : withinRam(given, found.bound);
}

async function solveBy(problem: PlacementProblem, solver: SolverName, context: StageContext) {
  const ours = solve(problem);
  const theirs = await ask(problem, ours, solver, context);
  const better = theirs && (solver === "ilp" || theirs.objective > ours.objective * (1 + REFEREE_GAP));
  const { options, objective, bound, solver: by } = better ? { ...theirs, solver: "ilp" as const } : ours;
  return {
    options,
    objective,
    bound,
    solver: by,
    referee: theirs ? { objective: theirs.objective, bound: theirs.bound } : null,
  };
}

/** Seconds per byte between which the price of main memory is sought: beyond the last nothing else counts. */
const BONUSES = { least: 1e-15, most: 1e-3, precision: 1e-6 };

/**
 * The best placement that leaves no more with the CPU than fits. Every byte moved earns a bonus, the lowest with which
 * enough is moved; no placement that moves enough is worth more than the bound with the bonus, less the bonus on what must
 * be moved (Lagrange), nor than `free`, the bound without this budget. Throws `E_BUDGET` with the numbers when no bonus is enough.
 */
function withinRam({ costs, hardware, prices, budgets, capacity }: Case, free: number): Outcome {
  const nLayers = costs.layers.length;
  const ram = budgets.ram!;
  const withBonus = (bonus: number) => placementProblem(costs, prices, hardware.link, capacity, bonus);
  const splitBy = (bonus: number): Split => {
    const problem = withBonus(bonus);
    return splitOf(problem, solveGreedy(tighten(problem)).options, nLayers);
  };
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
  const problem = withBonus(high);
  const { bound, ...solution } = solve(problem);
  const searched = splitOf(problem, solution.options, nLayers);
  // The search is worth more with the bonus than the greedy choice, but may have paid for that with a few bytes.
  const split = ramOf(searched, costs) <= ram ? searched : splitBy(high);
  const objective = savedSeconds(split, prices, hardware.link);
  const must = ramOf(nothing(nLayers), costs) - ram;
  const lower = Math.min(free, bound - high * must);
  return { split, solver: solution.solver, objective, bound: Math.max(objective, lower), referee: null };
}

/** HiGHS's solution, where it is asked and finds one in time; a warning otherwise. */
async function ask(
  problem: PlacementProblem,
  ours: Solution,
  solver: SolverName,
  context: StageContext,
): Promise<Solution | undefined> {
  const tight = tighten(problem);
  const steps = tight.groups.reduce((sum, { sizes }) => sum + sizes.length - 1, 0);
  if (solver === "greedy" || steps === 0 || (solver === "auto" && steps > REFEREED_STEPS)) return undefined;
  const seconds = REFEREE_SECONDS[solver];
  const start = ours.options;
  const result = await referee(tight, { seconds, gap: REFEREE_GAP, start, signal: context.signal });
  if (!("failure" in result)) return result;
  context.warn(`HiGHS did not referee the placement: ${result.failure}`);
  return undefined;
}
