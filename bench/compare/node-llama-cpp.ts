/**
 * Measures node-llama-cpp through its own interface. Usage: tsx bench/compare/node-llama-cpp.ts MODULE MODEL.gguf THREADS METRICS,
 * MODULE being the folder of the installed package. Prints one line of JSON: tokens per second by metric.
 */
import { pathToFileURL } from "node:url";
import { BATCH, DECODE_TOKENS, PREFILL, type Metric, type Speeds } from "./outputs.ts";

/** The part of the package's interface that is used here. */
interface Sequence {
  clearHistory(): Promise<void>;
  evaluateWithoutGeneratingNewTokens(tokens: number[]): Promise<void>;
  evaluate(tokens: number[], options: { temperature: number; yieldEogToken: boolean }): AsyncGenerator<number>;
}
interface Context {
  getSequence(): Sequence;
}
interface Model {
  createContext(options: {
    contextSize: number;
    sequences: number;
    threads: number;
    batchSize: number;
  }): Promise<Context>;
}
interface Package {
  getLlama(options: object): Promise<{ loadModel(options: { modelPath: string; gpuLayers: 0 }): Promise<Model> }>;
}

const [module, modelPath, threads, wanted] = process.argv.slice(2) as [string, string, string, string];
const { getLlama } = (await import(pathToFileURL(`${module}/dist/index.js`).href)) as Package;
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: Number(threads) });
const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
const context = await model.createContext({
  contextSize: 2 * PREFILL.prefill512,
  sequences: BATCH,
  threads: Number(threads),
  batchSize: PREFILL.prefill512,
});
const sequences = Array.from({ length: BATCH }, () => context.getSequence());
const [first] = sequences as [Sequence];

/** Tokens of the dummy vocabulary's words, as long as the text is. */
const text = (length: number): number[] => Array.from({ length }, (_, i) => 300 + (i % 100));

async function prefill(tokens: number): Promise<number> {
  await first.clearHistory();
  const start = performance.now();
  await first.evaluateWithoutGeneratingNewTokens(text(tokens));
  return (1000 * tokens) / (performance.now() - start);
}

/** Tokens per second of all `of` together, from their first token on. */
async function decode(of: readonly Sequence[]): Promise<number> {
  for (const sequence of of) await sequence.clearHistory();
  const iterators = of.map((sequence, i) => sequence.evaluate([300 + i], { temperature: 0.8, yieldEogToken: true }));
  const steps = async (count: number) => {
    for (let i = 0; i < count; i++) await Promise.all(iterators.map((iterator) => iterator.next()));
  };
  await steps(1);
  const start = performance.now();
  await steps(DECODE_TOKENS);
  const seconds = (performance.now() - start) / 1000;
  await Promise.all(iterators.map((iterator) => iterator.return(undefined)));
  return (of.length * DECODE_TOKENS) / seconds;
}

const speeds: Speeds = {};
await prefill(PREFILL.prefill64); // warm
for (const metric of wanted.split(",") as Metric[]) {
  if (metric === "decode") speeds.decode = await decode([first]);
  else if (metric === "batch8") speeds.batch8 = await decode(sequences);
  else speeds[metric] = await prefill(PREFILL[metric]);
}
console.log(JSON.stringify(speeds));
process.exit(0); // the package keeps its threads
