/** Predictors trained elsewhere: the norm folded into them, every layer in its place, calibrated and measured like our own. */
import fc from "fast-check";
import { cp, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parsePredictors } from "../../formats/predictors.ts";
import { sha256File } from "../../io/hash.ts";
import { heldoutPath, readHeldout } from "../../io/profile-files.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors } from "../../io/safetensors-file.ts";
import { openModel } from "../../model/open.ts";
import { measureQuality, qualityTokens } from "../../model/quality.ts";
import { profile } from "../../profile/profile.ts";
import { importPredictors, type ImportPredictorsOptions } from "../../train-predictor/import.ts";
import { foldNorm } from "../../train-predictor/published.ts";
import { f32Value, torchFile, torchTensor, type TorchValue } from "../formats/torch-bytes.ts";
import { TINY, writeTinyModel } from "../profile/tiny-model.ts";
import { oracle, writeOracle } from "./published.ts";

const FIXTURE = fileURLToPath(new URL("../fixtures/torch/predictor", import.meta.url));

/** Norm weights far from 1, some below 0. */
const vector = (_name: string, i: number): number => (i % 5 === 0 ? -1 : 1) * (0.2 + ((i * 7) % 11) / 4);

let dir: string;
/** Twelve layers, and no profile. */
let deep: string;
/** Two layers, and the profile of a text. */
let profiled: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-import-predictor-"));
  [deep, profiled] = [join(dir, "deep"), join(dir, "profiled")];
  await writeTinyModel(deep, { config: { ...TINY, nLayers: 12 }, vector });
  await writeOracle(deep, join(dir, "deep-oracle"));
  await writeTinyModel(profiled, { vector, seed: 2 }); // random weights, for which misses make the perplexity worse
  await writeOracle(profiled, join(dir, "oracle"));
  const text = Array.from({ length: 400 }, (_, i) => `The ${i % 13} foxes of ${i * i} hills jump over dogs. `);
  await writeFile(join(dir, "prose.txt"), text.join(""));
  await profile(profiled, { corpus: [join(dir, "prose.txt")], window: 64, threads: 2 }, silentContext);
});
afterAll(() => rm(dir, { recursive: true }));

let copies = 0;
async function copy(name: string): Promise<string> {
  const to = join(dir, `copy-${copies++}`);
  await cp(join(dir, name), to, { recursive: true });
  return to;
}

async function run(where: string, options: Partial<ImportPredictorsOptions> = {}) {
  const warnings: string[] = [];
  const context = { ...silentContext, warn: (message: string) => void warnings.push(message) };
  const result = await importPredictors(where, { import: join(dir, "oracle"), threads: 2, ...options }, context);
  return { ...result, warnings };
}
const refusal = (where: string, options: Partial<ImportPredictorsOptions> = {}) =>
  run(where, options).then(
    () => "imported",
    ({ code, message }: { code: string; message: string }) => `${code} ${message}`,
  );

test("folding the norm into fc1 divides all scores of a token by its rms, and nothing else", () => {
  const value = fc.double({ min: -4, max: 4, noNaN: true });
  const weight = fc.double({ min: 0.01, max: 3, noNaN: true }).chain((w) => fc.constantFrom(w, -w));
  const [dim, rank, neurons] = [6, 4, 5];
  const many = (n: number) => fc.array(value, { minLength: n, maxLength: n });
  fc.assert(
    fc.property(
      many(dim),
      fc.array(weight, { minLength: dim, maxLength: dim }),
      many(rank * dim),
      many(neurons * rank),
      (x, w, a, b) => {
        const norm = Float32Array.from(w);
        const fc1 = Float32Array.from(a);
        const { folded, unseen } = foldNorm(fc1, norm);
        const rms = Math.sqrt(x.reduce((sum, v) => sum + v * v, 0) / dim + 1e-5);
        const normed = x.map((v, i) => (v * norm[i]!) / rms);
        const scores = (first: Float32Array, input: readonly number[]) => {
          const dot = (row: number) => input.reduce((sum, v, i) => sum + first[row * dim + i]! * v, 0);
          const hidden = Array.from({ length: rank }, (_, row) => Math.max(0, dot(row)));
          return Array.from({ length: neurons }, (_, row) =>
            hidden.reduce((sum, h, i) => sum + b[row * rank + i]! * h, 0),
          );
        };
        expect(unseen).toBe(0);
        const size =
          Math.max(...a.map(Math.abs)) *
          Math.max(...b.map(Math.abs)) *
          x.reduce((sum, v) => sum + Math.abs(v), 0) *
          rank;
        const [before, after] = [scores(fc1, x), scores(folded, normed)];
        // One rounding to f32 an element of fc1.
        before.forEach((score, i) =>
          expect(Math.abs(score - rms * after[i]!)).toBeLessThanOrEqual(2 ** -23 * size + 1e-30),
        );
      },
    ),
  );
});

