/** Sparse for real: the trained model of examples/ down the whole road, held to what it promises on text it has not seen. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { PredictorMetrics } from "../../formats/predictors.ts";
import { budgetFor } from "../place/working-dir.ts";
import { HARDWARE } from "../train-predictor/hardware.ts";
import { piJson } from "./pi.ts";

const example = (name: string): string => fileURLToPath(new URL(`../../examples/${name}`, import.meta.url));

let dir: string;
let work: string;
let artifact: string;
let idle: number[];
let predictors: PredictorMetrics[];

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-trained-"));
  [work, artifact] = [join(dir, "work"), join(dir, "x.pi")];
  await piJson(["convert", example("pi-tale-7m"), "-o", work]);
  const corpus = ["--corpus", example("corpus.txt"), "--tokens", "40000", "--samples", "8000"];
  const { layers } = await piJson<{ layers: { idle: number }[] }>(["profile", work, ...corpus]);
  idle = layers.map((layer) => layer.idle);
  ({ metrics: predictors } = await piJson<{ metrics: PredictorMetrics[] }>([
    "train-predictor",
    work,
    // Not this machine's costs, which change with its neighbours, and the choice with them.
    "--hardware",
    HARDWARE,
  ]));
  await piJson(["place", work, "--vram", String(await budgetFor(work, 0.5)), "-o", artifact]);
}, 600_000);
afterAll(() => rm(dir, { recursive: true }));

test("about nine neurons in ten are idle, and predictors know most of them", () => {
  for (const share of idle) expect(share).toBeGreaterThan(0.85);
  for (const { weightedRecall, predictedSparsity, trueSparsity } of predictors) {
    // Layers whose misses cost the model little may miss more than the others.
    expect(weightedRecall).toBeGreaterThanOrEqual(0.98);
    expect(predictedSparsity).toBeGreaterThan(0.3);
    // Predictors that are right nearly always call fewer neurons than fire.
    expect(predictedSparsity).toBeLessThan(trueSparsity + 0.02);
  }
  const mean = predictors.reduce((sum, { weightedRecall }) => sum + weightedRecall, 0) / predictors.length;
  expect(mean).toBeGreaterThanOrEqual(0.99);
});

test("predictor mode costs next to nothing in quality and reads far less; exact costs nothing", async () => {
  interface Report {
    tokens: number;
    modes: Record<"dense" | "exact" | "predictor", Record<string, number>>;
  }
  const { tokens, modes } = await piJson<Report>([
    "eval",
    artifact,
    "--corpus",
    example("heldout.txt"),
    "--tokens",
    "6000",
  ]);
  expect(tokens).toBeGreaterThan(5000);
  const { dense, exact, predictor } = modes;
  expect(exact).toMatchObject({ perplexity: dense["perplexity"], meanKl: 0, top1Agreement: 1 });
  expect(predictor["perplexityRatio"]).toBeLessThanOrEqual(1.005);
  expect(predictor["weightedRecall"]).toBeGreaterThanOrEqual(0.99);
  expect(exact["bytesPerToken"]).toBeLessThan(0.7 * dense["bytesPerToken"]!);
  expect(predictor["bytesPerToken"]).toBeLessThan(0.55 * dense["bytesPerToken"]!);
}, 300_000);

test("writes words", async () => {
  const run = ["run", artifact, "The old man", "--temp", "0.7", "--seed", "1", "-n", "60"];
  const { text } = await piJson<{ text: string }>(run);
  expect(text.match(/[a-z]{3,}/g)!.length).toBeGreaterThan(15);
});
