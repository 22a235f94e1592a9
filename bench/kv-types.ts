/**
 * What keys and values in fewer bits cost in quality: perplexity and KL divergence from those in f32, on text that the
 * models have not seen. Usage: tsx bench/kv-types.ts [SRC …]; SRC is a Hugging Face folder (default: both example models).
 * Weights are f16. Prints a table a model, and one line of JSON.
 */
import { basename, join } from "node:path";
import { convert } from "../convert/convert.ts";
import { silentContext } from "../io/progress.ts";
import { kvTokensFor } from "../model/forced-logits.ts";
import { openModel } from "../model/open.ts";
import { KV_TYPES, type KvType } from "../native/index.ts";
import { inExamples, measureSources } from "./examples.ts";
import { readWindows } from "./inputs.ts";
import { compareModels, type Quality } from "./quality.ts";

const TOKENS = 8192;

await measureSources("kv-types", measure);

async function measure(source: string, folder: string): Promise<Record<string, Quality>> {
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
        rows[kvType] = await compareModels(reference, test, windows);
      } finally {
        test.close();
      }
    }
  } finally {
    reference.close();
  }
  return rows;
}