test("what does not pass the norm is left out and counted, unless nothing asks for it", () => {
  const norm = Float32Array.of(2, 0, 1e-6, -1);
  const { folded, unseen } = foldNorm(Float32Array.of(2, 2, 2, 2, 4, 0, 4, 4), norm);
  expect([...folded]).toEqual([1, 0, 0, -2, 2, 0, 0, -4]);
  expect(unseen).toBe(2);
  expect(foldNorm(Float32Array.of(1, 0, 0, 1), norm).unseen).toBe(0);
});

describe("without samples", () => {
  test("every layer gets its own predictor and the given threshold, measured on text of the model", async () => {
    const where = await copy("deep");
    const { path, metrics, quality, warnings } = await run(where, { import: join(dir, "deep-oracle"), dtype: "f16" });
    expect(warnings).toEqual([
      expect.stringMatching(/thresholds stay at 0, and quality is measured on text that the model samples/),
    ]);
    expect(metrics).toHaveLength(12);
    for (const { rank, threshold, recall, precision, trueSparsity, predictedSparsity } of metrics) {
      expect({ rank, threshold }).toEqual({ rank: 160, threshold: 0 }); // 150 filled up to whole blocks
      expect(recall).toBeGreaterThan(0.99);
      expect(precision).toBeGreaterThan(0.99);
      expect(Math.abs(trueSparsity - predictedSparsity)).toBeLessThan(0.01);
    }
    expect(quality.corpus.tokens).toBeGreaterThan(100);
    const { provenance } = parsePredictors((await readSafetensors(path)).metadata, path, 12);
    expect(provenance.options).toMatchObject({ imported: true, text: "own", dtype: "f16" });
    expect(provenance.inputs["predictor:10"]).toBe(await sha256File(join(dir, "deep-oracle", "model_10.pt")));
    expect(provenance.inputs["activations"]).toBeUndefined();
    expect((await readdir(where)).filter((name) => name.startsWith("."))).toEqual([]);
  });

  test("the bytes are the same again", async () => {
    const [a, b] = [await copy("deep"), await copy("deep")];
    const options = { import: join(dir, "deep-oracle") };
    const [first, second] = [await run(a, { ...options, threads: 1 }), await run(b, options)];
    expect(Buffer.compare(await readFile(first.path), await readFile(second.path))).toBe(0);
  });

  test("a threshold of another scale is refused, and so are predictors that cost too much", async () => {
    const folder = await writeOracle(deep, join(dir, "deep-thresholds"), { sparse_threshold: 0.01 });
    expect(await refusal(await copy("deep"), { import: folder })).toMatch(
      /E_IMPORT .*sparse_threshold 0\.01 is for scores before the norm.*expected samples to calibrate on, found none/,
    );
    const bare = join(dir, `bare-${copies++}`);
    await writeTinyModel(bare, { vector });
    expect(await refusal(bare, { import: FIXTURE, maxPerplexityRatio: 1 + 1e-9 })).toMatch(
      /E_QUALITY .*at threshold 0; pi profile/,
    );
    expect((await readdir(bare)).filter((name) => name.includes("predictors"))).toEqual([]);
  });
});

