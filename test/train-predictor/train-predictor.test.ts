/** The stage on a real engine: what it writes is calibrated, gated, and the same bytes every time. */
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parsePredictors } from "../../formats/predictors.ts";
import { heldoutPath, readHeldout, writeHeldout } from "../../io/profile-files.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors } from "../../io/safetensors-file.ts";
import { openModel } from "../../model/open.ts";
import { measureQuality, qualityTokens } from "../../model/quality.ts";
import { predictorSpecs } from "../../model/tensors.ts";
import { profile } from "../../profile/profile.ts";
import { predictorsPath, trainPredictors, type TrainPredictorOptions } from "../../train-predictor/train-predictor.ts";
import { TINY, writeTinyModel } from "../profile/tiny-model.ts";

/** Random weights have no structure to find: the ratio is what a recall of 0.9 happens to give, and nothing grows. */
const OPTIONS: TrainPredictorOptions = { recall: 0.9, maxPerplexityRatio: 1.05, epochs: 4, threads: 2 };

let dir: string;
let model: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-train-"));
  model = join(dir, "model");
  await writeTinyModel(model);
  const text = Array.from({ length: 400 }, (_, i) => `The ${i % 13} foxes of ${i * i} hills jump over dogs. `);
  await writeFile(join(dir, "prose.txt"), text.join(""));
  await profile(model, { corpus: [join(dir, "prose.txt")], window: 64, threads: 2 }, silentContext);
});
afterAll(() => rm(dir, { recursive: true }));

let copies = 0;
async function copy(): Promise<string> {
  const to = join(dir, `copy-${copies++}`);
  await cp(model, to, { recursive: true });
  return to;
}

const run = (where: string, options: TrainPredictorOptions = {}, context = silentContext) =>
  trainPredictors(where, { ...OPTIONS, ...options }, context);

describe("what is written", () => {
  test("fits the model, says what it is, and holds on held-out text what it promises", async () => {
    const where = await copy();
    const result = await run(where);
    const file = await readSafetensors(result.path);
    const { metrics, quality, provenance } = parsePredictors(file.metadata, result.path, TINY.nLayers);
    expect({ metrics, quality }).toEqual({ metrics: result.metrics, quality: result.quality });
    expect(provenance).toMatchObject({ stage: "train-predictor", options: { recall: 0.9, seed: 0 } });
    metrics.forEach(({ rank }, layer) => {
      for (const { name } of predictorSpecs(TINY, layer, rank)) expect(file.tensors.has(name), name).toBe(true);
    });
    expect(quality.perplexityRatio).toBeLessThanOrEqual(1.05);

    const { windows } = await readHeldout(heldoutPath(where));
    const opened = await openModel(where, { predictors: result.path, contextTokens: qualityTokens(64, 1) });
    try {
      const again = await measureQuality(opened, windows, "predictor", silentContext);
      expect(again).toMatchObject(quality);
      // Calibrated on held-out samples of the same text.
      expect(again.weightedRecall).toBeGreaterThan(0.87);
      expect(again.bytesPerToken).toBeGreaterThan(0);
    } finally {
      opened.close();
    }
    expect((await readdir(where)).filter((name) => name.startsWith("."))).toEqual([]);
  });

  test("is the same bytes again, whatever the threads; another seed gives others", async () => {
    const [a, b, c] = [await copy(), await copy(), await copy()];
    await run(a, { threads: 1 });
    await run(b, { threads: 3 });
    await run(c, { seed: 1 });
    const bytes = (where: string) => readFile(predictorsPath(where));
    expect((await bytes(a)).equals(await bytes(b))).toBe(true);
    expect((await bytes(a)).equals(await bytes(c))).toBe(false);
  });

  test("is left alone when it is up to date, made anew when told, and when options change", async () => {
    const where = await copy();
    const first = await run(where);
    expect(await run(where)).toEqual({ ...first, upToDate: true });
    expect((await run(where, { force: true })).upToDate).toBe(false);
    expect((await run(where, { seed: 2 })).upToDate).toBe(false);
  });

  test("is made anew when it is damaged", async () => {
    const where = await copy();
    await writeFile(predictorsPath(where), "not a file");
    expect((await run(where)).upToDate).toBe(false);
  });
});

test("the gate asks for fewer misses until the perplexity holds", async () => {
  const warnings: string[] = [];
  const context = { ...silentContext, warn: (message: string) => warnings.push(message) };
  const loose = await run(await copy(), { recall: 0.6, maxPerplexityRatio: 10, dtype: "q8_0" });
  const limit = 1 + (loose.quality.perplexityRatio - 1) / 4;
  const strict = await run(await copy(), { recall: 0.6, maxPerplexityRatio: limit, dtype: "q8_0" }, context);
  expect(strict.quality.perplexityRatio).toBeLessThanOrEqual(limit);
  expect(strict.quality.weightedRecall).toBeGreaterThan(loose.quality.weightedRecall);
  expect(warnings[0]).toMatch(/^perplexity ratio .* at weighted recall 0.60000, above/);
});

describe("refused", () => {
  const code = (expected: string) => expect.objectContaining({ code: expected }) as Error;

  test("a smooth activation", async () => {
    const where = join(dir, "smooth");
    await writeTinyModel(where, { config: { ...TINY, activation: { kind: "silu" } } });
    await expect(run(where)).rejects.toThrow(/silu is smooth/);
    await expect(run(where)).rejects.toThrow(code("E_SMOOTH"));
  });

  test("a model that was not profiled, or whose profile is of other weights", async () => {
    const where = join(dir, "other");
    await writeTinyModel(where, { seed: 2 });
    await expect(run(where)).rejects.toThrow(code("E_FILE"));
    await cp(join(model, "activations.arrow"), join(where, "activations.arrow"));
    await expect(run(where)).rejects.toThrow(code("E_MISMATCH"));
  });

  test("no held-out text", async () => {
    const where = await copy();
    const heldout = await readHeldout(heldoutPath(where));
    await writeHeldout(heldoutPath(where), { ...heldout, windows: [] });
    await expect(run(where)).rejects.toThrow(/expected held-out windows/);
  });

  test("a perplexity that cannot be held leaves nothing behind", async () => {
    const where = await copy();
    await expect(run(where, { maxPerplexityRatio: 1e-3 })).rejects.toThrow(code("E_QUALITY"));
    expect((await readdir(where)).filter((name) => name.includes("predictors"))).toEqual([]);
  });

  test("being interrupted leaves nothing behind", async () => {
    const where = await copy();
    const controller = new AbortController();
    const context = { ...silentContext, signal: controller.signal, progress: () => controller.abort() };
    await expect(run(where, {}, context)).rejects.toThrow(expect.objectContaining({ name: "AbortError" }));
    expect((await readdir(where)).filter((name) => name.includes("predictors"))).toEqual([]);
  });
});
