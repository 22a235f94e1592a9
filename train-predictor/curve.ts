import type { CurvePoint, PredictorMetrics } from "../formats/predictors.ts";
import type { PredictorTrainer } from "../native/index.ts";
import type { Rows, RowShape } from "./keyed-rows.ts";

/** Bins of the recall curve: scores by the upper bits of their order-preserving integer, a relative width of 2^-8. */
const BIN_BITS = 17;
const BINS = 2 ** BIN_BITS;

const MAX_F32 = (2 - 2 ** -23) * 2 ** 127;

/** What a threshold gives on held-out rows. All are shares in [0, 1]. */
export type OperatingPoint = Omit<PredictorMetrics, "kind" | "rank" | "bytes" | "secondsPerToken" | "curve">;

export const miss = (point: Pick<OperatingPoint, "weightedRecall">): number => 1 - point.weightedRecall;

/** Recalls that thresholds are chosen among: misses from 50 % down to 1e-5, a twentieth apart, and none. */
export const RECALLS: readonly number[] = [...Array.from({ length: 223 }, (_, i) => 1 - 0.5 * 0.9525 ** i), 1];

/** Points of a stored curve, and the misses they reach from and to. */
const STORED = { points: 16, most: 0.2, fewest: 2e-4 };

/** Some of `points`, which are in ascending order of recall, at misses in even proportions. */
export function storedPoints(points: readonly OperatingPoint[]): OperatingPoint[] {
  const ratio = STORED.fewest / STORED.most;
  const wanted = Array.from({ length: STORED.points }, (_, i) => STORED.most * ratio ** (i / (STORED.points - 1)));
  const found = wanted.map((misses) => points.find((point) => miss(point) <= misses * (1 + 1e-6)) ?? points.at(-1)!);
  return [...new Set(found)];
}

/** What is stored of {@link storedPoints}. */
export const storedCurve = (points: readonly OperatingPoint[]): CurvePoint[] =>
  storedPoints(points).map(({ weightedRecall, predictedSparsity, threshold }) => {
    return { weightedRecall, predictedSparsity, threshold };
  });

/**
 * The whole recall-cost curve of one layer's predictor: a histogram of its scores, so that rows are added batch by batch
 * in bounded memory and every threshold can be asked for afterwards.
 */
export class RecallCurve {
  readonly #nNeurons: number;
  /** Per bin: active and idle neurons, contribution of the active ones (in rows), and the lowest score. */
  readonly #active = new Float64Array(BINS);
  readonly #idle = new Float64Array(BINS);
  readonly #contribution = new Float64Array(BINS);
  readonly #lowest = new Float32Array(BINS).fill(Infinity);
  #rows = 0;
  /** Rows without an active neuron: nothing of theirs can be missed. */
  #emptyRows = 0;

  constructor(nNeurons: number) {
    this.#nNeurons = nNeurons;
  }

  /** Adds rows: scores and contributions [rows, nNeurons]. O(elements). */
  add(scores: Float32Array, contributions: Uint8Array): void {
    const n = this.#nNeurons;
    const bits = new Int32Array(scores.buffer, scores.byteOffset, scores.length);
    for (let row = 0; row < scores.length; row += n) {
      let total = 0;
      for (let i = row; i < row + n; i++) total += contributions[i]!;
      for (let i = row; i < row + n; i++) {
        const bin = binOf(bits[i]!);
        if (scores[i]! < this.#lowest[bin]!) this.#lowest[bin] = scores[i]!;
        if (contributions[i]! > 0) {
          this.#active[bin]! += 1;
          this.#contribution[bin]! += contributions[i]! / total;
        } else {
          this.#idle[bin]! += 1;
        }
      }
      this.#rows++;
      if (total === 0) this.#emptyRows++;
    }
  }

  /**
   * The sparsest point whose weighted recall is at least `weightedRecall`; predicts every neuron when only that is
   * enough. Exact up to a bin's width: the threshold is the lowest score of its bin.
   */
  at(weightedRecall: number): OperatingPoint {
    return this.points([weightedRecall])[0]!;
  }

  /** {@link at} of several recalls, in ascending order. */
  points(weightedRecalls: readonly number[]): OperatingPoint[] {
    const allActive = this.#active.reduce((a, b) => a + b, 0);
    const sums = { active: 0, idle: 0, contribution: 0, threshold: Infinity };
    let bin = BINS - 1;
    return weightedRecalls.map((weightedRecall) => {
      // A hair less, or rounding of the sum could ask for the last idle neuron.
      const wanted = (weightedRecall - 1e-9) * this.#rows - this.#emptyRows;
      for (; bin >= 0 && sums.contribution < wanted; bin--) {
        if (this.#lowest[bin] === Infinity) continue;
        sums.active += this.#active[bin]!;
        sums.idle += this.#idle[bin]!;
        sums.contribution += this.#contribution[bin]!;
        sums.threshold = this.#lowest[bin]!;
      }
      return this.#point(sums, allActive);
    });
  }

  #point(above: { active: number; idle: number; contribution: number; threshold: number }, allActive: number) {
    const { active, idle, contribution, threshold } = above;
    const cells = this.#rows * this.#nNeurons;
    return {
      // JSON knows no infinity.
      threshold: threshold === Infinity ? MAX_F32 : threshold,
      recall: allActive > 0 ? active / allActive : 1,
      weightedRecall: this.#rows > 0 ? Math.min(1, (this.#emptyRows + contribution) / this.#rows) : 1,
      precision: active + idle > 0 ? active / (active + idle) : 1,
      trueSparsity: 1 - allActive / cells,
      predictedSparsity: 1 - (active + idle) / cells,
    };
  }
}

/** Rows scored at a time. */
const SCORE_ROWS = 512;

/** What scores rows of `hidden` (f16 [N, dim]) by their indices: a trainer, or a predictor as the engine computes it. */
export type Scorer = Pick<PredictorTrainer, "scores">;

/** The recall curve of a predictor on `rows`. */
export async function measureCurve({ dim, nNeurons }: RowShape, scorer: Scorer, rows: Rows): Promise<RecallCurve> {
  const curve = new RecallCurve(nNeurons);
  for (let at = 0; at < rows.rows; at += SCORE_ROWS) {
    const count = Math.min(SCORE_ROWS, rows.rows - at);
    const index = Int32Array.from({ length: count }, (_, i) => at + i);
    const scores = await scorer.scores(rows.hidden.subarray(0, rows.rows * dim), index);
    curve.add(scores, rows.contributions.subarray(at * nNeurons, (at + count) * nNeurons));
  }
  return curve;
}

/** Bin of an f32 by its bits (as i32): negative numbers ascend after all bits are flipped, others after the sign is. */
function binOf(bits: number): number {
  return (bits < 0 ? ~bits : bits | 0x80000000) >>> (32 - BIN_BITS);
}
