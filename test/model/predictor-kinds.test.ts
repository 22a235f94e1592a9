/** Predictors of every kind in the engine, on a random model: what they let pass is what their scores say. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { PREDICTOR_KINDS, type PredictorKind } from "../../formats/predictors.ts";
import { silentContext } from "../../io/progress.ts";
import { forcedStep } from "../../model/forced-logits.ts";
import { openModel, type OpenModel } from "../../model/open.ts";
import { measureQuality, qualityTokens } from "../../model/quality.ts";
import { FFN_MODE, KV_BLOCK, native } from "../../native/index.ts";
import { TINY, writeTinyModel } from "../profile/tiny-model.ts";
import { randomPredictor, writeRandomPredictors } from "./random-predictors.ts";

const ROWS = 40;
const RANK = 16;
const EVERYTHING = -1e30;
const tokens = Int32Array.from({ length: ROWS }, (_, i) => (i === 0 ? 0 : (i * 37) % TINY.vocabSize));

describe.each(PREDICTOR_KINDS)("%s", (kind: PredictorKind) => {
  let dir: string;
  let model: OpenModel;
  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "pi-kinds-"));
    await writeTinyModel(dir);
    // The other layer shows that kinds mix.
    const predictors = await writeRandomPredictors(dir, RANK, [kind, "svd"]);
    model = await openModel(dir, { predictors, threads: 2, contextTokens: qualityTokens(ROWS, 1) });
  });
  afterAll(async () => {
    model.close();
    await rm(dir, { recursive: true });
  });
  const measure = () => measureQuality(model, [tokens], "predictor", silentContext);

  test("is dense, bit for bit, where everything passes", async () => {
    model.engine.setThresholds(Float32Array.of(EVERYTHING, EVERYTHING));
    expect(await measure()).toMatchObject({ perplexityRatio: 1, meanKl: 0, p99Kl: 0, weightedRecall: 1 });
  });

  test("does not depend on the threads, nor on who is beside it", async () => {
    model.engine.setThresholds(Float32Array.of(0.1, EVERYTHING));
    const step = (rows: number) =>
      model.engine.step({
        ...forcedStep(tokens, 0, rows, "predictor", qualityTokens(ROWS, 1) / KV_BLOCK, 0),
        outputs: Int32Array.of(rows - 1, 0),
        returnLogits: true,
      });
    const many = await step(ROWS);
    model.engine.setThreads(1);
    expect(await step(ROWS)).toEqual(many);
    model.engine.setThreads(3);
    expect(await step(ROWS)).toEqual(many);
    const first = (await step(1)).logits!.subarray(0, TINY.vocabSize);
    expect(first).toEqual(many.logits!.subarray(TINY.vocabSize));
  });

  test("leaves rows beside it that are exact what dense rows are, bit for bit", async () => {
    model.engine.setThresholds(Float32Array.of(0.1, EVERYTHING));
    const together = async (...modes: (keyof typeof FFN_MODE)[]) => {
      const rows = Int32Array.from(modes, (_, i) => i);
      const { logits } = await model.engine.step({
        tokens: new Int32Array(modes.length).fill(7),
        positions: new Int32Array(modes.length),
        sequences: rows,
        blockTables: rows,
        blocksPerSequence: 1,
        modes: Uint8Array.from(modes, (mode) => FFN_MODE[mode]),
        outputs: rows,
        returnLogits: true,
      });
      return modes.map((_, i) => logits!.slice(i * TINY.vocabSize, (i + 1) * TINY.vocabSize));
    };
    const [dense] = await together("dense");
    for (const row of await together("exact", "exact", "exact")) expect(row).toEqual(dense);
    const [first, predicted, last] = await together("exact", "predictor", "exact");
    expect([first, last]).toEqual([dense, dense]);
    expect(predicted).toEqual((await together("predictor"))[0]);
  });

  test("lets pass exactly the neurons whose score reaches the threshold, and reads what they weigh", async () => {
    const blocks = qualityTokens(ROWS, 1) / KV_BLOCK;
    const sampled = Int32Array.from({ length: ROWS }, (_, i) => i);
    const dense = await model.engine.step({ ...forcedStep(tokens, 0, ROWS, "dense", blocks, 0), sampleRows: sampled });
    const tensors = randomPredictor(TINY, kind, RANK, 9);
    const exact = kind === "exact";
    const scores = exact
      ? new Float32Array()
      : await native().predictorScores(tensors, dense.hidden!.subarray(0, ROWS * TINY.dim), sampled, {
          ...TINY,
          threads: 1,
        });
    const threshold = exact ? 0 : widestGap(scores);
    model.engine.setThresholds(Float32Array.of(threshold, EVERYTHING));
    model.engine.resetStats();
    await model.engine.step(forcedStep(tokens, 0, ROWS, "predictor", blocks, 0));
    const { layers, bytes } = model.engine.stats();
    const { active, predicted } = layers[0]!;
    if (exact) {
      const firing = dense.contributions!.subarray(0, ROWS * TINY.nNeurons).filter((c) => c > 0).length;
      expect(active).toBe(firing);
    } else {
      expect(predicted).toBe(scores.filter((score) => score >= threshold).length);
      expect(predicted).toBeGreaterThan(0);
      expect(predicted).toBeLessThan(ROWS * TINY.nNeurons);
    }
    const matrices = (parts: typeof tensors) =>
      parts.reduce((sum, { shape, bytes: { length } }) => sum + (shape.length > 1 ? length : 0), 0);
    expect(bytes.predictor).toBe(ROWS * (matrices(tensors) + matrices(randomPredictor(TINY, "svd", RANK, 10))));
  });
});

/** The middle of the widest gap between scores near their median: samples are rounded to f16, the engine's inputs are not. */
function widestGap(scores: Float32Array): number {
  const sorted = scores.slice().sort();
  let best = Math.floor(sorted.length / 3);
  for (let i = best; i < (2 * sorted.length) / 3; i++) {
    if (sorted[i + 1]! - sorted[i]! > sorted[best + 1]! - sorted[best]!) best = i;
  }
  return (sorted[best]! + sorted[best + 1]!) / 2;
}
