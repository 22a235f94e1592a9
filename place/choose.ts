import type { Placement } from "../formats/placement.ts";
import type { StageContext } from "../io/progress.ts";
import type { ModelCosts } from "./costs.ts";
import {
  checkBudget,
  everything,
  memoryOf,
  minimumNeurons,
  nothing,
  placementProblem,
  secondsPerByte,
  splitOf,
  type GpuHardware,
  type PlacementProblem,
  type Split,
} from "./plan.ts";
import { relativeGap, tighten, type Solution } from "./problem.ts";
import { predict } from "./predict.ts";
import { referee } from "./referee.ts";
import { solve } from "./solver.ts";

/** `greedy` never asks HiGHS, `ilp` always does, `auto` on problems that it solves in seconds. */
export const SOLVERS = ["auto", "greedy", "ilp"] as const;
export type SolverName = (typeof SOLVERS)[number];

/** Most steps of a problem that `auto` has refereed, and the time HiGHS gets for it and for `ilp`. */
const REFEREED_STEPS = 500;
const REFEREE_SECONDS = { auto: 20, ilp: 120 };

/** The bound on HiGHS's own gap: tighter than any difference that matters. */
const REFEREE_GAP = 1e-6;

/**
 * Decides what goes to the GPU under a budget of `vramBudget` bytes and says what that should give.
 * Throws `E_BUDGET` when the budget is not 0 and yet too small for anything.
 */
export async function choosePlacement(
  costs: ModelCosts,
  hardware: GpuHardware,
  vramBudget: number,
  solver: SolverName,
  context: StageContext,
): Promise<Placement> {
  const capacity = Math.max(0, vramBudget - hardware.gpu.reservedBytes - costs.scratch);
  const problem = placementProblem(costs, hardware, capacity);
  const useful = checkBudget(problem, vramBudget, costs, hardware.gpu);
  if (!useful && vramBudget > 0) {
    context.warn(
      "nothing of this model saves what its synchronisation with the GPU costs: all of it stays with the CPU",
    );
  }
  const { split, ...outcome } = await decide(problem, costs, hardware, vramBudget, solver, context);
  const { impactShares, gpuShare, tokensPerSecond } = predict(split, costs, hardware);
  const cpuOnly = predict(nothing(costs.layers.length), costs, hardware);
  return {
    vramBudget,
    hardware,
    layers: split.layers.map((layer, l) => ({
      ...layer,
      minimumNeurons: minimumNeurons(costs.layers[l]!.neuron, hardware),
      impactShare: impactShares[l]!,
    })),
    head: split.head,
    memory: memoryOf(split, costs, hardware.gpu),
    ...outcome,
    gap: relativeGap(outcome),
    gpuShare,
    predicted: { tokensPerSecond, cpuOnlyTokensPerSecond: cpuOnly.tokensPerSecond },
  };
}

type Outcome = Pick<Placement, "objective" | "bound" | "solver" | "referee"> & { split: Split };

async function decide(
  problem: PlacementProblem,
  costs: ModelCosts,
  hardware: GpuHardware,
  vramBudget: number,
  solver: SolverName,
  context: StageContext,
): Promise<Outcome> {
  const ours = solve(problem);
  const theirs = await ask(problem, ours, solver, context);
  const better = theirs && (solver === "ilp" || theirs.objective > ours.objective * (1 + REFEREE_GAP));
  const best = better ? { ...theirs, solver: "ilp" as const } : ours;
  const found = {
    solver: best.solver,
    split: splitOf(problem, best.options, costs.layers.length),
    objective: best.objective,
    bound: best.bound,
    referee: theirs ? { objective: theirs.objective, bound: theirs.bound } : null,
  };
  const whole = everything(costs);
  const value = wholeValue(costs, hardware);
  const fits = memoryOf(whole, costs, hardware.gpu).total <= vramBudget;
  return fits && value > best.objective
    ? { ...found, split: whole, objective: value, bound: value, referee: null }
    : found;
}

/** Seconds saved by a GPU that holds everything: only the token itself is handed over. */
function wholeValue({ layers, head }: ModelCosts, hardware: GpuHardware): number {
  const bytes = layers.reduce(
    (sum, l) => sum + l.attention + l.kvRead + l.predictor + l.read.reduce((a, b) => a + b, 0),
    head,
  );
  return bytes * secondsPerByte(hardware) - hardware.link.syncSeconds;
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
