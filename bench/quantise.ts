/**
 * What block types, and ways to choose the scales of q4_0, cost in quality: perplexity and KL divergence from f16 on text
 * that the models have not seen. Usage: tsx bench/quantise.ts [SRC …]; SRC is a Hugging Face folder (default: both example
 * models). Prints a table a model, and one line of JSON.
 *
 * The weighted rows are experiments that `pi convert` does not offer: the error of column j counts E[x_j²] of the matrix's
 * input, measured on examples/corpus.txt; "FFN" weights gate and up only, whose inputs are what `pi profile` samples.
 */
import { copyFile, mkdtemp, open } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { convert } from "../convert/convert.ts";
import type { Scales, WeightDType } from "../formats/dtypes.ts";
import { silentContext } from "../io/progress.ts";
import { kvTokensFor } from "../model/forced-logits.ts";
import { MODEL_FILE, readModelFile } from "../model/model-file.ts";
import { openModelFile, type OpenModel } from "../model/open.ts";
import { native } from "../native/index.ts";
import { inExamples, measureSources } from "./examples.ts";
import { measureInputs, readWindows } from "./inputs.ts";
import { compareModels, type Quality } from "./quality.ts";
import { Reference } from "./reference.ts";

const TOKENS = 16384;
const CALIBRATION_TOKENS = 4096;
const BLOCK = 32;
/** What the largest value of a block becomes, as in native/quant/convert.cc. */
const LARGEST = [-8, -7.4, -7.7, -8.3, -8.6];

await measureSources("quantise", measure);

async function measure(source: string, folder: string): Promise<Record<string, Quality>> {
  const f16 = await converted(source, folder, "f16");
  const windows = await readWindows(f16, inExamples("heldout.txt"), TOKENS);
  const fitted = await converted(source, folder, "q4_0", "fitted");
  const reference = await Reference.open(f16);
  const calibration = await readWindows(f16, inExamples("corpus.txt"), CALIBRATION_TOKENS);
  const importance = measureInputs(reference, calibration);
  const ofFfn = new Map([...importance].filter(([name]) => name.includes(".ffn.")));
  const variants: Record<string, string> = {
    q8_0: await converted(source, folder, "q8_0"),
    "q4_0, plain": await converted(source, folder, "q4_0", "plain"),
    "q4_0, fitted": fitted,
    "q4_0, fitted, FFN weighted": await weighted(fitted, reference, ofFfn),
    "q4_0, fitted, all weighted": await weighted(fitted, reference, importance),
  };
  const rows: Record<string, Quality> = {};
  for (const [label, dir] of Object.entries(variants)) rows[label] = await compare(f16, dir, windows);
  return rows;
}

async function converted(source: string, folder: string, dtype: WeightDType, scales?: Scales): Promise<string> {
  const output = join(folder, `${basename(source)}-${dtype}-${scales}`);
  await convert({ source, output, dtype, ...(scales && { scales }) }, silentContext);
  return output;
}

async function compare(f16: string, dir: string, windows: readonly Int32Array[]): Promise<Quality> {
  const [reference, test] = [await opened(f16, windows), await opened(dir, windows)];
  try {
    return await compareModels(reference, test, windows);
  } finally {
    for (const model of [reference, test]) model.close();
  }
}

async function opened(dir: string, windows: readonly Int32Array[]): Promise<OpenModel> {
  const longest = Math.max(...windows.map(({ length }) => length));
  // Keys and values alike for all weights. What `weighted` wrote is not what the checksums are of.
  const options = { contextTokens: kvTokensFor(longest, 1), kvType: "f16", verify: false } as const;
  return openModelFile(await readModelFile(dir), options);
}

/** A copy of the q4_0 model in `dir` whose matrices named in `importance` are encoded anew from `reference`. */
async function weighted(dir: string, reference: Reference, importance: Map<string, Float64Array>): Promise<string> {
  const { path, tensors } = await readModelFile(dir);
  const copy = join(await mkdtemp(join(dirname(dir), "weighted-")), MODEL_FILE);
  await copyFile(path, copy);
  const file = await open(copy, "r+");
  for (const [name, columns] of importance) {
    const stored = tensors.get(`${name}.weight`);
    if (stored?.dtype !== "q4_0") continue;
    const bytes = await encode(reference.weights(name), columns);
    await file.write(bytes, 0, bytes.length, stored.offset);
  }
  await file.close();
  return copy;
}

/** Rows of q4_0 with scales of the least squared error, each column's counted `columns[j]`. */
async function encode(values: Float32Array, columns: Float64Array): Promise<Uint8Array> {
  const blocks = Array.from({ length: values.length / BLOCK }, (_, i) => {
    const at = (i * BLOCK) % columns.length;
    return fitBlock(values.subarray(i * BLOCK, (i + 1) * BLOCK), columns.subarray(at, at + BLOCK));
  });
  const scales = Float32Array.from(blocks, ({ d }) => d);
  const halves = await native().convertTensor(new Uint8Array(scales.buffer), "f32", "f16", 1, scales.length, false);
  const out = new Uint8Array(blocks.length * 18);
  blocks.forEach(({ q }, i) => {
    out.set(halves.subarray(2 * i, 2 * i + 2), 18 * i);
    for (let j = 0; j < 16; j++) out[18 * i + 2 + j] = q[j]! + 8 + 16 * (q[j + 16]! + 8);
  });
  return out;
}

function fitBlock(x: Float32Array, columns: Float64Array): { d: number; q: Float64Array } {
  const largest = x.reduce((most, value) => (Math.abs(value) > Math.abs(most) ? value : most), 0);
  let best = { explained: 0, d: 0, q: new Float64Array(BLOCK) };
  for (const units of largest === 0 ? [] : LARGEST) {
    const q = Float64Array.from(x, (value) => Math.min(7, Math.max(-8, Math.round((value * units) / largest))));
    let [xq, qq] = [0, 0];
    for (let j = 0; j < BLOCK; j++) {
      xq += columns[j]! * x[j]! * q[j]!;
      qq += columns[j]! * q[j]! * q[j]!;
    }
    if (qq > 0 && (xq * xq) / qq > best.explained) best = { explained: (xq * xq) / qq, d: xq / qq, q };
  }
  return best;
}
