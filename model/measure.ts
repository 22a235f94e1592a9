/** How fast a model runs here, and what bounds it. Used by `pi bench`. */
import { readCaches } from "../io/hardware.ts";
import type { StageContext } from "../io/progress.ts";
import {
  FFN_MODE,
  KV_BLOCK,
  native,
  type Choice,
  type EngineStats,
  type FfnMode,
  type TraceSpan,
} from "../native/index.ts";
import { kvTokensFor } from "./forced-logits.ts";
import { gpuSpeed, mapValues, totalOf, type GpuSpeed } from "./gpu-speed.ts";
import { GREEDY_CHOICE, NEUTRAL_CHOICE } from "./neutral-choice.ts";
import type { OpenModel } from "./open.ts";
import { Stepper } from "./stepper.ts";

export interface SpeedOptions {
  modes: readonly FfnMode[];
  /** Tokens in the cache before decoding begins, 0 or more; with `tokens` at most the model's context. */
  contexts: readonly number[];
  /** Sequences that are decoded together. */
  batches: readonly number[];
  /** Tokens decoded of each sequence, at least 1. */
  tokens: number;
  /** How often everything is measured, in turn, so that a busy moment hits all alike. */
  repeats: number;
  threads: number;
  /** Called after every repeat: what else is to be measured in the same minutes. */
  between?: () => Promise<void>;
}

/**
 * One mode at one context and batch: medians over the repeats. Bytes per token are means over the decoded tokens; those of main
 * memory alone bound the CPU.
 */
export interface Speed {
  /** `cpu`, or the name of the GPU that had a part. */
  device: string;
  mode: FfnMode;
  context: number;
  batch: number;
  /** Of the context, sequence after sequence, dense whatever the mode; null without one. */
  prefillTokensPerSecond: number | null;
  /** Of all sequences together. */
  decodeTokensPerSecond: number;
  /** Weights and KV cache that a decoded token reads, by part, and in all. What a step reads for all of a batch counts once. */
  bytes: EngineStats["bytes"];
  bytesPerToken: number;
  /** Seconds of one step by part; FFN with its predictor, `rest` what happens between the parts and around the engine. */
  stepSeconds: StepSeconds;
  bytesPerSecond: number;
  limit: ReadLimit;
  /** bytesPerSecond over the limit's. */
  share: number;
  /** Null without one. */
  gpu: GpuSpeed | null;
}

export type StepSeconds = EngineStats["partSeconds"] & { rest: number };

/** How fast this machine reads as many bytes as a step needs, over and over, as measured between the repeats. */
export interface ReadLimit {
  /** `cache` where those bytes fit the last-level cache, measured with a buffer of that size; else `memory`. */
  kind: "cache" | "memory";
  bufferBytes: number;
  bytesPerSecond: number;
}

export interface Measured {
  speeds: Speed[];
  /** Of this process, mapped weights included, before the limit's buffer was allocated. */
  peakRss: number;
  /** Of all decoding, the warming up included. */
  swaps: Swaps;
  /** What was decoded, each after its prompt. */
  texts: Int32Array[];
}

/** A buffer beyond any cache, and how long each measurement of bandwidth takes. */
const MEMORY_BYTES = 256 << 20;
const PROBE_SECONDS = 0.2;

/** Rows of a prompt that are computed in one step: enough to read weights seldom, and scratch memory stays bounded. */
const PREFILL_ROWS = 512;

/** Tokens of a prompt that are sampled; longer prompts repeat them. Which tokens are cached costs decoding nothing. */
const SAMPLED_PROMPT = 128;

/** KV capacity in tokens that {@link measureSpeed} needs. */
export function speedTokens({ contexts, batches, tokens }: Pick<SpeedOptions, "contexts" | "batches" | "tokens">) {
  return kvTokensFor(Math.max(SAMPLED_PROMPT, ...contexts) + tokens, Math.max(...batches));
}

/**
 * Measures prefill and decoding of texts sampled from the model itself, the same in every mode and after every context,
 * because how many neurons fire depends on the text.
 */
