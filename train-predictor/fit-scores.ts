/** What makes a score of a raw one that is comparable between neurons. [nNeurons] each */
export interface ScoreFit {
  scale: Float32Array;
  bias: Float32Array;
}

/** How sure of itself a fit may be: what it leaves unexplained is taken to be at least this part of a neuron's spread. */
const LEAST_DOUBT = 0.02;

/**
 * How much a neuron that contributes e times as much as another at the same doubt is favoured, in units of doubt. At the
 * scores where recall is decided, what a miss is expected to cost falls by e in about 0.4 of them; measured, 0.15 to 0.6
 * do about as well (docs/log.md). And how far that may go.
 */
const FAVOUR = 0.3;
const MOST_FAVOUR = 6;

/**
 * Per neuron the line that predicts the gate's output from a raw score with the least squared error, divided by the
 * standard deviation of what it leaves unexplained: then a threshold means the same chance of firing in all neurons.
 * Neurons whose misses cost more are favoured, since recall is weighted by contribution.
 */
export class ScoreFitter {
  readonly #nNeurons: number;
  #rows = 0;
  /**
   * Sums per neuron: of raw scores, gate outputs, their squares and product; of the outputs above 0, and of the shares of
   * their rows' contribution that went with them.
   */
  readonly #sums: Record<"s" | "g" | "ss" | "gg" | "sg" | "firing" | "shares", Float64Array>;

  constructor(nNeurons: number) {
    const zeros = () => new Float64Array(nNeurons);
    this.#nNeurons = nNeurons;
    this.#sums = { s: zeros(), g: zeros(), ss: zeros(), gg: zeros(), sg: zeros(), firing: zeros(), shares: zeros() };
  }

  /** Adds rows: raw scores, the gate's outputs and contributions, [rows, nNeurons] each. O(elements). */
  add(scores: Float32Array, outputs: Float32Array, contributions: Uint8Array): void {
    const n = this.#nNeurons;
    const { s, g, ss, gg, sg, firing, shares } = this.#sums;
    for (let row = 0; row < scores.length; row += n) {
      let total = 0;
      for (let i = row; i < row + n; i++) total += contributions[i]!;
      for (let i = 0; i < n; i++) {
        const [score, output] = [scores[row + i]!, outputs[row + i]!];
        s[i]! += score;
        g[i]! += output;
        ss[i]! += score * score;
        gg[i]! += output * output;
        sg[i]! += score * output;
        if (output > 0 && total > 0) {
          firing[i]! += output;
          shares[i]! += contributions[row + i]! / total;
        }
      }
    }
    this.#rows += scores.length / n;
  }

  fit(): ScoreFit {
    const [scale, bias] = [new Float32Array(this.#nNeurons), new Float32Array(this.#nNeurons)];
    const costs = new Float64Array(this.#nNeurons);
    for (let i = 0; i < this.#nNeurons; i++) {
      const { slope, intercept, doubt } = this.#line(i);
      [scale[i], bias[i]] = [slope / doubt, intercept / doubt];
      costs[i] = Math.log(doubt * this.#shareOfOutput(i));
    }
    // The median: neurons that were never seen to fire are far below, and may be many.
    const usual = costs.slice().sort()[this.#nNeurons >> 1]!;
    costs.forEach((cost, i) => {
      bias[i]! += FAVOUR * Math.max(-MOST_FAVOUR, Math.min(MOST_FAVOUR, cost - usual));
    });
    return { scale, bias };
  }

  #line(i: number): { slope: number; intercept: number; doubt: number } {
    const [meanScore, meanOutput] = [this.#sums.s[i]! / this.#rows, this.#sums.g[i]! / this.#rows];
    const variance = (sum: number, a: number, b: number) => sum / this.#rows - a * b;
    const [ofScore, ofOutput, both] = [
      variance(this.#sums.ss[i]!, meanScore, meanScore),
      variance(this.#sums.gg[i]!, meanOutput, meanOutput),
      variance(this.#sums.sg[i]!, meanScore, meanOutput),
    ];
    const slope = ofScore > 1e-12 * meanScore ** 2 ? both / ofScore : 0;
    const left = Math.max(ofOutput - slope * both, LEAST_DOUBT ** 2 * ofOutput, 1e-20);
    return { slope, intercept: meanOutput - slope * meanScore, doubt: Math.sqrt(left) };
  }

  /** Share of a row's contribution that comes with a unit of the gate's output; next to nothing where it was never seen. */
  #shareOfOutput(i: number): number {
    const { firing, shares } = this.#sums;
    return (shares[i]! + 1e-6) / (firing[i]! + 1e-3);
  }
}
