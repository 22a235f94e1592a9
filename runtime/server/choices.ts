import type { Delta, Generation } from "../generate.ts";
import type { LogprobWriter, Scored } from "./logprobs.ts";

/** Writes one generation as elements of a response's `choices`, whole or in pieces. */
export interface Choice {
  readonly generation: Generation;
  /** The piece before the first token, where there is one. */
  open(): object | undefined;
  piece(delta: Delta): object;
  /** The last piece, with the finish reason. */
  close(): object;
  /** Everything at once. */
  whole(delta: Delta): object;
}

/** A choice of `/v1/completions`. With `echo` the prompt comes in front of the text and of its log probabilities. */
export class CompletionChoice implements Choice {
  readonly generation: Generation;
  readonly #index: number;
  readonly #logprobs: LogprobWriter | undefined;
  #echo: { text: string; ids: readonly number[] } | undefined;
  #offset = 0;

  constructor(
    generation: Generation,
    index: number,
    echo: { text: string; ids: readonly number[] } | undefined,
    logprobs: LogprobWriter | undefined,
  ) {
    this.generation = generation;
    this.#index = index;
    this.#echo = echo;
    this.#logprobs = logprobs;
  }

  open(): undefined {}

  piece(delta: Delta): object {
    return this.#element(delta, null);
  }

  close(): object {
    return this.#element({ text: "", tokens: [] }, this.generation.finishReason ?? null);
  }

  whole(delta: Delta): object {
    return this.#element(delta, this.generation.finishReason ?? null);
  }

  #element({ text, tokens }: Delta, finish_reason: string | null): object {
    const echo = this.#echo;
    this.#echo = undefined; // only in front of the first piece
    const scored: Scored[] = [...(echo ? this.#promptScores(echo.ids) : []), ...tokens];
    return {
      index: this.#index,
      text: (echo?.text ?? "") + text,
      logprobs: this.#write(scored),
      finish_reason,
    };
  }

  #promptScores(ids: readonly number[]): Scored[] {
    return [{ token: ids[0]!, logprob: null }, ...this.generation.promptScores];
  }

  #write(tokens: readonly Scored[]): object | null {
    if (this.#logprobs === undefined) return null;
    const { logprobs, end } = this.#logprobs.completion(tokens, this.#offset);
    this.#offset = end;
    return logprobs;
  }
}

/** A choice of `/v1/chat/completions`. */
export class ChatChoice implements Choice {
  readonly generation: Generation;
  readonly #index: number;
  readonly #logprobs: LogprobWriter | undefined;

  constructor(generation: Generation, index: number, logprobs: LogprobWriter | undefined) {
    this.generation = generation;
    this.#index = index;
    this.#logprobs = logprobs;
  }

  open(): object {
    return this.#chunk({ role: "assistant", content: "" }, null, null);
  }

  piece({ text, tokens }: Delta): object {
    return this.#chunk({ content: text }, this.#logprobs?.chat(tokens) ?? null, null);
  }

  close(): object {
    return this.#chunk({}, null, this.generation.finishReason ?? null);
  }

  whole({ text, tokens }: Delta): object {
    return {
      index: this.#index,
      message: { role: "assistant", content: text, refusal: null },
      logprobs: this.#logprobs?.chat(tokens) ?? null,
      finish_reason: this.generation.finishReason,
    };
  }

  #chunk(delta: object, logprobs: object | null, finish_reason: string | null): object {
    return { index: this.#index, delta, logprobs, finish_reason };
  }
}
