import type { PredictorMetrics } from "../formats/predictors.ts";

/** Bins of the recall curve: scores by the upper bits of their order-preserving integer, a relative width of 2^-8. */
const BIN_BITS = 17;
const BINS = 2 ** BIN_BITS;

const MAX_F32 = (2 - 2 ** -23) * 2 ** 127;

/** What a threshold gives on held-out rows. All are shares in [0, 1]. */
export type OperatingPoint = Omit<PredictorMetrics, "rank" | "bytes">;

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

  /** Adds rows: scores [rows, nNeurons] and the contributions of sample `samples[r]` for row r. O(elements). */
  add(scores: Float32Array, contributions: Uint8Array, samples: Int32Array): void {
    const n = this.#nNeurons;
    const bits = new Int32Array(scores.buffer, scores.byteOffset, scores.length);
    samples.forEach((sample, r) => {
      const labels = contributions.subarray(sample * n, (sample + 1) * n);
      let total = 0;
      for (let i = 0; i < n; i++) total += labels[i]!;
      for (let i = 0; i < n; i++) {
        const bin = binOf(bits[r * n + i]!);
        const score = scores[r * n + i]!;
        if (score < this.#lowest[bin]!) this.#lowest[bin] = score;
        if (labels[i]! > 0) {
          this.#active[bin]! += 1;
          this.#contribution[bin]! += labels[i]! / total;
        } else {
          this.#idle[bin]! += 1;
        }
      }
      this.#rows++;
      if (total === 0) this.#emptyRows++;
    });
  }

  /**
   * The sparsest point whose weighted recall is at least `weightedRecall`; predicts every neuron when only that is
   * enough. Exact up to a bin's width: the threshold is the lowest score of its bin.
   */
  at(weightedRecall: number): OperatingPoint {
    // A hair less, or rounding of the sum could ask for the last idle neuron.
    const wanted = (weightedRecall - 1e-9) * this.#rows - this.#emptyRows;
    let active = 0;
    let idle = 0;
    let contribution = 0;
    let threshold = Infinity;
    for (let bin = BINS - 1; bin >= 0 && contribution < wanted; bin--) {
      if (this.#lowest[bin] === Infinity) continue;
      active += this.#active[bin]!;
      idle += this.#idle[bin]!;
      contribution += this.#contribution[bin]!;
      threshold = this.#lowest[bin]!;
    }
    const cells = this.#rows * this.#nNeurons;
    const allActive = this.#active.reduce((a, b) => a + b, 0);
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

/** Bin of an f32 by its bits (as i32): negative numbers ascend after all bits are flipped, others after the sign is. */
function binOf(bits: number): number {
  return (bits < 0 ? ~bits : bits | 0x80000000) >>> (32 - BIN_BITS);
}
