/**
 * What keys and values in fewer bits cost in quality: perplexity and KL divergence from those in f32, on text that the
 * models have not seen. Usage: tsx bench/kv-types.ts [SRC …]; SRC is a Hugging Face folder (default: both example models).
 * Weights are f16. Prints a table a model, and one line of JSON.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { convert } from "../convert/convert.ts";
import { silentContext } from "../io/progress.ts";
import { forcedLogits, kvTokensFor } from "../model/forced-logits.ts";
import { openModel, type OpenModel } from "../model/open.ts";
import { KV_TYPES, type KvType } from "../native/index.ts";
import { readWindows } from "./inputs.ts";
import { QualitySum, type Quality } from "./quality.ts";

const TOKENS = 8192;

const examples = new URL("../examples/", import.meta.url).pathname;
const sources = process.argv.length > 2 ? process.argv.slice(2) : ["pi-tale-7m", "pi-tale-opt-1m"].map(inExamples);
const folder = await mkdtemp(join(tmpdir(), "pi-bench-"));
const results: Record<string, unknown> = {};
try {
  for (const source of sources) {
    const rows = await measure(source);
    console.error(basename(source));
    console.table(rows);
    results[basename(source)] = rows;
  }
  console.log(JSON.stringify({ bench: "kv-types", results }));
} finally {
  await rm(folder, { recursive: true });
}

function inExamples(name: string): string {
  return join(examples, name);
}

async function measure(source: string): Promise<Record<string, Quality>> {
  const dir = join(folder, basename(source));
  await convert({ source, output: dir, dtype: "f16" }, silentContext);
  const windows = await readWindows(dir, inExamples("heldout.txt"), TOKENS);
  const open = (kvType: KvType) => openModel(dir, { kvType, contextTokens: kvTokensFor(512, 1), verify: false });
  const reference = await open("f32");
  const rows: Record<string, Quality> = {};
  try {
    for (const kvType of KV_TYPES.filter((type) => type !== "f32")) {
      const test = await open(kvType);
      try {
        rows[kvType] = await compare(reference, test, windows);
      } finally {
        test.close();
      }
    }
  } finally {
    reference.close();
  }
  return rows;
}

async function compare(reference: OpenModel, test: OpenModel, windows: readonly Int32Array[]): Promise<Quality> {
  const sum = new QualitySum();
  for (const tokens of windows) {
    const tests = forcedLogits(test, tokens, "dense");
    for await (const { start, rows, logits } of forcedLogits(reference, tokens, "dense")) {
      const other = await tests.next();
      const targets = tokens.subarray(start + 1, start + 1 + rows);
      await sum.add(logits, other.value!.logits, targets, reference.config.vocabSize);
    }
  }
  return sum.result();
}