export async function measureSpeed(model: OpenModel, options: SpeedOptions, context: StageContext): Promise<Measured> {
  const { contexts, batches, repeats, tokens, threads } = options;
  const texts = await sampleTexts(model, Math.max(...batches), tokens, context);
  const cases = contexts.flatMap((length) => batches.map((batch) => ({ length, batch, runs: runsOf(options) })));
  const bandwidths = new Map<number, number[]>();
  const swaps: Swaps = { made: 0, stopped: null };
  let peakRss = 0;
  // Repeat 0 warms caches and clocks, and tells how much is read.
  for (let repeat = 0; repeat <= repeats; repeat++) {
    for (const [i, { length, batch, runs }] of cases.entries()) {
      context.signal.throwIfAborted();
      const sequences = texts.slice(0, batch).map((text) => withContext(text, length, tokens));
      const prefillSeconds = await prefill(model, sequences, length);
      for (const [mode, samples] of runs) {
        const run = { prefillSeconds, ...(await decode(model, sequences, length, mode, swaps)) };
        if (repeat > 0) samples.push(run);
        else bandwidths.set(await bufferFor(run, batch), []);
      }
      const [done, total] = [repeat * cases.length + i + 1, (repeats + 1) * cases.length];
      context.progress({ label: "measure", done, total, unit: "steps", note: `context ${length}, batch ${batch}` });
    }
    if (repeat === 0) peakRss = process.resourceUsage().maxRSS * 1024;
    if (repeat > 0) await options.between?.();
    for (const [bytes, found] of bandwidths) found.push(await native().readBandwidth(bytes, threads, PROBE_SECONDS));
  }
  const speeds: Speed[] = [];
  for (const { length, batch, runs } of cases) {
    for (const [mode, samples] of runs) {
      const bufferBytes = await bufferFor(samples[0]!, batch);
      const bandwidth = median(bandwidths.get(bufferBytes)!);
      const device = model.device.gpu?.name ?? "cpu";
      speeds.push(summarise(samples, { device, mode, context: length, batch }, tokens, bufferBytes, bandwidth));
    }
  }
  return { speeds, peakRss, texts, swaps };
}

/** Computes the first token after the beginning of a text. */
export async function firstToken(model: OpenModel): Promise<number> {
  const rows = { sequences: [0], at: 0, rows: 1, mode: model.defaultMode };
  return (await step(model, [Int32Array.of(model.config.bosToken ?? 0)], rows))[0]!;
}

const runsOf = ({ modes }: SpeedOptions) => new Map(modes.map((mode) => [mode, [] as Run[]]));

/** With `--adapt`: pairs of neurons that changed places while texts were decoded, and why no more will where something went wrong. */
export interface Swaps {
  made: number;
  stopped: string | null;
}

/** One prefill and the decoding after it. */
interface Run {
  prefillSeconds: number;
  decodeSeconds: number;
  /** Per decoded token. */
  bytes: EngineStats["bytes"];
  bytesPerToken: number;
  stepSeconds: StepSeconds;
  gpu: GpuSpeed | null;
}

/** What both devices did for a prompt, and then to decode. */
export interface TracedText {
  prompt: { spans: TraceSpan[]; seconds: number; streamedBytes: number };
  decoding: TraceSpan[];
}

/** Traces the last `tokens` tokens of a text, decoded after `context` others, which are its prompt. */
export async function traceText(
  model: OpenModel,
  text: Int32Array,
  { mode, context: length, tokens }: { mode: FfnMode; context: number; tokens: number },
): Promise<TracedText> {
  const sequences = [withContext(text, length, tokens)];
  const { engine } = model;
  engine.setTracing(true);
  try {
    engine.resetStats();
    const seconds = await prefill(model, sequences, length);
    const prompt = { spans: engine.trace(), seconds, streamedBytes: engine.stats().gpu?.streamedBytes ?? 0 };
    await decode(model, sequences, length, mode);
    return { prompt, decoding: engine.trace() };
  } finally {
    model.engine.setTracing(false);
  }
}

/** Computes the first `length` tokens of every text, one text after the other; returns the seconds that takes. */
async function prefill(model: OpenModel, texts: readonly Int32Array[], length: number): Promise<number> {
  return timed(async () => {
    for (const sequence of texts.keys()) {
      for (let at = 0; at < length; at += PREFILL_ROWS) {
        const rows = Math.min(PREFILL_ROWS, length - at);
        await step(model, texts, { sequences: [sequence], at, rows, mode: "dense", prefill: true });
      }
    }
  });
}

/** Decodes what follows `length` tokens of all texts together, and adds to `swaps`. */
async function decode(
  model: OpenModel,
  texts: readonly Int32Array[],
  length: number,
  mode: FfnMode,
  swaps: Swaps = { made: 0, stopped: null },
) {
  const sequences = [...texts.keys()];
  model.engine.resetStats();
  const decodeSeconds = await timed(async () => {
    for (let at = length; at < texts[0]!.length; at++) await step(model, texts, { sequences, at, rows: 1, mode });
  });
  const { rows, bytes: sums, partSeconds, gpu } = model.engine.stats();
  swaps.made += gpu?.swaps ?? 0;
  swaps.stopped = gpu?.swapsStopped ?? null;
  const bytes = mapValues(sums, (sum) => sum / rows);
  const steps = texts[0]!.length - length;
  const rest = decodeSeconds - totalOf(partSeconds);
  const stepSeconds = mapValues({ ...partSeconds, rest }, (seconds) => seconds / steps);
  return { decodeSeconds, bytes, bytesPerToken: totalOf(bytes), stepSeconds, gpu: gpu ? gpuSpeed(gpu, rows) : null };
}

