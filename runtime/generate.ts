import { StreamDecoder, type Tokenizer } from "../model/tokenizer.ts";
import type { Sampling } from "./sampling.ts";
import type { Scheduler } from "./scheduler.ts";
import type { EndReason, ScoredToken } from "./sequence.ts";
import { StopStrings } from "./stop-strings.ts";

export interface GenerateOptions {
  prompt: readonly number[];
  maxTokens: number;
  sampling: Sampling;
  /** Texts that end the generation; none of them is part of it. */
  stop?: readonly string[];
  /** Tokens that end the generation (EOS); they have no text. */
  stopTokens?: ReadonlySet<number>;
  /** Most likely tokens to report beside each one (0-20). */
  topLogprobs?: number;
  /** Report probabilities of the prompt in `promptScores`. */
  scorePrompt?: boolean;
  observer?: GenerationObserver;
}

/** Told of a generation's pace; `/metrics` listens. */
export interface GenerationObserver {
  /** Seconds since the request (first token) or since the token before. */
  token(seconds: number, first: boolean): void;
  end(generation: Generation): void;
}

/** What was generated since the last look: text that is certain, and the tokens it is made of. */
export interface Delta {
  text: string;
  tokens: ScoredToken[];
}

/**
 * One running generation. Iterate it for deltas; a slow reader gets larger ones. Leaving the loop early cancels it.
 * Tokens come with the last of their text, so those of a stop string never appear.
 */
export class Generation implements AsyncIterable<Delta> {
  readonly prompt: readonly number[];
  /** Scores of prompt[1], prompt[2], …; complete when the first delta is there. */
  readonly promptScores: ScoredToken[] = [];
  /** Tokens generated, with those that ended it. */
  completionTokens = 0;
  /** Undefined while it runs, and when it failed. */
  finishReason: EndReason | undefined;
  readonly #started = performance.now();
  #lastToken = this.#started;
  #secondsToFirst: number | undefined;
  readonly #options: GenerateOptions;
  readonly #decoder: StreamDecoder;
  readonly #stops: StopStrings;
  /** Tokens whose text is not all released, each with the length of the text up to its end. */
  #held: { token: ScoredToken; end: number }[] = [];
  #decoded = 0;
  #released = 0;
  #delta: Delta = { text: "", tokens: [] };
  #outcome: EndReason | Error | undefined;
  #wake: () => void = () => undefined;
  readonly #cancel: () => void;

  /** @throws E_CONTEXT when prompt and output do not fit the KV cache */
  constructor(scheduler: Scheduler, tokenizer: Tokenizer, options: GenerateOptions) {
    this.#options = options;
    this.prompt = options.prompt;
    this.#decoder = new StreamDecoder(tokenizer, options.prompt);
    this.#stops = new StopStrings(options.stop ?? []);
    const { prompt, maxTokens, sampling, topLogprobs = 0, scorePrompt = false } = options;
    this.#cancel = scheduler.submit(
      { prompt, maxTokens, sampling, topLogprobs, scorePrompt },
      {
        prompt: (score) => this.promptScores.push(score),
        token: (token) => this.#accept(token),
        end: (outcome) => this.#end(outcome),
      },
    );
  }

  /** Seconds from the request to its first token, and from there to the last. */
  get timing(): { first: number; rest: number } {
    const first = this.#secondsToFirst ?? 0;
    return { first, rest: (this.#lastToken - this.#started) / 1000 - first };
  }

  /** Stops now and frees what it holds; iteration ends with reason "cancelled". */
  cancel(): void {
    this.#cancel();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<Delta, void, undefined> {
    try {
      for (;;) {
        if (this.#delta.text !== "" || this.#delta.tokens.length > 0) {
          const delta = this.#delta;
          this.#delta = { text: "", tokens: [] };
          yield delta;
        } else if (this.#outcome === undefined) {
          await new Promise<void>((resolve) => (this.#wake = resolve));
        } else {
          if (this.#outcome instanceof Error) throw this.#outcome;
          return;
        }
      }
    } finally {
      this.cancel();
    }
  }

  /** Waits for the end and returns everything as one delta. */
  async all(): Promise<Delta> {
    const whole: Delta = { text: "", tokens: [] };
    for await (const { text, tokens } of this) {
      whole.text += text;
      whole.tokens.push(...tokens);
    }
    return whole;
  }

  /** Takes one token from the scheduler. @returns false when it ends the generation */
  #accept(token: ScoredToken): boolean {
    this.#clock();
    this.completionTokens++;
    const isStop = this.#options.stopTokens?.has(token.token) ?? false;
    const isLast = isStop || this.completionTokens === this.#options.maxTokens;
    let piece = isStop ? "" : this.#decoder.push(token.token);
    if (isLast) piece += this.#decoder.flush();
    this.#decoded += piece.length;
    if (!isStop) this.#held.push({ token, end: this.#decoded });
    let text = this.#stops.push(piece);
    if (isLast) text += this.#stops.flush();
    this.#release(text);
    return !isStop && !this.#stops.found;
  }

  #release(text: string): void {
    this.#released += text.length;
    this.#delta.text += text;
    while (this.#held.length > 0 && this.#held[0]!.end <= this.#released) {
      this.#delta.tokens.push(this.#held.shift()!.token);
    }
    if (this.#delta.text !== "" || this.#delta.tokens.length > 0) this.#wake();
  }

  #clock(): void {
    const now = performance.now();
    const seconds = (now - this.#lastToken) / 1000;
    const first = this.#secondsToFirst === undefined;
    if (first) this.#secondsToFirst = seconds;
    this.#lastToken = now;
    this.#options.observer?.token(seconds, first);
  }

  #end(outcome: EndReason | Error): void {
    this.#outcome = outcome;
    if (!(outcome instanceof Error)) this.finishReason = outcome;
    this.#options.observer?.end(this);
    this.#wake();
  }
}
