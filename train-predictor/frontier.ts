import type { OperatingPoint } from "./curve.ts";
import type { Cost } from "./ffn-prices.ts";
import type { FinishedLayer } from "./journal.ts";

/** One of the predictors that a layer may get. */
export interface Candidate {
  /** What the journal calls it. */
  key: string;
  /** The recall it was sized for. */
  recall: number;
  finished: FinishedLayer;
  /** Expected of a token in the layer's FFN at one of its points. */
  cost(point: OperatingPoint): Cost;
  /** Whether it is as small as it has to be. */
  allowed: boolean;
}

/** Those that are small enough; where none is, the only one there is. */
export function choosable(candidates: readonly Candidate[]): readonly Candidate[] {
  const small = candidates.filter(({ allowed }) => allowed);
  return small.length > 0 ? small : candidates;
}

/** The points of several predictors that are worth choosing. */
export interface Frontier {
  /** In ascending order of recall, and of time; the last one misses as little as any. */
  points: OperatingPoint[];
  /** Whose point it is. */
  owner(point: OperatingPoint): Candidate;
}

/**
 * The points of all candidates that none beats in both recall and time. Candidates come with the simpler ones first: of
 * equals the first stays.
 */
export function frontier(candidates: readonly Candidate[]): Frontier {
  const all = candidates.flatMap((candidate) =>
    candidate.finished.points.map((point) => ({ point, candidate, seconds: candidate.cost(point).seconds })),
  );
  // Sorting is stable.
  all.sort((a, b) => b.point.weightedRecall - a.point.weightedRecall || a.seconds - b.seconds);
  const owners = new Map<OperatingPoint, Candidate>();
  let least = Infinity;
  for (const { point, candidate, seconds } of all) {
    if (seconds >= least) continue;
    least = seconds;
    owners.set(point, candidate);
  }
  return { points: [...owners.keys()].toReversed(), owner: (point) => owners.get(point)! };
}