/** Bytes of the buffer whose bandwidth bounds a run: what a step reads if that stays in the last-level cache. */
async function bufferFor({ bytesPerToken }: Run, batch: number): Promise<number> {
  const cache = (await readCaches()).at(-1)?.size ?? 0;
  const bytes = bytesPerToken * batch;
  return bytes <= cache ? Math.ceil(bytes / 2 ** 20) * 2 ** 20 : MEMORY_BYTES;
}

function summarise(
  runs: Run[],
  what: Pick<Speed, "device" | "mode" | "context" | "batch">,
  tokens: number,
  bufferBytes: number,
  bandwidth: number,
): Speed {
  const { bytes, bytesPerToken, stepSeconds, gpu } = runs[0]!;
  const { context, batch } = what;
  const decodeTokensPerSecond = (batch * tokens) / median(runs.map((run) => run.decodeSeconds));
  const bytesPerSecond = bytesPerToken * decodeTokensPerSecond;
  const kind = bufferBytes === MEMORY_BYTES ? "memory" : "cache";
  return {
    ...what,
    prefillTokensPerSecond: context > 0 ? (batch * context) / median(runs.map((run) => run.prefillSeconds)) : null,
    decodeTokensPerSecond,
    bytes,
    bytesPerToken,
    stepSeconds: mapValues(stepSeconds, (_, part) => median(runs.map((run) => run.stepSeconds[part]))),
    bytesPerSecond,
    limit: { kind, bufferBytes, bytesPerSecond: bandwidth },
    share: bytesPerSecond / bandwidth,
    gpu,
  };
}

/** `count` texts of a prompt and `tokens` more in the model's own words: BOS, then sampled at temperature 0.8, never an end of text. */
async function sampleTexts(model: OpenModel, count: number, tokens: number, context: StageContext) {
  const { bosToken, eosTokens, maxPositions } = model.config;
  const logitBias = Float64Array.from(eosTokens.flatMap((token) => [token, -1e9]));
  const sampled = (seed: number): Choice => ({ ...NEUTRAL_CHOICE, temperature: 0.8, logitBias, seed });
  const length = Math.min(SAMPLED_PROMPT + tokens, maxPositions);
  const texts = Array.from({ length: count }, () => Int32Array.of(bosToken ?? 0, ...new Int32Array(length - 1)));
  const sequences = [...texts.keys()];
  for (let at = 0; at + 1 < length; at++) {
    context.signal.throwIfAborted();
    const next = await step(model, texts, { sequences, at, rows: 1, mode: model.defaultMode, choose: sampled });
    texts.forEach((text, i) => (text[at + 1] = next[i]!));
    context.progress({ label: "sample a text", done: at + 2, total: length, unit: "tokens" });
  }
  return texts;
}

/** The last `tokens` of a sampled text after `context` others: the end of its prompt, repeated where that is too short. */
function withContext(text: Int32Array, context: number, tokens: number): Int32Array {
  const prompt = text.subarray(0, text.length - tokens);
  const before = Int32Array.from({ length: context }, (_, i) => prompt.at((i - context) % prompt.length)!);
  return Int32Array.of(...before, ...text.subarray(prompt.length));
}

const steppers = new WeakMap<OpenModel, Stepper>();

/** Steps run as the runtime runs them. */
function stepperOf(model: OpenModel): Stepper {
  const stepper = steppers.get(model) ?? new Stepper(model.engine);
  steppers.set(model, stepper);
  return stepper;
}

/** Rows [at, at + rows) of some of the texts, of which `texts` lists all that have a place in the KV cache. */
interface Rows {
  sequences: readonly number[];
  at: number;
  rows: number;
  mode: FfnMode;
  /** They are part of a prompt. */
  prefill?: boolean;
  /** What to choose after the last row; default: greedily. */
  choose?: (sequence: number) => Choice;
}

/** Computes rows of one or more texts in one step and returns the token chosen after the last row of each. */
async function step(
  model: OpenModel,
  texts: readonly Int32Array[],
  { sequences, at, rows, mode, prefill: prompt, choose }: Rows,
) {
  const blocks = Math.ceil(Math.max(...texts.map((text) => text.length)) / KV_BLOCK);
  const each = sequences.flatMap((sequence) =>
    Array.from({ length: rows }, (_, i) => ({ sequence, position: at + i })),
  );
  const { tokens } = await stepperOf(model).step({
    tokens: Int32Array.from(each, ({ sequence, position }) => texts[sequence]![position]!),
    positions: Int32Array.from(each, ({ position }) => position),
    sequences: Int32Array.from(each, ({ sequence }) => sequence),
    blockTables: Int32Array.from({ length: texts.length * blocks }, (_, i) => i),
    blocksPerSequence: blocks,
    modes: new Uint8Array(each.length).fill(FFN_MODE[mode]),
    ...(prompt && { prefill: new Uint8Array(each.length).fill(1) }),
    outputs: Int32Array.from(sequences, (_, i) => (i + 1) * rows - 1),
    choose: sequences.map((sequence) => choose?.(sequence) ?? GREEDY_CHOICE),
  });
  return tokens!;
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
