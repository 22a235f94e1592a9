/**
 * pi beside other engines on this machine, on the same weights. Usage:
 * tsx bench/compare.ts --model DIR|X.pi --peers FILE.json [--mode dense,predictor] [--what decode,prefill,batch]
 *   [--threads 1,2] [--repeats N] [--neighbour] [--json] [-- options of pi bench …]
 *
 * FILE.json says which peers there are; bench/gguf.ts makes their models. `bin` is a folder of built programs, `args`
 * and `batchArgs` are options that make a peer faster, for its ordinary and for its batched benchmark:
 *   { "peers": [
 *     { "name": "llama.cpp", "kind": "llama-bench", "bin": "llama.cpp/build/bin", "model": "q4_0.gguf", "args": ["-fa", "1"] },
 *     { "name": "PowerInfer", "kind": "powerinfer", "bin": "PowerInfer/build/bin", "model": "q4_0.powerinfer.gguf" },
 *     { "name": "node-llama-cpp", "kind": "node-llama-cpp", "module": "node_modules/node-llama-cpp", "model": "q4_0.gguf" } ] }
 *
 * Every engine runs in a process of its own, one after the other, N rounds in alternating order. Decoding is of 64 tokens,
 * prefill of 512 and of 64, a batch decodes 8 sequences. Memory bandwidth is measured around every run, because on shared
 * machines it is not the same an hour later, and so is what other processes take: engines that spin at barriers suffer from
 * those out of proportion, so only a quiet machine is fair to all. --neighbour: beside an endless loop pinned to core 0. Prints the medians, or
 * nothing with --json, and one line of JSON.
 */
import { readFile } from "node:fs/promises";
import { parseArgs } from "node:util";
import { formatNumber, printTable } from "../cli/output.ts";
import { percent } from "../cli/place.ts";
import { parseInteger } from "../cli/sizes.ts";
import { check } from "../formats/errors.ts";
import { readModelFile, type ModelFile } from "../model/model-file.ts";
import { native } from "../native/index.ts";
import { measure, parsePeers, piEngines, type Engine } from "./compare/engines.ts";
import { withNeighbour } from "./compare/neighbour.ts";
import { watchOthers } from "./compare/others.ts";
import type { Metric } from "./compare/outputs.ts";
import { summarise, type Sample, type Summary } from "./compare/summary.ts";

/** Metrics by what the option calls them. */
const WHAT: Record<string, readonly Metric[]> = {
  decode: ["decode"],
  prefill: ["prefill512", "prefill64"],
  batch: ["batch8"],
};

/** Buffer that no cache holds, and the time a probe of bandwidth takes. */
const PROBE_BYTES = 256 << 20;
const PROBE_SECONDS = 0.2;

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    model: { type: "string" },
    peers: { type: "string" },
    mode: { type: "string", default: "dense" },
    what: { type: "string", default: Object.keys(WHAT).join() },
    threads: { type: "string", default: "1,2" },
    repeats: { type: "string", default: "5" },
    neighbour: { type: "boolean", default: false },
    json: { type: "boolean", default: false },
  },
});
const { model, peers, neighbour } = values;
check(model !== undefined && peers !== undefined, "E_USAGE", "expected --model DIR|X.pi --peers FILE.json");
const whats = values.what.split(",");
check(
  whats.every((what) => what in WHAT),
  "E_USAGE",
  `--what: expected ${Object.keys(WHAT)}, got ${values.what}`,
);

const wanted = new Set(whats.flatMap((what) => WHAT[what]!));
const threads = values.threads.split(",").map(parseInteger(1));
const repeats = parseInteger(1)(values.repeats);
const file = await readModelFile(model);
const engines = [
  ...piEngines(model, values.mode.split(","), positionals),
  ...parsePeers(await readFile(peers, "utf8"), peers),
];

const samples = neighbour ? await withNeighbour(sampleAll) : await sampleAll();
const results = summarise(samples, denseBytesOf(file));
if (!values.json) print(results);
console.log(
  JSON.stringify({ bench: "compare", dtype: file.dtype, config: file.config, repeats, neighbour, results, samples }),
);

async function sampleAll(): Promise<Sample[]> {
  const found: Sample[] = [];
  for (let round = 0; round < repeats; round++) {
    for (const count of threads) {
      for (const engine of round % 2 === 0 ? engines : engines.toReversed()) {
        found.push(...(await sampleEngine(engine, count)));
      }
    }
  }
  return found;
}

async function sampleEngine({ name, ours, runs }: Engine, count: number): Promise<Sample[]> {
  const bandwidth = () => native().readBandwidth(PROBE_BYTES, count, PROBE_SECONDS);
  const found: Sample[] = [];
  for (const run of runs(count, wanted)) {
    const before = await bandwidth();
    const { result, otherCores } = await watchOthers(() => measure(run));
    const bytesPerSecond = (before + (await bandwidth())) / 2;
    for (const [metric, tokensPerSecond] of Object.entries(result) as [Metric, number][]) {
      found.push({ engine: name, ours, threads: count, metric, tokensPerSecond, bytesPerSecond, otherCores });
      console.error(`${name}, ${count} threads, ${metric}: ${formatNumber(tokensPerSecond)} tokens/s`);
    }
  }
  return found;
}

/** Weights that a dense step reads: all but the embedding, of which it takes a row, unless that is the head too. */
function denseBytesOf({ tensors, config }: ModelFile): number {
  const read = [...tensors].filter(
    ([name]) => !name.includes("predictor") && (config.tiedHead || name !== "embed.weight"),
  );
  return read.reduce((sum, [, { bytes }]) => sum + bytes, 0);
}

function print(summaries: readonly Summary[]): void {
  printTable(
    ["metric", "threads", "engine", "tok/s", "min", "max", "pi / best peer", "GB/s", "others' cores", "of dense limit"],
    summaries.map((s) => [
      s.metric,
      s.threads,
      s.engine,
      s.median,
      s.min,
      s.max,
      s.ratio === null ? "" : s.ratio.toFixed(2),
      s.bytesPerSecond / 1e9,
      s.otherCores,
      s.shareOfDense === null ? "" : percent(s.shareOfDense),
    ]),
  );
}
