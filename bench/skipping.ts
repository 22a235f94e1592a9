/**
 * What could be skipped of the weights that FFN sparsity leaves: inputs of the attention projections whose magnitude is
 * small, and most of the output head. Usage: tsx bench/skipping.ts [SRC]; SRC is a Hugging Face folder of a ReLU model
 * (default: the larger example). Thresholds and factors come from examples/corpus.txt; quality is measured on
 * examples/heldout.txt, against the model as it is. Prints two tables and a line of JSON.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { convert } from "../convert/convert.ts";
import { silentContext } from "../io/progress.ts";
import { readWindows } from "./inputs.ts";
import { Reference } from "./reference.ts";
import { skipInputs } from "./skipping/attention.ts";
import { skipHead } from "./skipping/head.ts";

const TOKENS = 4096;
const CALIBRATION_TOKENS = 4096;

const examples = new URL("../examples/", import.meta.url).pathname;
const folder = await mkdtemp(join(tmpdir(), "pi-bench-"));
try {
  const source = process.argv[2] ?? join(examples, "pi-tale-7m");
  await convert({ source, output: folder, dtype: "f16" }, silentContext);
  const model = await Reference.open(folder);
  const heldout = await readWindows(folder, join(examples, "heldout.txt"), TOKENS);
  const corpus = await readWindows(folder, join(examples, "corpus.txt"), CALIBRATION_TOKENS);
  const attention = await skipInputs(model, heldout, corpus);
  console.error("inputs of q, k, v and o below a threshold are dropped; bytes: of these weights, read for a token");
  console.table(attention);
  const head = await skipHead(model, heldout, corpus);
  console.error("sketch of the head, and exact logits for the best N; bytes: read for a token");
  console.table(head);
  console.log(JSON.stringify({ bench: "skipping", attention, head }));
} finally {
  await rm(folder, { recursive: true });
}
