/** Text for experiments, and what the matrices of a model see while it reads it. */
import { silentContext } from "../io/progress.ts";
import { readModelFile } from "../model/model-file.ts";
import { readTextFile } from "../model/open.ts";
import { loadTokenizer } from "../model/tokenizer.ts";
import { corpusFiles } from "../profile/corpus-files.ts";
import { corpusWindows } from "../profile/corpus.ts";
import type { Reference } from "./reference.ts";

/** The first `tokens` tokens of a text in windows of the model's context, at most 512. */
export async function readWindows(dir: string, text: string, tokens: number): Promise<Int32Array[]> {
  const model = await readModelFile(dir);
  const tokenizer = await loadTokenizer((name) => readTextFile(model, name), dir);
  const files = await corpusFiles([text], silentContext);
  const options = { field: "text", tokens, window: Math.min(512, model.config.maxPositions), seed: 0 };
  const windows: Int32Array[] = [];
  for await (const window of corpusWindows(files, tokenizer, options, { index: 0, count: 1 }, silentContext.signal)) {
    if (window.tokens.length > 1) windows.push(window.tokens);
  }
  return windows;
}

/** Mean square of every column of every matrix's input, by the matrix's name (but for down_t, whose rows are scaled). */
export function measureInputs(reference: Reference, windows: readonly Int32Array[]): Map<string, Float64Array> {
  const sums = new Map<string, Float64Array>();
  const tokens = windows.reduce((sum, { length }) => sum + length, 0);
  for (const window of windows) {
    reference.hidden(window, (name, x) => {
      const cols = x.length / window.length;
      const sum = sums.get(name) ?? new Float64Array(cols);
      for (let i = 0; i < x.length; i++) sum[i % cols]! += x[i]! ** 2 / tokens;
      sums.set(name, sum);
      return reference.product(name, x);
    });
  }
  return sums;
}

export function concat(parts: readonly Float32Array[]): Float32Array {
  const out = new Float32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}