describe("with samples", () => {
  test("thresholds are calibrated, and quality is that of held-out text", async () => {
    const where = await copy("profiled");
    const { path, metrics, quality, warnings } = await run(where, { recall: 0.95, maxPerplexityRatio: 1.05 });
    expect(warnings).toEqual([]);
    for (const { rank, threshold, weightedRecall, precision, trueSparsity, predictedSparsity } of metrics) {
      expect(rank).toBe(160);
      expect(threshold).toBeGreaterThan(0); // an oracle may leave out what gives least
      expect(weightedRecall).toBeGreaterThanOrEqual(0.95 - 1e-6);
      expect(precision).toBeGreaterThan(0.97);
      expect(predictedSparsity).toBeGreaterThan(trueSparsity);
    }
    const { windows } = await readHeldout(heldoutPath(where));
    const opened = await openModel(where, { predictors: path, contextTokens: qualityTokens(64, 1) });
    try {
      expect(await measureQuality(opened, windows, "predictor", silentContext)).toMatchObject(quality);
    } finally {
      opened.close();
    }
    const { provenance } = parsePredictors((await readSafetensors(path)).metadata, path, 2);
    expect(provenance.options).toMatchObject({ text: "held-out", dtype: "q8_0" });
    expect(provenance.inputs["activations"]).toBe(await sha256File(join(where, "activations.arrow")));
  });

  test("the gate asks for fewer misses until the perplexity holds", async () => {
    const loose = await run(await copy("profiled"), { recall: 0.5, maxPerplexityRatio: 100 });
    const limit = 1 + (loose.quality.perplexityRatio - 1) / 4;
    const strict = await run(await copy("profiled"), { recall: 0.5, maxPerplexityRatio: limit });
    expect(strict.quality.perplexityRatio).toBeLessThanOrEqual(limit);
    expect(strict.quality.weightedRecall).toBeGreaterThan(loose.quality.weightedRecall);
    expect(strict.warnings[0]).toMatch(/^perplexity ratio .* at weighted recall 0\.50000, above/);
    expect(await refusal(await copy("profiled"), { recall: 0.5, maxPerplexityRatio: 1e-3 })).toMatch(
      /E_QUALITY .*at weighted recall/,
    );
  });

  test("a threshold of another scale is calibrated anew, and said so", async () => {
    const folder = await writeOracle(profiled, join(dir, "thresholds"), { sparse_threshold: 0.01, other: "key" });
    const { warnings, metrics } = await run(await copy("profiled"), { import: folder, maxPerplexityRatio: 2 });
    expect(warnings).toEqual([expect.stringMatching(/sparse_threshold 0\.01 .*: thresholds are calibrated anew/)]);
    expect(metrics.every(({ threshold }) => threshold !== 0.01)).toBe(true);
  });

  test("files of real torch, f32 and f16, of different ranks", async () => {
    const { metrics } = await run(await copy("profiled"), { import: FIXTURE, maxPerplexityRatio: 100 });
    expect(metrics.map(({ rank }) => rank)).toEqual([32, 32]);
    expect(metrics.every(({ weightedRecall }) => weightedRecall > 0.99)).toBe(true);
  });

  test("few rows may be asked for", async () => {
    const [all, few] = [await run(await copy("profiled")), await run(await copy("profiled"), { samples: 16 })];
    expect(few.metrics[0]!.trueSparsity).not.toBe(all.metrics[0]!.trueSparsity);
  });
});

test("nothing is done twice, and everything anew for other files, options or --force", async () => {
  const where = await copy("profiled");
  const folder = await copy("oracle");
  const again = async (options: Partial<ImportPredictorsOptions> = {}) =>
    (await run(where, { import: folder, ...options })).upToDate;
  expect([await again(), await again()]).toEqual([false, true]);
  expect(await again({ force: true })).toBe(false);
  expect(await again({ dtype: "f16" })).toBe(false);
  expect(await again({ dtype: "f16" })).toBe(true);
  await cp(join(folder, "model_0.pt"), join(folder, "model_1.pt"));
  expect(await again({ dtype: "f16", maxPerplexityRatio: 100 })).toBe(false);
});

