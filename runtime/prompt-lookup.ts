/** How many last tokens are looked for in the text before them: the longest run found wins. */
const LONGEST_RUN = 4;
const SHORTEST_RUN = 2;

/**
 * Share of the guesses expected to come true, by how many tokens before them already agreed: {@link classOf}. Each text
 * soon replaces it by its own.
 */
const FIRST_CHANCES = [0.2, 0.3, 0.5, 0.8];

/** Weight of the latest guess in its class's share. */
const LEARNING = 1 / 8;

/** Of four bytes; texts that outgrow the table forget places. */
const [MIN_SLOTS, MAX_SLOTS] = [1 << 10, 1 << 20];

/**
 * Guesses how a text goes on from how it went on before, at the latest place where its last 4, 3 or 2 tokens stood
 * already. While the guesses come true it stays with that place. Every token is compared with its guess, whether or not
 * that was ever computed as a draft, so the chances of the next guesses cost nothing to know.
 */
export class PromptLookup {
  readonly #tokens: Int32Array;
  readonly #outputStart: number;
  /** Where the text went on after a run of tokens, by the run's hash; 0: nowhere. A later place overwrites an earlier one. */
  readonly #places: Int32Array;
  /** Tokens taken in. */
  #length = 0;
  /** Index of the token that the next one is guessed to equal; 0: none. Always below #length. */
  #place = 0;
  /** Tokens before #place that are the last ones of the text. */
  #run = 0;
  readonly #chances = Float64Array.from(FIRST_CHANCES);

  /**
   * @param tokens prompt and output, in the making; read up to the length that {@link advance} is told
   * @param outputStart index of the first generated token: guesses at the prompt teach nothing
   */
  constructor(tokens: Int32Array, outputStart: number) {
    this.#tokens = tokens;
    this.#outputStart = outputStart;
    const slots = 2 ** Math.ceil(Math.log2(4 * tokens.length));
    this.#places = new Int32Array(Math.min(Math.max(slots, MIN_SLOTS), MAX_SLOTS));
  }

  /** Takes in the tokens before `length`. Costs O(1) a token. */
  advance(length: number): void {
    while (this.#length < length) this.#push();
  }

  /** Chance that the guess `ahead` tokens from here comes true once those before it have; 0 without a guess. */
  chance(ahead: number): number {
    return this.#place === 0 ? 0 : this.#chances[classOf(this.#run + ahead)]!;
  }

  /** Writes the next `count` guesses behind the tokens that are known. */
  draft(count: number): void {
    // Written one by one: where the place is less than `count` tokens back, the text is guessed to repeat itself.
    for (let i = 0; i < count; i++) this.#tokens[this.#length + i] = this.#tokens[this.#place + i]!;
  }

  #push(): void {
    this.#judge(this.#length++);
    const longest = Math.min(LONGEST_RUN, this.#length);
    for (let run = longest; run >= SHORTEST_RUN && this.#place === 0; run--) {
      this.#follow(this.#places[this.#slot(run)]!, run);
    }
    for (let run = longest; run >= SHORTEST_RUN; run--) this.#places[this.#slot(run)] = this.#length;
  }

  /** Compares token `at` with its guess. */
  #judge(at: number): void {
    if (this.#place === 0) return;
    const isRight = this.#tokens[this.#place] === this.#tokens[at];
    if (at >= this.#outputStart) {
      const kind = classOf(this.#run);
      this.#chances[kind]! += LEARNING * (Number(isRight) - this.#chances[kind]!);
    }
    this.#place = isRight ? this.#place + 1 : 0;
    this.#run++;
  }

  /** Guesses from `place` on, if the `run` tokens before it are really the last ones: hashes may be equal by accident. */
  #follow(place: number, run: number): void {
    if (place === 0) return;
    for (let back = 1; back <= run; back++) {
      if (this.#tokens[place - back] !== this.#tokens[this.#length - back]) return;
    }
    this.#place = place;
    this.#run = run;
  }

  /** Slot of the last `run` tokens. */
  #slot(run: number): number {
    let hash = run;
    for (let back = 1; back <= run; back++) {
      hash = Math.imul(hash ^ this.#tokens[this.#length - back]!, 0x9e3779b1);
      hash ^= hash >>> 15;
    }
    return hash & (this.#places.length - 1);
  }
}

/** Guesses are alike when as many tokens agreed before them: 2, 3, 4 to 7, more. */
function classOf(run: number): number {
  return run < 4 ? run - SHORTEST_RUN : run < 8 ? 2 : 3;
}
