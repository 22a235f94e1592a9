/**
 * How much of the neuron work the GPU does on texts like and unlike the profiled one, with neurons where they were placed and
 * with neurons that change places (`--adapt`). Counts, no times: PI_DEVICE=emulated tells as much as a GPU.
 * Usage: tsx bench/adapt.ts ARTIFACT [--share 0.2] [--tokens 4096] TEXT...; every layer has the first `share` of its neurons
 * on the GPU. Prints a table, shares by quarters of each text, and one line of JSON at the end.
 */
import { basename } from "node:path";
import { parseArgs } from "node:util";
import { readWindows } from "../cli/eval-windows.ts";
import { parsePredictorMetrics } from "../formats/predictors.ts";
import { silentContext } from "../io/progress.ts";
import { forcedStep } from "../model/forced-logits.ts";
import { readModelFile, type ModelFile } from "../model/model-file.ts";
import { tensorRefs } from "../model/open.ts";
import { KV_BLOCK, native, type Engine } from "../native/index.ts";

/** Of context, as long as a page; and rows of a step, few, for neurons change places between two steps. */
const WINDOW = 256;
const ROWS = 8;
const PARTS = 4;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { share: { type: "string", default: "0.2" }, tokens: { type: "string", default: "4096" } },
});
const [path, ...texts] = positionals;
if (path === undefined || texts.length === 0) throw new Error("usage: tsx bench/adapt.ts ARTIFACT TEXT...");
const [onGpu, tokens] = [Number(values.share), Number(values.tokens)];

function open(file: ModelFile, adapt: boolean): Engine {
  const { config, metadata } = file;
  const neurons = Math.round(onGpu * config.nNeurons);
  const metrics = parsePredictorMetrics(metadata["pi.predictors"]!, file.path, config.nLayers);
  const layers = Array.from({ length: config.nLayers }, () => ({ neurons, attention: false, predictor: true }));
  return native().openEngine({
    files: [file.path],
    tensors: tensorRefs(file.tensors, 0),
    config: JSON.stringify(config),
    thresholds: Float32Array.from(metrics, ({ threshold }) => threshold),
    threads: 1,
    kvBlocks: WINDOW / KV_BLOCK,
    kvType: "f16",
    gpu: { layers, head: false, vramBytes: 2 ** 32, maxRows: ROWS, adapt },
  });
}

/** The GPU's share of the neurons that were asked for, in each part of the text and in all of it. */
async function measure(file: ModelFile, windows: readonly Int32Array[], adapt: boolean) {
  const engine = open(file, adapt);
  const parts = Array.from({ length: PARTS }, () => ({ gpu: 0, cpu: 0 }));
  let swaps = 0;
  for (const [i, ids] of windows.entries()) {
    for (let start = 0; start < ids.length; start += ROWS) {
      const rows = Math.min(ROWS, ids.length - start);
      await engine.step(forcedStep(ids, start, rows, "predictor", WINDOW / KV_BLOCK, 0));
    }
    const { neuronRows, swaps: made } = engine.stats().gpu!;
    const part = parts[Math.floor((i * PARTS) / windows.length)]!;
    part.gpu += neuronRows.gpu;
    part.cpu += neuronRows.cpu;
    swaps += made;
    engine.resetStats();
  }
  engine.close();
  const shareOf = (some: typeof parts): number => {
    const [gpu, cpu] = [some.reduce((n, part) => n + part.gpu, 0), some.reduce((n, part) => n + part.cpu, 0)];
    return Number((gpu / (gpu + cpu)).toFixed(4));
  };
  return { adapt, share: shareOf(parts), parts: parts.map((part) => shareOf([part])), swaps };
}

const file = await readModelFile(path);
const found = [];
for (const text of texts) {
  const windows = await readWindows(file, { corpus: [text], field: "text", tokens, window: WINDOW }, silentContext);
  for (const adapt of [false, true]) found.push({ text: basename(text), ...(await measure(file, windows, adapt)) });
}
const inPercent = (parts: number[]): string => parts.map((part) => (100 * part).toFixed(1)).join(" ");
console.table(
  found.map(({ text, adapt, share, parts, swaps }) => ({ text, adapt, share, parts: inPercent(parts), swaps })),
);
console.log(JSON.stringify({ bench: "adapt", artifact: basename(path), neurons: onGpu, tokens, found }));