test("inputs that the norm drops are left out with a warning", async () => {
  const where = join(dir, "dropping");
  await writeTinyModel(where, { vector: (name, i) => (name.includes("1.ffn_norm") && i < 3 ? 0 : 1) });
  const folder = await writeOracle(profiled, join(dir, "undropped"));
  const { warnings } = await run(where, { import: folder, maxPerplexityRatio: 100 });
  expect(warnings[1]).toMatch(/^layer 1: 3 of 32 inputs do not pass the norm/);
});

describe("refuses", () => {
  /** The oracle with its second layer changed. */
  async function changed(edit: (tensors: Record<string, TorchValue>) => void): Promise<string> {
    const folder = await copy("oracle");
    const tensors = await oracle(profiled, 1);
    edit(tensors);
    await writeFile(join(folder, "model_1.pt"), torchFile(tensors));
    return folder;
  }

  test.each<[string, (tensors: Record<string, TorchValue>) => void, RegExp]>([
    [
      "biases",
      (t) => (t["fc1.bias"] = f32Value([150], Array<number>(150).fill(1))),
      /model_1\.pt: expected fc1\.weight \[150,32\], fc2\.weight \[75,150\], found fc1\.bias/,
    ],
    ["a missing matrix", (t) => delete t["fc2.weight"], /expected .*, found fc1\.weight \[150,32\]$/],
    [
      "matrices of different ranks",
      (t) => (t["fc2.weight"] = f32Value([75, 2], Array<number>(150).fill(1))),
      /expected .*fc2\.weight \[75,150\], found .*fc2\.weight \[75,2\]/,
    ],
    [
      "another model's width",
      (t) => (t["fc1.weight"] = f32Value([150, 2], Array<number>(300).fill(1))),
      /expected fc1\.weight \[150,32\]/,
    ],
    [
      "integers",
      (t) => (t["fc1.weight"] = { dtype: "i32", shape: [150, 32], bytes: new Uint8Array(4 * 150 * 32) }),
      /fc1\.weight: expected F32, F16 or BF16, found I32/,
    ],
    [
      "what is not a number",
      (t) => new DataView(t["fc2.weight"]!.bytes.buffer).setFloat32(40, NaN, true),
      /fc2\.weight: expected numbers, found NaN at 10/,
    ],
  ])("%s", async (_name, edit, message) => {
    expect(await refusal(await copy("profiled"), { import: await changed(edit) })).toMatch(
      new RegExp(`^E_IMPORT .*${message.source}`),
    );
  });

  test("layers that are missing or too many, and single tensors", async () => {
    const folder = await copy("oracle");
    await writeFile(join(folder, "model_0.pt"), torchTensor(f32Value([1], [1])));
    expect(await refusal(profiled, { import: folder })).toMatch(
      /model_0\.pt: expected fc1\.weight \[rank,32\], .*found a tensor \[1\]/,
    );
    await rm(join(folder, "model_0.pt"));
    expect(await refusal(profiled, { import: folder })).toMatch(
      /model_0\.pt to model_1\.pt, .*found none for layer 0$/,
    );
    expect(await refusal(profiled, { import: join(dir, "deep-oracle") })).toMatch(
      /found more: layers 2, 3, 4, .* and 2 more$/,
    );
  });

  test("a model with layer norms, saying why", async () => {
    const where = join(dir, "layer-norm");
    await writeTinyModel(where, { config: { ...TINY, norm: "layer" } });
    expect(await refusal(where)).toMatch(
      /E_IMPORT .*read what comes before the norm, and .* has layer norms: the mean .* cannot be told/,
    );
  });

  test("a smooth model, an artifact's directory, a threshold that is no number", async () => {
    const where = join(dir, "smooth");
    await writeTinyModel(where, { config: { ...TINY, activation: { kind: "silu" } } });
    expect(await refusal(where)).toMatch(/^E_SMOOTH/);
    expect(await refusal(join(dir, "nowhere"))).toMatch(/^E_FILE/);
    const folder = await writeOracle(profiled, join(dir, "odd"), { sparse_threshold: "high" });
    expect(await refusal(profiled, { import: folder })).toMatch(/E_IMPORT .*sparse_threshold: expected a number/);
  });
});
