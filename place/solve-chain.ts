import { courseProblem, splitOf, type Chain, type Course, type CourseProblem, type Side } from "./chain.ts";
import { Courses, type Candidate } from "./courses.ts";
import { solveGreedy } from "./greedy.ts";
import { nothing } from "./plan.ts";
import type { Split } from "./price.ts";
import { relativeGap, tighten } from "./problem.ts";
import { solve } from "./solver.ts";

/** What is on the GPU, and what it saves against nothing. */
export interface ChainSolution {
  split: Split;
  objective: number;
  /** No split that fits saves more. */
  bound: number;
  solver: "greedy" | "search";
  /** What was left to choose where attention and head are as in the split; null where that is nothing. */
  chosen: { course: Course; problem: CourseProblem; options: number[] } | null;
}

/** Candidates whose courses are looked at, at most. */
const MAX_CANDIDATES = 6;
/**
 * Options of FFNs, over all courses of a candidate, up to which every one of them is looked at; and over those courses that are
 * solved beyond the greedy choice.
 */
const MAX_LOOKED = 2_000_000;
const MAX_SOLVED = 200_000;
/** Between prices of memory that are tried where it must be quick. */
const QUICK_RATIO = 2;
/** A gap above which bounds are tightened. */
const LOOSE = 1e-5;

/** A course with a choice of FFNs. Seconds are of a token. */
interface Trial {
  course: Course;
  problem: CourseProblem;
  options: number[];
  seconds: number;
  /** No choice of FFNs takes less. */
  bound: number;
  solver: "greedy" | "search";
}

/** Trials of a candidate: all that fit, or the likely ones. */
interface Looked {
  candidate: Candidate;
  trials: Trial[];
  all: boolean;
}

/**
 * The best split of a chain in so many bytes, to a proven gap: courses are found and bounded by {@link Courses}; what FFNs to
 * have beside one is a problem of its own ({@link solve}). `quick`: the greedy choice of FFNs.
 */
export function solveChain(chain: Chain, capacity: number, quick = false): ChainSolution {
  const courses = new Courses(chain, capacity);
  const candidates = courses.candidates(quick ? QUICK_RATIO : undefined);
  const looked: Looked[] = [];
  let limit = chain.nothing;
  // The most promising first, refined as far as it is the most promising.
  const refined = new Set<Candidate>();
  for (let at = leastBound(candidates, looked); at >= 0; at = leastBound(candidates, looked)) {
    if (candidates[at]!.bound >= limit || looked.length === (quick ? 1 : MAX_CANDIDATES)) break;
    if (!refined.has(candidates[at]!)) {
      const better = courses.refine(candidates[at]!);
      refined.add(better);
      candidates[at] = better;
      continue;
    }
    const found = look(chain, courses, candidates[at]!, capacity, quick);
    looked.push(found);
    limit = found.trials.reduce((least, { seconds }) => Math.min(least, seconds), limit);
  }
  const best = quick ? leastOf(looked) : completeAll(looked, limit, Math.ceil(MAX_SOLVED / optionsOf(chain)));
  if (!best || best.seconds >= chain.nothing) {
    const bound = chain.nothing - Math.min(chain.nothing, lowest(candidates, looked, courses, chain, chain.nothing));
    return { split: nothing(chain.layers.length), objective: 0, bound, solver: "greedy", chosen: null };
  }
  const { course, problem, options, solver, seconds } = best;
  const objective = chain.nothing - seconds;
  const bound = quick ? Infinity : chain.nothing - lowest(candidates, looked, courses, chain, seconds);
  const split = splitOf(chain, course, problem, options);
  return { split, objective, bound: Math.max(objective, bound), solver, chosen: { course, problem, options } };
}

/** Of those that were not looked at; -1: there is none. */
function leastBound(candidates: readonly Candidate[], looked: readonly Looked[]): number {
  const done = new Set(looked.map(({ candidate }) => candidate));
  return candidates.reduce((least, candidate, i) => {
    if (done.has(candidate)) return least;
    return least < 0 || candidate.bound < candidates[least]!.bound ? i : least;
  }, -1);
}

function look(chain: Chain, courses: Courses, candidate: Candidate, capacity: number, quick: boolean): Looked {
  const { attentions, head } = candidate;
  const n = chain.layers.length;
  const all = !quick && choices(n, attentions) * optionsOf(chain) <= MAX_LOOKED;
  const some = all ? allCourses(n, attentions).map((course) => course.concat(head)) : courses.courses(candidate);
  return { candidate, trials: some.flatMap((course) => trialOf(chain, course, capacity) ?? []), all };
}

const optionsOf = ({ layers }: Chain): number => layers.reduce((sum, { sizes }) => sum + sizes.length, 0);

const leastOf = (looked: readonly Looked[]): Trial | null =>
  looked.flatMap(({ trials }) => trials).reduce<Trial | null>((a, b) => (!a || b.seconds < a.seconds ? b : a), null);

/** Solves those that may be the best, the most promising first, in place; returns the best. */
function completeAll(looked: readonly Looked[], limit: number, most: number): Trial | null {
  const trials = looked.flatMap(({ trials: of }) => of.map((trial, i) => ({ trial, of, i })));
  trials.sort((a, b) => a.trial.bound - b.trial.bound);
  let least = limit;
  for (const { trial, of, i } of trials.slice(0, most)) {
    if (trial.bound >= least) break;
    of[i] = completed(trial);
    least = Math.min(least, of[i].seconds);
  }
  return leastOf(looked);
}

/** What no split takes less than, when the best one found takes so long. */
function lowest(
  candidates: readonly Candidate[],
  looked: readonly Looked[],
  courses: Courses,
  { nothing: none }: Chain,
  seconds: number,
): number {
  return candidates.reduce((least, candidate) => {
    const { bound } = candidate;
    const gap = relativeGap({ objective: none - seconds, bound: none - bound });
    if (bound >= seconds || gap <= LOOSE) return Math.min(least, bound);
    const of = looked.find((one) => one.candidate === candidate);
    if (!of?.all) return Math.min(least, courses.refineByFfns(candidate));
    return of.trials.reduce((low, trial) => Math.min(low, Math.max(bound, trial.bound)), least);
  }, seconds);
}

/** Ways to choose `k` of `n`. */
function choices(n: number, k: number): number {
  let count = 1;
  for (let i = 1; i <= k; i++) count = (count * (n - k + i)) / i;
  return count;
}

const CPU: Side[] = [0];
const GPU: Side[] = [1];

/** The sides of `n` layers' attention of which `k` are the GPU's. */
function allCourses(n: number, k: number): Side[][] {
  if (k > n) return [];
  if (n === 0) return [[]];
  const without = allCourses(n - 1, k).map((rest) => CPU.concat(rest));
  return k === 0 ? without : [...without, ...allCourses(n - 1, k - 1).map((rest) => GPU.concat(rest))];
}

function trialOf(chain: Chain, course: Course, capacity: number): Trial | null {
  const problem = courseProblem(chain, course, capacity);
  if (!problem) return null;
  const { options, objective, bound } = solveGreedy(tighten(problem));
  const seconds = problem.seconds - objective;
  return { course, problem, options, seconds, bound: problem.seconds - bound, solver: "greedy" };
}

function completed(trial: Trial): Trial {
  const { problem } = trial;
  const { options, objective, bound, solver } = solve(problem);
  return { ...trial, options, seconds: problem.seconds - objective, bound: problem.seconds - bound, solver };
}
