/** How many tokens to guess ahead of the model: what `--speculate` bounds. */
import { PromptLookup } from "./prompt-lookup.ts";
import type { Sequence } from "./sequence.ts";

/** Draft tokens of a sequence in a step at most, unless told otherwise. */
export const DEFAULT_DRAFTS = 8;

/** With this many rows a step is bound by arithmetic: a draft row would take its time from somebody's real one. */
export const MAX_ROWS = 16;

/** What a row more costs before that was measured, of a step of one row. */
const FIRST_ROW_COST = 0.25;
/** What it costs at least: without any price, drafts that never come true would be computed. */
const LEAST_ROW_COST = 0.02;
/** What a step still counts for after the next one: a changed price is known after some 50 steps, and forgotten after 100. */
const MEMORY = 0.95;
/** How firmly the first price is believed, in squared rows of measured difference. */
const FIRMNESS = 2;
/** A step counts as this many times the expected one at most: what disturbed it says nothing about its rows. */
const OUTLIER = 2;

/** Seconds of a decode step as a line over its rows, fitted to the latest steps. */
export class StepCost {
  #weight = 0;
  #rows = 0;
  #seconds = 0;
  #rowsRows = 0;
  #rowsSeconds = 0;

  observe(rows: number, seconds: number): void {
    const counted = this.#weight > 0 ? Math.min(seconds, OUTLIER * this.line().at(rows)) : seconds;
    this.#weight = this.#weight * MEMORY + 1;
    this.#rows = this.#rows * MEMORY + rows;
    this.#seconds = this.#seconds * MEMORY + counted;
    this.#rowsRows = this.#rowsRows * MEMORY + rows * rows;
    this.#rowsSeconds = this.#rowsSeconds * MEMORY + rows * counted;
  }

  /** Seconds of a step by its rows, and of one row more. Before anything was measured: in units of a step of one row. */
  line(): { at: (rows: number) => number; perRow: number } {
    const rows = this.#weight > 0 ? this.#rows / this.#weight : 1;
    const seconds = this.#weight > 0 ? this.#seconds / this.#weight : 1;
    const variance = this.#rowsRows - this.#weight * rows * rows;
    const covariance = this.#rowsSeconds - this.#weight * rows * seconds;
    const perRowAt = (cost: number) => (seconds * cost) / (1 + cost * (rows - 1));
    const fitted = (covariance + FIRMNESS * perRowAt(FIRST_ROW_COST)) / (variance + FIRMNESS);
    const perRow = Math.min(Math.max(fitted, perRowAt(LEAST_ROW_COST)), seconds / rows);
    return { at: (n) => seconds + perRow * (n - rows), perRow };
  }
}

/**
 * Decides how many guessed tokens each sequence puts into a step: as many as are expected to bring more tokens a second,
 * by the chances of the guesses (per sequence) and the price of a row (of the engine). What a draft row chooses is what
 * it would choose without drafts, so this is a matter of speed alone.
 */
export class Speculation {
  readonly #maxDrafts: number;
  readonly #cost = new StepCost();

  constructor(maxDrafts: number) {
    this.#maxDrafts = maxDrafts;
  }

  /** Hears of a step in which all rows were decoded. */
  observe(rows: number, seconds: number): void {
    if (rows <= MAX_ROWS) this.#cost.observe(rows, seconds);
  }

  /** Draft tokens for each of the sequences that decode in the next step. */
  plan(sequences: readonly Sequence[]): number[] {
    const drafts = sequences.map(() => 0);
    if (this.#maxDrafts === 0 || sequences.length >= MAX_ROWS) return drafts;
    const { at, perRow } = this.#cost.line();
    const guesses = sequences.map((sequence) => new Guesses(sequence, this.#maxDrafts));
    let expected = sequences.length; // tokens that the step yields
    for (let rows = sequences.length; rows < MAX_ROWS; rows++) {
      const best = guesses.reduce((a, b) => (b.chance > a.chance ? b : a));
      // More tokens a second: (expected + chance) / at(rows + 1) > expected / at(rows)
      if (best.chance * at(rows) <= expected * perRow) break;
      expected += best.chance;
      drafts[guesses.indexOf(best)]!++;
      best.next();
    }
    return drafts;
  }
}

/** One sequence's guesses, taken one after the other. */
class Guesses {
  /** That the next guess comes true, with all before it. */
  chance: number;
  readonly #lookup: PromptLookup;
  readonly #most: number;
  #taken = 0;

  constructor(sequence: Sequence, maxDrafts: number) {
    const { tokens, length, promptLength } = sequence;
    sequence.lookup ??= new PromptLookup(tokens, promptLength);
    sequence.lookup.advance(length);
    this.#lookup = sequence.lookup;
    this.#most = Math.min(maxDrafts, tokens.length - length - 1); // a row yields the token after its own
    this.chance = this.#most > 0 ? this.#lookup.chance(0) : 0;
  }

  next(): void {
    this.#taken++;
    this.chance *= this.#taken < this.#most ? this.#lookup.chance(this.#taken) : 0;
  }
}
