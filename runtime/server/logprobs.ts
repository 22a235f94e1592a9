import type { ScoredToken } from "../sequence.ts";
import type { RuntimeModel } from "../session.ts";

/** JSON has no -Infinity; this is what OpenAI writes for "practically never". */
const LEAST = -9999;

/** Log probabilities as `/v1/completions` writes them: parallel lists. */
export interface CompletionLogprobs {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  /** Where each token begins in the choice's text, in characters (code points). */
  text_offset: number[];
}

interface ChatToken {
  token: string;
  logprob: number;
  /** UTF-8 of the token; null where it is only a part of a character. */
  bytes: number[] | null;
}

/** Log probabilities as chat completions write them. */
export interface ChatLogprobs {
  content: (ChatToken & { top_logprobs: ChatToken[] })[];
  refusal: null;
}

/** Writes tokens and their probabilities for clients. Remembers token texts: decoding one costs more than all the rest. */
export class LogprobWriter {
  readonly #tokenizer: RuntimeModel["tokenizer"];
  readonly #special: ReadonlySet<string>;
  readonly #texts = new Map<number, string>();

  constructor({ tokenizer, specialTokens }: RuntimeModel) {
    this.#tokenizer = tokenizer;
    this.#special = new Set(specialTokens);
  }

  /**
   * @param offset where the first token begins in the text
   * @returns the lists, and where the next token begins
   */
  completion(tokens: readonly Scored[], offset: number): { logprobs: CompletionLogprobs; end: number } {
    const logprobs: CompletionLogprobs = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] };
    let end = offset;
    for (const scored of tokens) {
      const text = this.#text(scored.token);
      logprobs.tokens.push(text);
      logprobs.token_logprobs.push(scored.logprob === null ? null : finite(scored.logprob));
      logprobs.top_logprobs.push(scored.logprob === null ? null : this.#topByText(scored));
      logprobs.text_offset.push(end);
      if (!this.#special.has(text)) end += [...text].length;
    }
    return { logprobs, end };
  }

  chat(tokens: readonly ScoredToken[]): ChatLogprobs {
    const content = tokens.map(({ token, logprob, top }) => {
      const top_logprobs = Array.from(top.tokens, (id, i) => this.#chatToken(id, top.logprobs[i]!));
      return { ...this.#chatToken(token, logprob), top_logprobs };
    });
    return { content, refusal: null };
  }

  /** Of tokens with the same text the most likely one counts; the token itself is always there. */
  #topByText({ token, logprob, top }: ScoredToken): Record<string, number> {
    const entries = Array.from(top.tokens, (id, i) => [this.#text(id), finite(top.logprobs[i]!)] as const);
    if (top.tokens.length > 0) entries.push([this.#text(token), finite(logprob)]);
    const byText = new Map<string, number>();
    for (const [text, value] of entries) byText.set(text, Math.max(value, byText.get(text) ?? -Infinity));
    return Object.fromEntries(byText);
  }

  #chatToken(id: number, logprob: number): ChatToken {
    const token = this.#text(id);
    return { token, logprob: finite(logprob), bytes: token.includes("\uFFFD") ? null : [...Buffer.from(token)] };
  }

  #text(id: number): string {
    let text = this.#texts.get(id);
    if (text === undefined) {
      text = this.#tokenizer.tokenText(id);
      this.#texts.set(id, text);
    }
    return text;
  }
}

/** A token of a completion; the first one of an echoed prompt has no probability. */
export type Scored = ScoredToken | { token: number; logprob: null };

function finite(logprob: number): number {
  return Math.max(logprob, LEAST);
}
