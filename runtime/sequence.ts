import type { PromptLookup } from "./prompt-lookup.ts";
import type { Sampling } from "./sampling.ts";

/** One text to continue. */
export interface SequenceRequest {
  /** At least one token. */
  prompt: readonly number[];
  /** Tokens to generate at most; 0 only computes the prompt. */
  maxTokens: number;
  sampling: Sampling;
  /** How many most likely tokens to report beside each one (0-20). */
  topLogprobs: number;
  /** Also report the probability of every prompt token but the first. */
  scorePrompt: boolean;
}

/** A token and its natural-log probability before any sampling parameter, with the most likely ones at its place. */
export interface ScoredToken {
  token: number;
  logprob: number;
  top: { tokens: Int32Array; logprobs: Float32Array };
}

export type EndReason = "stop" | "length" | "cancelled";

/** Who hears what becomes of a sequence. Called between steps, so it should do little. */
export interface SequenceListener {
  /** The next prompt token's score; in order of position, the first is of prompt[1]. */
  prompt(score: ScoredToken): void;
  /** A generated token. @returns false to end the sequence here, as "stop" */
  token(token: ScoredToken): boolean;
  /** The last call, exactly once. */
  end(outcome: EndReason | Error): void;
}

/** A sequence in the scheduler's hands: its tokens, how far they are computed, and the KV blocks that hold them. */
export class Sequence {
  readonly request: SequenceRequest;
  readonly listener: SequenceListener;
  /** Prompt and output; the first `length` are set, and then `drafts` that are guessed. */
  readonly tokens: Int32Array;
  length: number;
  /** Guessed tokens in the step under way that may still come true. */
  drafts = 0;
  /** Where guesses come from; made when one is first asked for. */
  lookup: PromptLookup | undefined;
  /** Positions whose keys and values are in the cache. */
  computed = 0;
  /** Prompt scores delivered; they are not asked for again when the prompt is computed again. */
  scored = 0;
  readonly blocks: number[] = [];
  ended = false;

  constructor(request: SequenceRequest, listener: SequenceListener) {
    this.request = request;
    this.listener = listener;
    this.tokens = new Int32Array(request.prompt.length + request.maxTokens);
    this.tokens.set(request.prompt);
    this.length = request.prompt.length;
  }

  get promptLength(): number {
    return this.request.prompt.length;
  }

  /** Tokens that are not in the cache yet: 1 while decoding, more during prefill. */
  get pending(): number {
    return this.length - this.computed;
  }

  get isDecoding(): boolean {
    return this.length > this.promptLength && this.pending === 1;
  }
}
