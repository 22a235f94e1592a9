import type { Corpus } from "../formats/activations.ts";
import { check } from "../formats/errors.ts";
import type { StageContext } from "../io/progress.ts";
import type { Tokenizer } from "../model/tokenizer.ts";
import type { CorpusFile } from "./corpus-files.ts";
import { documents } from "./documents.ts";
import { inShard, type Shard } from "./sampling.ts";
import { windows, type Window, type WindowOptions } from "./windows.ts";

export interface CorpusOptions extends WindowOptions {
  /** Of JSON lines and Parquet rows. */
  field: string;
  /** The corpus ends after so many tokens, whatever the shard; Infinity takes all. */
  tokens: number;
}

/** A window and the index of the file it comes from. */
export interface CorpusWindow extends Window {
  file: number;
}

/** The windows of `files` in order, of documents that belong to `shard`. Stops when `signal` says so. */
export async function* corpusWindows(
  files: readonly CorpusFile[],
  tokenizer: Tokenizer,
  options: CorpusOptions,
  shard: Shard,
  signal: AbortSignal,
): AsyncGenerator<CorpusWindow> {
  let left = options.tokens;
  for (const [file, source] of files.entries()) {
    for await (const document of documents(source, options.field)) {
      const mine = inShard(document.sha256, shard);
      if (!mine && left === Infinity) continue;
      for await (const window of windows(document, tokenizer, options)) {
        signal.throwIfAborted();
        const tokens = window.tokens.subarray(0, left);
        left -= tokens.length;
        if (mine) yield { ...window, tokens, file };
        if (left === 0) return;
      }
    }
  }
}

/** Tokens of a corpus: all of them, and those that are profiled. */
export interface CorpusSize {
  tokens: number;
  profiled: number;
}

/** Reads the whole corpus, all shards of it: the sample rate has to be known, and the same, before any of them starts. */
export async function measureCorpus(
  files: readonly CorpusFile[],
  tokenizer: Tokenizer,
  options: CorpusOptions,
  context: StageContext,
): Promise<CorpusSize> {
  const size = { tokens: 0, profiled: 0 };
  const total = Number.isFinite(options.tokens) ? options.tokens : 0;
  for await (const { tokens, heldout } of corpusWindows(
    files,
    tokenizer,
    options,
    { index: 0, count: 1 },
    context.signal,
  )) {
    size.tokens += tokens.length;
    if (!heldout) size.profiled += tokens.length;
    context.progress({ label: "count tokens", done: size.tokens, total, unit: "tokens" });
  }
  const names = files.map(({ path }) => path).join(", ");
  check(size.tokens > 0, "E_CORPUS", () => `${names}: expected text, found none`);
  check(size.profiled > 0, "E_CORPUS", () => `${names}: ${size.tokens} tokens are too few: all of them are held out`);
  return size;
}

/** What activations.arrow says of the corpus. */
export function corpusEntries(files: readonly CorpusFile[], tokens: readonly number[]): Corpus[] {
  return files.map(({ name, bytes, sha256 }, file) => ({ name, bytes, sha256, tokens: tokens[file]! }));
}
