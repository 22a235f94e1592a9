import { check } from "../formats/errors.ts";
import { readTextFile } from "../model/open.ts";
import type { ModelFile } from "../model/model-file.ts";
import { loadTokenizer } from "../model/tokenizer.ts";
import { corpusFiles } from "../profile/corpus-files.ts";
import { corpusWindows } from "../profile/corpus.ts";
import type { StageContext } from "../io/progress.ts";

export interface EvalText {
  corpus: readonly string[];
  field: string;
  tokens: number;
  /** Tokens of context, or the model's when that is less. */
  window: number;
}

/** Windows of text to measure `file`'s model on, each of two tokens or more. Throws `E_CORPUS`. */
export async function readWindows(
  file: ModelFile,
  { corpus, field, tokens, window }: EvalText,
  context: StageContext,
): Promise<Int32Array[]> {
  const tokenizer = await loadTokenizer((name) => readTextFile(file, name), file.path);
  const files = await corpusFiles(corpus, context);
  const options = { field, tokens, window: Math.min(window, file.config.maxPositions), seed: 0 };
  const windows: Int32Array[] = [];
  for await (const { tokens: ids } of corpusWindows(
    files,
    tokenizer,
    options,
    { index: 0, count: 1 },
    context.signal,
  )) {
    if (ids.length > 1) windows.push(ids);
  }
  check(windows.length > 0, "E_CORPUS", `${corpus.join(", ")}: expected text of two tokens or more, found less`);
  return windows;
}
