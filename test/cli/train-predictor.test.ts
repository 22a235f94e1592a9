import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TrainPredictorResult } from "../../train-predictor/train-predictor.ts";
import { TINY, writeTinyModel } from "../profile/tiny-model.ts";
import { HARDWARE } from "../train-predictor/hardware.ts";
import { inProcess } from "./in-process.ts";
import { pi, piJson } from "./pi.ts";

let dir: string;
let model: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-train-cli-"));
  model = join(dir, "model");
  const corpus = join(dir, "corpus.txt");
  await writeTinyModel(model);
  await writeFile(corpus, Array.from({ length: 300 }, (_, i) => `The ${i % 13} foxes of ${i * i} hills. `).join(""));
  await piJson(["profile", model, "--corpus", corpus, "--window", "64"]);
});
afterAll(() => rm(dir, { recursive: true }));

const usual = () => [
  "train-predictor",
  model,
  "--recall",
  "0.9",
  "--max-perplexity-ratio",
  "1.1",
  "--epochs",
  "2",
  "--dtype",
  "q8_0",
  "--hardware",
  HARDWARE,
];

describe("pi train-predictor", () => {
  it("reports every layer and the model, and does nothing the second time", async () => {
    const result = await piJson<TrainPredictorResult>(usual());
    expect(result.upToDate).toBe(false);
    expect(result.metrics).toHaveLength(TINY.nLayers);
    for (const { weightedRecall } of result.metrics) expect(weightedRecall).toBeGreaterThan(0.7);
    for (const layer of result.considered) {
      expect(layer.map(({ kind }) => kind)).toEqual(["exact", "sign", "lowbit", "svd", "mlp"]);
      for (const { kind, curve } of layer) expect(curve.length).toBeGreaterThan(kind === "exact" ? 0 : 4);
    }
    expect(result.quality.perplexityRatio).toBeLessThanOrEqual(1.1);

    const { stdout, stderr, code } = await pi(usual());
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toMatch(/^layer {2}kind +rank +recall +weighted +precision/);
    for (const kind of ["exact", "sign", "lowbit", "svd", "mlp"]) {
      expect(stdout).toMatch(new RegExp(`^${kind} +[0-2] of 2 .*KiB`, "m"));
    }
    expect(stdout).toMatch(/predictors.safetensors: up to date, .* % of the model\n/);
    expect(stdout).toMatch(/held-out text +perplexity .* dense \(ratio .*\), KL mean/);
    expect(stdout).not.toContain("other text");
  });

  it("measures text from elsewhere too, and says both", async () => {
    const other = join(dir, "other.txt");
    await writeFile(other, "Ships that pass in the night, and speak each other in passing. ".repeat(20));
    const args = [...usual(), "--eval", other, "--eval-tokens", "200"];
    const { quality, upToDate } = await piJson<TrainPredictorResult>(args);
    expect(upToDate).toBe(false);
    expect(quality.crossCorpus!.corpus.tokens).toBeGreaterThan(100);
    const { stdout } = await pi(args);
    expect(stdout).toMatch(/held-out text .*\nother text +perplexity .* on \d+ tokens/);
    expect((await pi(["inspect", join(model, "predictors.safetensors")])).stdout).toContain("on other text");
  });

  it.each([
    ["no directory", [], 2, "missing required argument 'DIR'"],
    ["a recall above 1", ["x", "--recall", "1.5"], 2, "argument '1.5' is invalid. Expected a number from 0.5 to"],
    ["a ratio below 1", ["x", "--max-perplexity-ratio", "0.9"], 2, "Expected a number of at least 1."],
    ["a share above 1", ["x", "--label-share", "2"], 2, "argument '2' is invalid. Expected a number from 0 to 1."],
    ["another type", ["x", "--dtype", "f64"], 2, "Allowed choices are auto, f16, q8_0, q4_0."],
    ["a directory without a model", ["/nowhere"], 1, "[E_FILE]"],
  ])("refuses %s", async (_, args, code, message) => {
    const outcome = await inProcess(["train-predictor", ...args]);
    expect(outcome.code).toBe(code);
    expect(outcome.stderr).toContain(message);
  });
});
