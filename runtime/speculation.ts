/** How many tokens to guess ahead of the model: what `--speculate` bounds. */
import { PromptLookup } from "./prompt-lookup.ts";
import type { Sequence } from "./sequence.ts";
import { LEAST_PRICE, StepCost } from "./step-cost.ts";

/** Draft tokens of a sequence in a step at most, unless told otherwise. */
export const DEFAULT_DRAFTS = 8;

/** With this many rows a step is bound by arithmetic: a draft row would take its time from somebody's real one. */
export const MAX_ROWS = 16;

/** One step in so many goes without drafts, so that it stays known what such a step takes. */
const PLAIN_EVERY = 32;

/**
 * Decides how many guessed tokens each sequence puts into a step: as many as are expected to bring more tokens a second,
 * by the chances of the guesses (per sequence) and the price of their rows (of the engine). What a draft row chooses is
 * what it would choose without drafts, so this is a matter of speed alone.
 */
export class Speculation {
  readonly #maxDrafts: number;
  readonly #cost = new StepCost();
  #sincePlain = 0;

  constructor(maxDrafts: number) {
    this.#maxDrafts = maxDrafts;
  }

  /** Hears of a step of so many decoding sequences and nothing else. */
  observe(sequences: number, drafts: number, seconds: number): void {
    if (sequences + drafts > MAX_ROWS) return;
    this.#cost.observe(sequences, drafts, seconds);
    this.#sincePlain = drafts === 0 ? 0 : this.#sincePlain + 1;
  }

  /** Draft tokens for each of the sequences that decode in the next step. */
  plan(sequences: readonly Sequence[]): number[] {
    const drafts = sequences.map(() => 0);
    if (this.#maxDrafts === 0 || sequences.length >= MAX_ROWS || this.#sincePlain >= PLAIN_EVERY) return drafts;
    const price = this.#cost.price(sequences.length);
    if (price === undefined) return drafts;
    const guesses = bestGuesses(sequences, this.#maxDrafts);
    let expected = sequences.length; // tokens that the step yields
    let [most, best] = [expected, 0];
    guesses.forEach(({ chance }, i) => {
      expected += chance;
      const speed = expected / price(i + 1);
      if (speed > most) [most, best] = [speed, i + 1];
    });
    for (const { sequence } of guesses.slice(0, best)) drafts[sequence]!++;
    return drafts;
  }
}

/**
 * The sequences' guesses by their chance to come true together with those before them, as many as a step has room for.
 * This runs for every token, so it stops where no guess could pay.
 */
function bestGuesses(sequences: readonly Sequence[], maxDrafts: number): { sequence: number; chance: number }[] {
  const guesses: { sequence: number; chance: number }[] = [];
  sequences.forEach((sequence, index) => {
    const { tokens, length, promptLength } = sequence;
    const lookup = (sequence.lookup ??= new PromptLookup(tokens, promptLength));
    lookup.advance(length);
    const most = Math.min(maxDrafts, tokens.length - length - 1); // a row yields the token after its own
    let chance = 1;
    for (let ahead = 0; ahead < most; ahead++) {
      chance *= lookup.chance(ahead);
      if (chance < LEAST_PRICE) break;
      guesses.push({ sequence: index, chance });
    }
  });
  return guesses.sort((a, b) => b.chance - a.chance).slice(0, MAX_ROWS - sequences.length);
}
