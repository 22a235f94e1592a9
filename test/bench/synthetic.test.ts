import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { writePlantedPredictors } from "../../bench/synthetic-predictors.ts";
import { frequencies, Noise, normalQuantile } from "../../bench/synthetic-random.ts";
import { BLOCK, writeCheckpoint, type SyntheticShape } from "../../bench/synthetic.ts";
import { convert } from "../../convert/convert.ts";
import type { WeightDType } from "../../formats/dtypes.ts";
import { parsePredictors } from "../../formats/predictors.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors, readTensorBytes } from "../../io/safetensors-file.ts";
import { openModel } from "../../model/open.ts";
import { loadTokenizer } from "../../model/tokenizer.ts";

const SMALL: SyntheticShape = {
  family: "llama",
  dim: 256,
  nNeurons: 512,
  nLayers: 3,
  nHeads: 4,
  nKvHeads: 2,
  vocabSize: 2000,
  active: 0.1,
  skew: 1,
};

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-synthetic-"));
});
afterAll(() => rm(dir, { recursive: true }));

const weightsOf = async (folder: string): Promise<Buffer> => readFile(join(folder, "model.safetensors"));

async function converted(name: string, changes: Partial<SyntheticShape>, dtype: WeightDType): Promise<string> {
  const [source, output] = [join(dir, `${name}-source`), join(dir, name)];
  await writeCheckpoint(source, { ...SMALL, ...changes });
  await convert({ source, output, dtype }, silentContext);
  return output;
}

describe("planted models", () => {
  const CASES: [string, Partial<SyntheticShape>, WeightDType][] = [
    ["llama in f16", {}, "f16"],
    ["llama in q4_0", { active: 0.2, skew: 0.5 }, "q4_0"],
    ["opt in q8_0", { family: "opt", nKvHeads: 4, active: 0.04 }, "q8_0"],
  ];
  test.each(CASES)("fire for the share asked for, and predictably: %s", async (name, changes, dtype) => {
    const model = await converted(name, changes, dtype);
    const { path, metrics, quality } = await writePlantedPredictors(model, "q8_0", silentContext);
    expect(metrics).toHaveLength(SMALL.nLayers);
    const active = changes.active ?? SMALL.active;
    for (const { recall, trueSparsity, predictedSparsity } of metrics) {
      expect(Math.abs(1 - trueSparsity - active)).toBeLessThan(0.02);
      expect(recall).toBeGreaterThan(0.99);
      expect(1 - predictedSparsity).toBeLessThan(1.5 * active);
    }
    // What is left is the head's sketch in predictor mode, which shows most where logits are as flat as random ones.
    expect(Math.abs(quality.perplexityRatio - 1)).toBeLessThan(0.01);
    const file = await readSafetensors(path);
    expect(parsePredictors(file.metadata, path, SMALL.nLayers).metrics).toEqual(metrics);
    const opened = await openModel(model, { predictors: path, contextTokens: 32 });
    expect(opened.defaultMode).toBe("predictor");
    opened.close();
  });

  test("have a tokenizer that knows every byte and names every token", async () => {
    const folder = join(dir, "llama in f16");
    const tokenizer = await loadTokenizer(
      (name) => readFile(join(folder, name), "utf8").catch(() => undefined),
      folder,
    );
    expect(tokenizer.vocabSize).toBe(SMALL.vocabSize);
    const text = "Zwölf Boxkämpfer\n\u0000 jagen 🦊!";
    const ids = tokenizer.encode(text);
    expect(ids).toHaveLength(1 + Buffer.byteLength(text));
    expect(tokenizer.decode(ids)).toBe(text);
    expect(tokenizer.tokenText(SMALL.vocabSize - 1)).not.toBe("");
  });
});

