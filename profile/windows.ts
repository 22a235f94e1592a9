import type { Tokenizer } from "../model/tokenizer.ts";
import type { Document } from "./documents.ts";
import { DocumentDraws, HELDOUT_EVERY } from "./sampling.ts";

/** Up to `window` tokens of one document: what one sequence of a step sees. */
export interface Window {
  /** Begins with BOS if the model has one. */
  tokens: Int32Array;
  /** Row in the document of the first token. */
  firstRow: number;
  heldout: boolean;
  draws: DocumentDraws;
}

export interface WindowOptions {
  /** Tokens of a window, at least 2. */
  window: number;
  seed: number;
}

/** Tokenises `document` and cuts it; only its last window may be shorter than `window`. */
export async function* windows(
  document: Document,
  tokenizer: Tokenizer,
  { window, seed }: WindowOptions,
): AsyncGenerator<Window> {
  const draws = new DocumentDraws(document.sha256, seed);
  const prefix = beginning(tokenizer);
  let ids = [...prefix];
  let index = 0;
  const cut = (tokens: number[]): Window => {
    const heldout = index % HELDOUT_EVERY === draws.heldoutPhase;
    return { tokens: Int32Array.from(tokens), firstRow: window * index++, heldout, draws };
  };
  for await (const piece of document.pieces) {
    // What a corpus says is text, even where it looks like a special token.
    ids = ids.concat(tokenizer.encode(piece, { addSpecialTokens: false, parseSpecial: false }));
    let from = 0;
    for (; ids.length - from >= window; from += window - prefix.length) {
      yield cut([...prefix, ...ids.slice(from + prefix.length, from + window)]);
    }
    ids = [...prefix, ...ids.slice(from + prefix.length)];
  }
  if (ids.length > prefix.length) yield cut(ids);
}

/** The BOS that the checkpoint puts in front of a text, or nothing. */
function beginning(tokenizer: Tokenizer): number[] {
  return tokenizer.encode("").filter((id, i) => i === 0 && id === tokenizer.bosToken);
}
