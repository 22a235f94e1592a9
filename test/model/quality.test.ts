/** Quality of a mode against dense, on a random model and a real engine. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { silentContext } from "../../io/progress.ts";
import { forcedLogits, kvTokensFor } from "../../model/forced-logits.ts";
import { checkMode, sparseModes } from "../../model/modes.ts";
import { openModel, type OpenModel } from "../../model/open.ts";
import { compareModes, measureQuality, qualityTokens } from "../../model/quality.ts";
import type { FfnMode } from "../../native/index.ts";
import { TINY, writeTinyModel } from "../profile/tiny-model.ts";
import { writeRandomPredictors } from "./random-predictors.ts";

const WINDOW = 40;
const RANK = 32;
const EVERYTHING = -1e30;

let dir: string;
let model: OpenModel;

const windows = [WINDOW, 17, 2, WINDOW].map((length, w) =>
  Int32Array.from({ length }, (_, i) => (i === 0 ? 0 : (i * 37 + w * 101) % TINY.vocabSize)),
);
const scored = windows.reduce((sum, tokens) => sum + tokens.length - 1, 0);

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-quality-"));
  await writeTinyModel(dir);
  const predictors = await writeRandomPredictors(dir, RANK);
  model = await openModel(dir, { predictors, threads: 2, contextTokens: qualityTokens(WINDOW, 2) });
});
afterAll(async () => {
  model.close();
  await rm(dir, { recursive: true });
});

const setThresholds = (threshold: number) => model.engine.setThresholds(new Float32Array(TINY.nLayers).fill(threshold));
const measure = (mode: FfnMode) => measureQuality(model, windows, mode, silentContext);

test("exact is dense: no divergence at all, fewer bytes", async () => {
  const quality = await measure("exact");
  expect(quality).toMatchObject({ perplexityRatio: 1, meanKl: 0, p99Kl: 0, top1Agreement: 1, weightedRecall: 1 });
  expect(quality.bytesPerToken).toBeLessThan(quality.bytesPerTokenDense);
  expect(quality.corpus.tokens).toBe(scored);
});

test("a predictor that lets everything pass is dense", async () => {
  setThresholds(EVERYTHING);
  const quality = await measure("predictor");
  expect(quality).toMatchObject({ perplexityRatio: 1, meanKl: 0, p99Kl: 0, top1Agreement: 1, weightedRecall: 1 });
});

test("a predictor that misses costs quality, and saves bytes", async () => {
  setThresholds(0);
  const quality = await measure("predictor");
  expect(quality.meanKl).toBeGreaterThan(0);
  expect(quality.p99Kl).toBeGreaterThan(quality.meanKl);
  expect(quality.weightedRecall).toBeGreaterThan(0.2);
  expect(quality.weightedRecall).toBeLessThan(0.8);
  expect(quality.perplexityRatio).toBeCloseTo(quality.perplexity / quality.perplexityDense, 12);
  const exact = await measure("exact");
  expect(quality.perplexityDense).toBe(exact.perplexityDense);
  // Reading the predictor costs more than it saves in a layer of 75 neurons; the neurons alone are what must shrink.
  const predictor = TINY.nLayers * RANK * (TINY.dim + TINY.nNeurons) * 4;
  expect(quality.bytesPerToken - predictor).toBeLessThan(exact.bytesPerToken);
});

test("the numbers are those of the naive formulas on the engine's own log probabilities", async () => {
  setThresholds(0);
  const { vocabSize } = TINY;
  const all: { dense: number[]; other: number[]; target: number }[] = [];
  for (const tokens of windows) {
    const dense = await collect(tokens, "dense", 0);
    const other = await collect(tokens, "predictor", 1);
    for (let i = 0; i + 1 < tokens.length; i++) {
      const row = (logits: number[]) => logSoftmax(logits.slice(i * vocabSize, (i + 1) * vocabSize));
      all.push({ dense: row(dense), other: row(other), target: tokens[i + 1]! });
    }
  }
  const mean = (values: number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const kl = all.map(({ dense, other }) => dense.reduce((sum, p, i) => sum + Math.exp(p) * (p - other[i]!), 0));
  const quality = await measure("predictor");
  expect(quality.perplexity).toBeCloseTo(Math.exp(-mean(all.map(({ other, target }) => other[target]!))), 3);
  expect(quality.perplexityDense).toBeCloseTo(Math.exp(-mean(all.map(({ dense, target }) => dense[target]!))), 3);
  expect(quality.meanKl).toBeCloseTo(mean(kl), 5);
  expect(quality.p99Kl).toBeCloseTo(kl.toSorted((a, b) => a - b)[Math.ceil(0.99 * kl.length) - 1]!, 5);
});

async function collect(tokens: Int32Array, mode: FfnMode, slot: number): Promise<number[]> {
  const logits: number[] = [];
  for await (const chunk of forcedLogits(model, tokens, mode, slot, WINDOW)) logits.push(...chunk.logits);
  return logits;
}

function logSoftmax(logits: number[]): number[] {
  const high = Math.max(...logits);
  const total = Math.log(logits.reduce((sum, x) => sum + Math.exp(x - high), 0));
  return logits.map((x) => x - high - total);
}

test("several modes at once give what each gives alone", async () => {
  setThresholds(0);
  const both = await compareModes(model, windows, ["exact", "predictor"], silentContext);
  for (const mode of ["exact", "predictor"] as const) {
    const { perplexityDense, bytesPerTokenDense, corpus, ...alone } = await measure(mode);
    expect(both.modes.get(mode)).toEqual(alone);
    expect(both).toMatchObject({ perplexityDense, bytesPerTokenDense, corpus });
  }
});

test("dense reads every weight but the untouched embeddings once a token, and the KV cache up to it", async () => {
  const { bytesPerTokenDense } = await measureQuality(model, [windows[0]!], "exact", silentContext);
  const { dim, nNeurons, nHeads, nKvHeads, headDim, nLayers, vocabSize } = TINY;
  const attention = dim * headDim * (2 * nHeads + 2 * nKvHeads);
  const weights = 4 * (vocabSize * dim + dim + nLayers * (attention + 3 * nNeurons * dim));
  // Tokens 20 to 35 of 40, f32 keys and values.
  const kv = nLayers * 2 * nKvHeads * headDim * 4 * (20 + 1 + 7.5);
  expect(bytesPerTokenDense).toBeCloseTo(weights + kv, 6);
});

describe("refused", () => {
  test("a sequence that does not fit in the cache or in the checkpoint's context", async () => {
    const run = (length: number, slot: number) => forcedLogits(model, new Int32Array(length), "dense", slot).next();
    await expect(run(257, 0)).rejects.toThrow("expected at most 256 tokens");
    await expect(run(64, 4)).rejects.toThrow(`${kvTokensFor(64, 5)} are needed`);
  });

  test("a mode that the model cannot run in", async () => {
    const plain = await openModel(dir, { threads: 1 });
    expect(() => checkMode(plain, "predictor")).toThrow("has none; make them with pi train-predictor");
    expect(sparseModes(plain)).toEqual(["exact"]);
    plain.close();
    const smooth = join(dir, "smooth");
    await writeTinyModel(smooth, { config: { ...TINY, activation: { kind: "silu" } } });
    const dense = await openModel(smooth, { threads: 1 });
    expect(() => checkMode(dense, "exact")).toThrow("needs a ReLU-like activation, this model has silu");
    expect(sparseModes(dense)).toEqual([]);
    dense.close();
    expect(sparseModes(model)).toEqual(["exact", "predictor"]);
  });

  test("going on after an abort; the model can be measured again", async () => {
    const controller = new AbortController();
    const context = { ...silentContext, signal: controller.signal, progress: () => controller.abort() };
    await expect(measureQuality(model, windows, "exact", context)).rejects.toThrow(
      expect.objectContaining({ name: "AbortError" }),
    );
    expect((await measure("exact")).perplexityRatio).toBe(1);
  });
});
