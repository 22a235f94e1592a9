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
import {
  predictorsPath,
  trainPredictors,
  type TrainPredictorOptions,
  type TrainPredictorResult,
} from "../../train-predictor/train-predictor.ts";
import { TINY, writeTinyModel } from "../profile/tiny-model.ts";
import { HARDWARE } from "./hardware.ts";

/** Random weights have no structure to find: the ratio is what a recall of 0.9 happens to give, and nothing grows. */
const OPTIONS: TrainPredictorOptions = {
  recall: 0.9,
  maxPerplexityRatio: 1.05,
  epochs: 4,
  threads: 2,
  hardware: HARDWARE,
};

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
    const result = await run(where, { kind: "mlp" });
    const file = await readSafetensors(result.path);
    const { metrics, quality, considered, provenance } = parsePredictors(file.metadata, result.path, TINY.nLayers);
    expect({ metrics, quality }).toEqual({ metrics: result.metrics, quality: result.quality });
    expect(considered).toEqual(result.considered);
    expect(provenance).toMatchObject({ stage: "train-predictor", options: { recall: 0.9, seed: 0 } });
    metrics.forEach(({ kind, rank, curve, weightedRecall }, layer) => {
      expect(curve!.length).toBeGreaterThan(8);
      expect(curve!.length).toBeLessThanOrEqual(16);
      for (const [i, point] of curve!.slice(1).entries()) {
        expect(point.weightedRecall).toBeGreaterThan(curve![i]!.weightedRecall);
        expect(point.predictedSparsity).toBeLessThanOrEqual(curve![i]!.predictedSparsity);
      }
      expect(weightedRecall).toBeGreaterThan(0.7);
      const names = predictorSpecs(TINY, layer, rank, kind).map(({ name }) => name);
      const stored = [...file.tensors.keys()].filter((name) => name.startsWith(`layers.${layer}.`));
      expect(stored).toEqual(names);
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

test("what was measured of this machine decides, is kept, and is not measured again", async () => {
  const where = await copy();
  const { hardware: _, ...measured } = { ...OPTIONS, kind: "sign" as const };
  const stop = new AbortController();
  // The first thing that is reported comes after the machine was measured.
  const context = { ...silentContext, signal: stop.signal, progress: () => stop.abort(new Error("enough")) };
  await expect(trainPredictors(where, measured, context)).rejects.toThrow("enough");
  const journal = (await readdir(where)).find((name) => name.endsWith(".journal"))!;
  const [entry] = (await readFile(join(where, journal), "utf8")).split("\n");
  const { key, measured: cpu } = JSON.parse(entry!) as { key: string; measured: unknown };
  expect(key).toBe("cpu");
  const first = await trainPredictors(where, measured, silentContext);
  const { metadata } = await readSafetensors(first.path);
  expect(parsePredictors(metadata, first.path, TINY.nLayers).cpu).toEqual(cpu);
  expect(await trainPredictors(where, measured, silentContext)).toEqual({ ...first, upToDate: true });
  expect((await trainPredictors(where, { ...measured, hardware: HARDWARE }, silentContext)).upToDate).toBe(false);
});

test("the gate asks for fewer misses until the perplexity holds", async () => {
  const warnings: string[] = [];
  const context = { ...silentContext, warn: (message: string) => warnings.push(message) };
  const loose = await run(await copy(), { recall: 0.6, maxPerplexityRatio: 10, dtype: "q8_0" });
  // With random weights it is chance which way the perplexity goes; either counts.
  const deviation = ({ quality }: TrainPredictorResult) => Math.abs(Math.log(quality.perplexityRatio));
  const limit = Math.exp(deviation(loose) / 4);
  const strict = await run(await copy(), { recall: 0.6, maxPerplexityRatio: limit, dtype: "q8_0" }, context);
  expect(deviation(strict)).toBeLessThanOrEqual(Math.log(limit));
  expect(strict.quality.weightedRecall).toBeGreaterThan(loose.quality.weightedRecall);
  expect(warnings[0]).toMatch(/^perplexity ratio .* at weighted recall .*: asking for fewer misses/);
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
});

describe("an interrupted run", () => {
  /** Every pass is kept, and the rows of a layer come in several chunks. */
  const SMALL = { saveSeconds: 0, memory: { chunkBytes: 1 << 16, heldoutBytes: 1 << 20 } };
  const left = async (where: string) =>
    (await readdir(where))
      .filter((name) => name.startsWith("."))
      .map((name) => name.replace(/[0-9a-f]{16}/, "ID"))
      .sort();

  /** Runs until progress was reported `times` times. */
  async function interrupted(where: string, times: number, options: TrainPredictorOptions = {}): Promise<string[]> {
    const controller = new AbortController();
    const labels: string[] = [];
    const progress = ({ label }: { label: string }) => {
      labels.push(label);
      if (labels.length === times) controller.abort();
    };
    const context = { ...silentContext, signal: controller.signal, progress };
    const call = run(where, { ...SMALL, ...options }, context);
    await expect(call).rejects.toThrow(expect.objectContaining({ name: "AbortError" }));
    return labels;
  }

  async function labelsOf(where: string, options: TrainPredictorOptions = {}): Promise<string[]> {
    const labels: string[] = [];
    const context = { ...silentContext, progress: ({ label }: { label: string }) => void labels.push(label) };
    await run(where, { ...SMALL, ...options }, context);
    return labels;
  }

  let expected: Buffer;
  let whole: string[];
  beforeAll(async () => {
    const where = await copy();
    whole = await labelsOf(where);
    expected = await readFile(predictorsPath(where));
    expect(await left(where)).toEqual([]);
  });

  test.each([0.02, 0.3, 0.55, 0.8, 0.97])(
    "goes on after %d of its steps and ends with the same bytes",
    async (share) => {
      const where = await copy();
      const before = await interrupted(where, Math.ceil(share * whole.length));
      const names = [".train-predictor-ID.journal", ".train-predictor-ID.partial", ".train-predictor-ID.state"];
      expect(names).toEqual(expect.arrayContaining(await left(where)));
      const after = await labelsOf(where);
      expect((await readFile(predictorsPath(where))).equals(expected)).toBe(true);
      expect(await left(where)).toEqual([]);
      // What was finished is not done again: a pass or a measurement at most, and what stopped in its middle.
      expect(before.length + after.length).toBeLessThan(whole.length + 60);
      if (share > 0.5) expect(after.length).toBeLessThan(whole.length);
    },
  );

  test("goes on in the middle of a training", async () => {
    const where = await copy();
    const last = whole.findLast((label) => label.includes(", rank"))!;
    const steps = [...whole.keys()].filter((i) => whole[i] === last);
    await interrupted(where, steps[Math.floor(0.6 * steps.length)]! + 1);
    expect(await left(where)).toContain(".train-predictor-ID.state");
    const after = await labelsOf(where);
    expect(after.filter((label) => label.includes("trying"))).toEqual([]);
    expect((await readFile(predictorsPath(where))).equals(expected)).toBe(true);
  });

  test("belongs to the same options, and is forgotten when told", async () => {
    const where = await copy();
    await interrupted(where, whole.length - 2);
    const others = await labelsOf(where, { seed: 5, force: true });
    expect(others.length).toBeGreaterThan(whole.length / 2);
    expect(await left(where)).toEqual([]);

    const forced = await copy();
    await interrupted(forced, whole.length - 2);
    expect(await labelsOf(forced, { force: true })).toEqual(whole);
  });

  test("that a damaged layer stopped keeps the layers before it, and nothing when there were none", async () => {
    const where = await copy();
    const samples = (layer: number) => join(where, "samples", `layer-00${layer}.arrow`);
    const rows = await readFile(samples(1));
    await writeFile(samples(1), rows.subarray(0, 1000));
    await expect(run(where, SMALL)).rejects.toThrow(expect.objectContaining({ code: "E_ARROW" }));
    expect(await left(where)).toEqual([".train-predictor-ID.journal", ".train-predictor-ID.partial"]);
    await writeFile(samples(1), rows);
    const first = (labels: string[]) => labels.slice(0, 5).map((label) => /layer \d/.exec(label)![0]);
    expect(first(whole)).toEqual(Array(5).fill("layer 0"));
    expect(first(await labelsOf(where))).toEqual(Array(5).fill("layer 1"));
    expect((await readFile(predictorsPath(where))).equals(expected)).toBe(true);

    const other = await copy();
    await writeFile(join(other, "samples", "layer-000.arrow"), rows.subarray(0, 1000));
    await expect(run(other, SMALL)).rejects.toThrow(expect.objectContaining({ code: "E_ARROW" }));
    expect(await left(other)).toEqual([]);
  });

  test("whose journal was cut in the middle of a line does the rest again", async () => {
    const where = await copy();
    await interrupted(where, Math.ceil(0.6 * whole.length));
    const name = (await readdir(where)).find((file) => file.endsWith(".journal"))!;
    const journal = await readFile(join(where, name));
    await writeFile(join(where, name), journal.subarray(0, Math.floor(0.7 * journal.length)));
    await labelsOf(where);
    expect((await readFile(predictorsPath(where))).equals(expected)).toBe(true);
  });
});

describe("text from elsewhere", () => {
  const elsewhere = () => [Int32Array.from({ length: 40 }, (_, i) => (7 * i + 3) % TINY.vocabSize)];

  test("is measured on as well, without training again", async () => {
    const where = await copy();
    const alone = await run(where);
    expect(alone.quality.crossCorpus).toBeUndefined();
    const labels: string[] = [];
    const context = { ...silentContext, progress: ({ label }: { label: string }) => void labels.push(label) };
    const both = await run(where, { crossCorpus: elsewhere() }, context);
    expect(labels.filter((label) => /^(train|fit)/.test(label))).toEqual([]);
    expect(both.metrics).toEqual(alone.metrics);
    const { crossCorpus, ...quality } = both.quality;
    expect(quality).toEqual(alone.quality);
    expect(crossCorpus!.corpus.tokens).toBe(39);
    expect(crossCorpus!.corpus.sha256).not.toBe(quality.corpus.sha256);
    expect(await run(where, { crossCorpus: elsewhere() })).toEqual({ ...both, upToDate: true });
    // Nor is it lost when nobody asks for it.
    expect((await run(where)).quality).toEqual(both.quality);
  });

  test("gives the same file, measured at once or later", async () => {
    const [once, later] = [await copy(), await copy()];
    await run(once, { crossCorpus: elsewhere() });
    await run(later);
    await run(later, { crossCorpus: elsewhere() });
    expect((await readFile(predictorsPath(once))).equals(await readFile(predictorsPath(later)))).toBe(true);
  });
});
