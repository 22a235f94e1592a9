/** What drafts are taken to cost before they were measured: nothing for their being there, this for each. */
const FIRST_PRICE = 0.25;
/** What a draft costs at least: without a price, drafts that never come true would be computed. */
export const LEAST_PRICE = 0.02;
/** How firmly that is believed, in steps: of the cost of having any, and of the squared number of drafts. */
const [FIRM_BASE, FIRM_PRICE] = [0.5, 4];
/** What a step still counts for after the next one: prices are known after some 20 steps, and forgotten after 200. */
const MEMORY = 0.97;
/** Weight of the latest step without drafts. */
const LEARNING = 0.25;
/** A step counts as this many times the expected one at most: what disturbed it was not its rows. */
const OUTLIER = 2;

/**
 * What a decode step with drafts costs, in steps without: 1 + base + price * drafts, fitted to the latest steps. The base
 * is there because engines compute one row in another way than several.
 */
export class StepCost {
  /** Seconds without drafts, by number of sequences. */
  readonly #plain: number[] = [];
  // Sums over steps with drafts x of their cost y, less 1; older ones count less.
  #n = 0;
  #x = 0;
  #xx = 0;
  #y = 0;
  #xy = 0;

  observe(sequences: number, drafts: number, seconds: number): void {
    this.#forget();
    const plain = this.#plain[sequences];
    if (drafts === 0) {
      const known = plain ?? seconds;
      this.#plain[sequences] = known + LEARNING * (Math.min(seconds, OUTLIER * known) - known);
    } else if (plain !== undefined) {
      const cost = Math.min(seconds / plain, OUTLIER * this.price(sequences)!(drafts)) - 1;
      this.#n++;
      this.#x += drafts;
      this.#xx += drafts * drafts;
      this.#y += cost;
      this.#xy += drafts * cost;
    }
  }

  /** Cost by number of drafts; undefined before a step of so many sequences was seen without any. */
  price(sequences: number): ((drafts: number) => number) | undefined {
    if (this.#plain[sequences] === undefined) return undefined;
    // Least squares, with the first assumption as some steps more.
    const [n, xx] = [this.#n + FIRM_BASE, this.#xx + FIRM_PRICE];
    const xy = this.#xy + FIRM_PRICE * FIRST_PRICE;
    const determinant = n * xx - this.#x * this.#x;
    const base = (xx * this.#y - this.#x * xy) / determinant;
    const each = (n * xy - this.#x * this.#y) / determinant;
    return (drafts) => 1 + Math.max(base + each * drafts, LEAST_PRICE * drafts);
  }

  #forget(): void {
    this.#n *= MEMORY;
    this.#x *= MEMORY;
    this.#xx *= MEMORY;
    this.#y *= MEMORY;
    this.#xy *= MEMORY;
  }
}
