import type { QualityReport } from "../formats/predictors.ts";
import type { StageContext } from "../io/progress.ts";
import { sha256 } from "../io/hash.ts";
import { KV_BLOCK, native, type EngineStats, type FfnMode } from "../native/index.ts";
import { forcedLogits, forcedStep, kvTokensFor, type LogitChunk } from "./forced-logits.ts";
import type { OpenModel } from "./open.ts";

export type { QualityReport } from "../formats/predictors.ts";

/** One mode against dense, and what a decoded token reads: weights and KV cache, in bytes. */
export type ModeQuality = Omit<QualityReport, "corpus" | "perplexityDense"> & { bytesPerToken: number };

export interface Comparison {
  corpus: QualityReport["corpus"];
  perplexityDense: number;
  bytesPerTokenDense: number;
  modes: Map<FfnMode, ModeQuality>;
}

/** KV capacity in tokens that {@link compareModes} needs for `modes` modes and windows of `window` tokens. */
export function qualityTokens(window: number, modes: number): number {
  return kvTokensFor(window, 1 + modes);
}

/**
 * Runs every window densely and in each mode, teacher forced, every row computed as a decoded token would be (sparse
 * rows everywhere), and compares the logits at all positions that have a next token. Memory is bounded by a chunk of
 * logits a mode. Costs one dense pass and one sparse pass a mode, and the true activations of every sparse row. A GPU does not
 * compute those: of a model that has a part there the weighted recall is NaN.
 */
export async function compareModes(
  model: OpenModel,
  windows: readonly Int32Array[],
  modes: readonly FfnMode[],
  context: StageContext,
): Promise<Comparison> {
  const window = Math.max(0, ...windows.map((tokens) => tokens.length));
  const tallies = new Map(modes.map((mode) => [mode, new Tally(model.config.nLayers)]));
  const total = windows.reduce((sum, tokens) => sum + tokens.length, 0);
  let done = 0;
  const tracked = !model.device.gpu;
  model.engine.setRecallTracking(tracked);
  try {
    for (const tokens of windows) {
      await compareWindow(model, tokens, window, tallies, context.signal);
      done += tokens.length;
      context.progress({ label: `compare ${modes.join(", ")} with dense`, done, total, unit: "tokens" });
    }
  } finally {
    model.engine.setRecallTracking(false);
  }
  const qualities = new Map<FfnMode, ModeQuality>();
  for (const [mode, tally] of tallies) {
    const quality = tally.quality();
    const weightedRecall = tracked ? quality.weightedRecall : NaN;
    qualities.set(mode, { ...quality, weightedRecall, bytesPerToken: await bytesPerToken(model, windows, mode) });
  }
  const first = tallies.values().next().value;
  return {
    corpus: { sha256: hashTokens(windows), tokens: first?.tokens ?? 0 },
    perplexityDense: first?.perplexityDense ?? NaN,
    bytesPerTokenDense: await bytesPerToken(model, windows, "dense"),
    modes: qualities,
  };
}

/** {@link compareModes} of a single mode. */
export async function measureQuality(
  model: OpenModel,
  windows: readonly Int32Array[],
  mode: FfnMode,
  context: StageContext,
): Promise<QualityReport & { bytesPerToken: number; bytesPerTokenDense: number }> {
  const { modes, ...dense } = await compareModes(model, windows, [mode], context);
  return { ...dense, ...modes.get(mode)! };
}

/** Advances dense and all modes chunk by chunk, so that no more than one chunk of logits each is in memory. */
async function compareWindow(
  model: OpenModel,
  tokens: Int32Array,
  window: number,
  tallies: Map<FfnMode, Tally>,
  signal: AbortSignal,
): Promise<void> {
  const runs = [...tallies].map(([mode, tally], i) => ({
    tally,
    run: forcedLogits(model, tokens, mode, i + 1, window),
  }));
  for await (const dense of forcedLogits(model, tokens, "dense", 0, window)) {
    for (const { tally, run } of runs) {
      signal.throwIfAborted();
      model.engine.resetStats();
      const chunk = (await run.next()).value as LogitChunk;
      tally.addRecall(model.engine.stats());
      await tally.addLogits(dense, chunk, tokens, model.config.vocabSize);
    }
  }
}

