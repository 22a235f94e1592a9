import { solveGreedy } from "./greedy.ts";
import { solveByParts } from "./parts.ts";
import { relativeGap, tighten, type Problem, type Solution } from "./problem.ts";
import { search, type SearchOptions } from "./search.ts";

/** The tolerance is what rounding may hide, not what we would give away: in practice the optimum is proven. */
const DEFAULTS: SearchOptions = { tolerance: 1e-9, maxStates: 20_000_000 };

/** A gap above which choices of whole parts are tried one by one: the search proves nearly all problems far better. */
const LOOSE = 1e-6;

/** Greedy, then a search for what greedy left, to a proven gap. `solver` says whether the search was needed. */
export function solve(
  problem: Problem,
  options: Partial<SearchOptions> = {},
): Solution & { solver: "greedy" | "search" } {
  const settings = { ...DEFAULTS, ...options };
  const tight = tighten(problem);
  const { relaxation, ...greedy } = solveGreedy(tight);
  if (relativeGap(greedy) <= settings.tolerance) return { ...greedy, solver: "greedy" };
  const searched = search(tight, relaxation, greedy, settings);
  const byParts = relativeGap(searched) > LOOSE ? solveByParts(tight, searched) : null;
  return { ...(byParts ?? searched), solver: "search" };
}
