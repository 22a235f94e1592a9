/** How fast a model runs here, and what bounds it. Used by `pi bench`. */
import { readCaches } from "../io/hardware.ts";
import type { StageContext } from "../io/progress.ts";
import { KV_BLOCK, native, type Choice, type EngineStats, type FfnMode } from "../native/index.ts";
import { forcedStep } from "./forced-logits.ts";
import type { OpenModel } from "./open.ts";

export interface SpeedOptions {
  modes: readonly FfnMode[];
  /** Tokens of the prompt, and tokens decoded after it. Both at least 1; together within the KV cache. */
  prompt: number;
  tokens: number;
  /** How often each mode is measured, in turn, so that a busy moment hits all alike. */
  repeats: number;
  threads: number;
}

/** Medians over the repeats. Bytes per token are means over the decoded tokens. */
export interface ModeSpeed {
  prefillTokensPerSecond: number;
  decodeTokensPerSecond: number;
  /** Weights and KV cache that a decoded token reads, by part, and in all. */
  bytes: EngineStats["bytes"];
  bytesPerToken: number;
  bytesPerSecond: number;
  limit: ReadLimit;
  /** bytesPerSecond over the limit's. */
  share: number;
}

/** How fast this machine reads as many bytes as a token needs, over and over, as measured between the repeats. */
export interface ReadLimit {
  /** `cache` where those bytes fit the last-level cache, measured with a buffer of that size; else `memory`. */
  kind: "cache" | "memory";
  bufferBytes: number;
  bytesPerSecond: number;
}

/** A buffer beyond any cache, and how long each measurement of bandwidth takes. */
const MEMORY_BYTES = 256 << 20;
const PROBE_SECONDS = 0.2;

/**
 * Measures prefill and decoding of one sequence: a text sampled from the model itself, the same in every mode, because
 * how many neurons fire depends on the text. Prompts run dense, as they do when serving.
 */
export async function measureSpeed(
  model: OpenModel,
  options: SpeedOptions,
  context: StageContext,
): Promise<Map<FfnMode, ModeSpeed>> {
  const { modes, prompt, tokens, repeats, threads } = options;
  const text = await sampleText(model, prompt + tokens);
  const runs = new Map(modes.map((mode) => [mode, [] as Run[]]));
  const bandwidths = new Map<number, number[]>();
  // Repeat 0 warms caches and clocks, and tells how much a token reads.
  for (let repeat = 0; repeat <= repeats; repeat++) {
    for (const mode of modes) {
      context.signal.throwIfAborted();
      const run = await measureRun(model, text, prompt, mode);
      if (repeat > 0) runs.get(mode)!.push(run);
      else bandwidths.set(await bufferFor(run), []);
      context.progress({
        label: "measure",
        done: repeat * tokens,
        total: repeats * tokens,
        unit: "tokens",
        note: mode,
      });
    }
    for (const [bytes, found] of bandwidths) found.push(await native().readBandwidth(bytes, threads, PROBE_SECONDS));
  }
  const summaries = modes.map(async (mode) => {
    const bytes = await bufferFor(runs.get(mode)![0]!);
    return [mode, summarise(runs.get(mode)!, prompt, tokens, bytes, median(bandwidths.get(bytes)!))] as const;
  });
  return new Map(await Promise.all(summaries));
}

/** One prefill and the decoding after it. */
interface Run {
  prefillSeconds: number;
  decodeSeconds: number;
  /** Per decoded token. */
  bytes: EngineStats["bytes"];
  bytesPerToken: number;
}

async function measureRun(model: OpenModel, text: Int32Array, prompt: number, mode: FfnMode): Promise<Run> {
  const { engine } = model;
  const prefillSeconds = await timed(() => step(model, text, 0, prompt, "dense", GREEDY));
  engine.resetStats();
  const decodeSeconds = await timed(async () => {
    for (let at = prompt; at < text.length; at++) await step(model, text, at, 1, mode, GREEDY);
  });
  const { rows, bytes: sums } = engine.stats();
  const entries = Object.entries(sums).map(([part, sum]) => [part, sum / rows] as const);
  const bytes = Object.fromEntries(entries) as EngineStats["bytes"];
  return { prefillSeconds, decodeSeconds, bytes, bytesPerToken: entries.reduce((sum, [, n]) => sum + n, 0) };
}

/** Bytes of the buffer whose bandwidth bounds a run: what a token reads if that stays in the last-level cache. */
async function bufferFor({ bytesPerToken }: Run): Promise<number> {
  const cache = (await readCaches()).at(-1)?.size ?? 0;
  return bytesPerToken <= cache ? Math.ceil(bytesPerToken / 2 ** 20) * 2 ** 20 : MEMORY_BYTES;
}

function summarise(runs: Run[], prompt: number, tokens: number, bufferBytes: number, bandwidth: number): ModeSpeed {
  const { bytes, bytesPerToken } = runs[0]!;
  const decodeTokensPerSecond = tokens / median(runs.map((run) => run.decodeSeconds));
  const bytesPerSecond = bytesPerToken * decodeTokensPerSecond;
  const kind = bufferBytes === MEMORY_BYTES ? "memory" : "cache";
  return {
    prefillTokensPerSecond: prompt / median(runs.map((run) => run.prefillSeconds)),
    decodeTokensPerSecond,
    bytes,
    bytesPerToken,
    bytesPerSecond,
    limit: { kind, bufferBytes, bytesPerSecond: bandwidth },
    share: bytesPerSecond / bandwidth,
  };
}

const NEUTRAL: Omit<Choice, "temperature" | "logitBias"> = {
  target: -1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  history: new Int32Array(),
  outputStart: 0,
  seed: 1,
  topLogprobs: 0,
};
const GREEDY: Choice = { ...NEUTRAL, temperature: 0, logitBias: new Float64Array() };

/** `length` tokens in the model's own words: BOS, then sampled at temperature 0.8, never an end of text. */
async function sampleText(model: OpenModel, length: number): Promise<Int32Array> {
  const { bosToken, eosTokens } = model.config;
  const logitBias = Float64Array.from(eosTokens.flatMap((token) => [token, -1e9]));
  const text = Int32Array.of(bosToken ?? 0, ...new Int32Array(length - 1));
  for (let at = 0; at + 1 < length; at++) {
    text[at + 1] = await step(model, text, at, 1, model.defaultMode, { ...NEUTRAL, temperature: 0.8, logitBias });
  }
  return text;
}

/** Computes rows [at, at + rows) of the one sequence and returns the token chosen after the last. */
async function step(
  model: OpenModel,
  text: Int32Array,
  at: number,
  rows: number,
  mode: FfnMode,
  choice: Choice,
): Promise<number> {
  const batch = forcedStep(text, at, rows, mode, Math.ceil(text.length / KV_BLOCK), 0);
  const { tokens } = await model.engine.step({ ...batch, outputs: Int32Array.of(rows - 1), choose: [choice] });
  return tokens![0]!;
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return (performance.now() - start) / 1000;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}