/** Sums of one mode over all scored positions. */
class Tally {
  tokens = 0;
  #nllDense = 0;
  #nll = 0;
  #sameTop = 0;
  readonly #kl: number[] = [];
  readonly #recall: { rows: number; weighted: number }[];

  constructor(nLayers: number) {
    this.#recall = Array.from({ length: nLayers }, () => ({ rows: 0, weighted: 0 }));
  }

  get perplexityDense(): number {
    return Math.exp(this.#nllDense / this.tokens);
  }

  /** The last token of the window predicts nothing that is known, and is not scored. */
  async addLogits(dense: LogitChunk, chunk: LogitChunk, tokens: Int32Array, vocab: number): Promise<void> {
    const targets = tokens.subarray(dense.start + 1, dense.start + dense.rows + 1);
    const scored = (logits: Float32Array) => logits.subarray(0, targets.length * vocab);
    const result = await native().compareLogits(scored(dense.logits), scored(chunk.logits), targets, vocab);
    for (let i = 0; i < targets.length; i++) {
      this.#nllDense += result.nllReference[i]!;
      this.#nll += result.nllTest[i]!;
      this.#sameTop += result.sameTop[i]!;
      this.#kl.push(result.kl[i]!);
    }
    this.tokens += targets.length;
  }

  addRecall({ layers }: EngineStats): void {
    this.#recall.forEach((sum, layer) => {
      sum.rows += layers[layer]!.rows;
      sum.weighted += layers[layer]!.weightedRecall;
    });
  }

  /** Recall is the mean over layers; a layer that ran no sparse row missed nothing. */
  quality(): Omit<ModeQuality, "bytesPerToken"> {
    const recalls = this.#recall.map(({ rows, weighted }) => (rows > 0 ? weighted / rows : 1));
    const perplexity = Math.exp(this.#nll / this.tokens);
    const kl = Float64Array.from(this.#kl).sort();
    return {
      perplexity,
      perplexityRatio: perplexity / this.perplexityDense,
      meanKl: kl.reduce((a, b) => a + b, 0) / this.tokens,
      p99Kl: kl[Math.ceil(0.99 * kl.length) - 1] ?? NaN,
      top1Agreement: this.#sameTop / this.tokens,
      weightedRecall: recalls.reduce((a, b) => a + b, 0) / recalls.length,
    };
  }
}

/** Windows and tokens of each that {@link bytesPerToken} decodes. */
const DECODED_WINDOWS = 8;
const DECODED_TOKENS = 16;

/** Bytes that decoding one token in `mode` reads, mean over tokens in the middle of some windows. */
async function bytesPerToken(model: OpenModel, windows: readonly Int32Array[], mode: FfnMode): Promise<number> {
  const { engine } = model;
  let bytes = 0;
  let rows = 0;
  for (const tokens of windows.slice(0, DECODED_WINDOWS)) {
    const blocks = kvTokensFor(tokens.length, 1) / KV_BLOCK;
    const prompt = Math.floor(tokens.length / 2);
    if (prompt > 0) await engine.step(forcedStep(tokens, 0, prompt, "dense", blocks, 0));
    engine.resetStats();
    for (let at = prompt; at < Math.min(tokens.length, prompt + DECODED_TOKENS); at++) {
      await engine.step({ ...forcedStep(tokens, at, 1, mode, blocks, 0), outputs: Int32Array.of(0) });
    }
    const { bytes: host, gpu, rows: computed } = engine.stats();
    bytes += [...Object.values(host), ...Object.values(gpu?.bytes ?? {})].reduce((a, b) => a + b, 0);
    rows += computed;
  }
  return bytes / rows;
}

/** sha256 of all windows' tokens as i32. */
export function hashTokens(windows: readonly Int32Array[]): string {
  return sha256(
    Buffer.concat(windows.map((tokens) => new Uint8Array(tokens.buffer, tokens.byteOffset, tokens.byteLength))),
  );
}