describe("writeCheckpoint", () => {
  test("writes the same bytes for the same seed, and others for another", async () => {
    const folders = ["a", "b", "c"].map((name) => join(dir, name));
    const shape = { ...SMALL, nLayers: 1 };
    for (const [i, folder] of folders.entries()) await writeCheckpoint(folder, shape, { seed: i === 2 ? 8 : 7 });
    const [a, b, c] = await Promise.all(folders.map(weightsOf));
    expect(a!.equals(b!)).toBe(true);
    expect(a!.equals(c!)).toBe(false);
  });

  test("keeps the constant channels constant and makes no two rows alike", async () => {
    const folder = join(dir, "f32");
    const bytes = await writeCheckpoint(folder, { ...SMALL, nLayers: 1 }, { dtype: "f32" });
    const file = await readSafetensors(join(folder, "model.safetensors"));
    expect(bytes).toBeLessThan((await stat(file.path)).size);
    const values = async (name: string) => {
      const stored = await readTensorBytes(file, `model.${name}.weight`);
      return new Float32Array(stored.buffer, stored.byteOffset, stored.byteLength / 4);
    };
    const embedding = await values("embed_tokens");
    const rows = Array.from({ length: SMALL.vocabSize }, (_, t) =>
      embedding.subarray(t * SMALL.dim, (t + 1) * SMALL.dim),
    );
    expect(rows.every((row) => row.subarray(0, BLOCK).every((value) => value === 1))).toBe(true);
    expect(new Set(rows.map((row) => row.subarray(BLOCK, BLOCK + 3).join())).size).toBe(rows.length);
    const down = await values("layers.0.mlp.down_proj");
    expect(down.findIndex((value) => value !== 0)).toBe(BLOCK * SMALL.nNeurons);
  });

  test.each<[string, Partial<SyntheticShape>, string]>([
    ["dim", { dim: 100 }, "dim: expected a multiple of 32 of at least 96, got 100"],
    ["heads", { nHeads: 5 }, "heads: expected a divisor of dim 256, got 5"],
    ["kv-heads", { family: "opt" }, "kv-heads: expected as many as heads 4 in opt, got 2"],
    ["vocab", { vocabSize: 200 }, "vocab: expected at least 258, got 200"],
    ["active", { active: 0 }, "active: expected a share between 0 and 0.9, got 0"],
  ])("refuses an impossible %s", async (_, changes, message) => {
    await expect(writeCheckpoint(join(dir, "no"), { ...SMALL, ...changes })).rejects.toMatchObject({
      code: "E_SHAPE",
      message,
    });
  });

  test("predictors are refused for a folder that was not converted", async () => {
    const predictors = writePlantedPredictors(join(dir, "f32"), "q8_0", silentContext);
    await expect(predictors).rejects.toMatchObject({ code: "E_FORMAT" });
  });
});

describe("the random parts", () => {
  test("quantiles are those of the normal distribution", () => {
    const known = [
      [0.5, 0],
      [0.9, 1.281552],
      [0.975, 1.959964],
      [0.02, -2.053749],
      [0.0001, -3.719016],
    ] as const;
    for (const [p, x] of known) expect(normalQuantile(p)).toBeCloseTo(x, 3);
  });

  test("noise has the scale asked for, and no mean or correlation", () => {
    const values = new Float32Array(1 << 16);
    new Noise(3, "a").normal(values, 0, values.length, 2);
    const mean = (f: (value: number, i: number) => number) =>
      values.reduce((sum, value, i) => sum + f(value, i), 0) / values.length;
    expect(mean((value) => value)).toBeCloseTo(0, 1);
    expect(mean((value) => value * value)).toBeCloseTo(4, 1);
    for (const lag of [1, 2, 256, 2048])
      expect(mean((value, i) => (value * (values[i + lag] ?? 0)) / 4)).toBeCloseTo(0, 1);
  });

  test.each([
    [0.1, 1],
    [0.04, 0.7],
    [0.5, 0],
    [0.02, 2],
  ])("frequencies have the mean %s and fall with the power %s of the rank", (active, skew) => {
    const found = frequencies(4096, active, skew);
    expect(found.reduce((a, b) => a + b, 0) / 4096).toBeCloseTo(active, 9);
    expect(Math.max(...found)).toBeLessThanOrEqual(0.98);
    expect(Math.log2(found[2047]! / found[4095]!)).toBeCloseTo(skew, 9);
  });
});
