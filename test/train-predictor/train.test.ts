import { expect, test } from "vitest";
import { silentContext } from "../../io/progress.ts";
import { native } from "../../native/index.ts";
import type { LayerSamples } from "../../train-predictor/samples.ts";
import { sizeLayer } from "../../train-predictor/size-layer.ts";
import { neuronBytes, storePredictor } from "../../train-predictor/store.ts";
import { train } from "../../train-predictor/train.ts";
import { planted } from "../native/planted.ts";

const DIM = 48;
const NEURONS = 128;
const ROWS = 1600;

function samples(rank: number): LayerSamples {
  const data = planted({ dim: DIM, nNeurons: NEURONS, rank, rows: ROWS, seed: 5 });
  const index = Int32Array.from({ length: ROWS }, (_, i) => i);
  return { ...data, train: index.subarray(200), heldout: index.subarray(0, 200) };
}

const SIZING = {
  recall: 0.99,
  dtypes: ["f16", "q8_0"] as const,
  epochs: 30,
  seed: 1,
  threads: 2,
  neuron: neuronBytes(4096, { gate: "f16", up: "f16", down: "f16" }),
};

test("a planted gate is found: most of the idle neurons are known at 99 % recall", async () => {
  const { stored, curve } = await sizeLayer(samples(4), SIZING, "layer", silentContext);
  const point = curve.at(0.99);
  expect(point.weightedRecall).toBeGreaterThanOrEqual(0.99 - 1e-8);
  expect(1 - point.predictedSparsity).toBeLessThan(2 * (1 - point.trueSparsity));
  expect(stored.rank % 32).toBe(0);
});

test("a predictor is as large as saves bytes: small when neurons cost nothing", async () => {
  const data = samples(24);
  const dear = await sizeLayer(data, SIZING, "layer", silentContext);
  const cheap = await sizeLayer(data, { ...SIZING, neuron: { test: 1, rest: 1 } }, "layer", silentContext);
  expect(cheap.stored.rank).toBe(32);
  expect(dear.stored.rank).toBeGreaterThan(32);
  expect(dear.curve.at(0.99).predictedSparsity).toBeGreaterThan(cheap.curve.at(0.99).predictedSparsity);
});

test("training can be stopped", async () => {
  const controller = new AbortController();
  const context = { ...silentContext, signal: controller.signal, progress: () => controller.abort() };
  const call = train(samples(4), { rank: 32, epochs: 5, seed: 1, threads: 1 }, "layer", context);
  await expect(call).rejects.toThrow(expect.objectContaining({ name: "AbortError" }));
});

test("what is stored is what is computed with, and its size is known", async () => {
  const trainer = native().createTrainer({
    dim: DIM,
    nNeurons: NEURONS,
    rank: 32,
    seed: 1,
    weightDecay: 0,
    contributionWeight: 0,
    threads: 1,
  });
  const weights = trainer.weights();
  const f16 = await storePredictor(weights, DIM, "f16");
  expect(f16.bytes).toBe(2 * (32 * DIM + NEURONS * 32) + 4 * (32 + NEURONS));
  const q8 = await storePredictor(weights, DIM, "q8_0");
  // 48 inputs are no whole number of blocks: fc1 stays f16.
  expect(q8.tensors["fc1.weight"].dtype).toBe("f16");
  expect(q8.tensors["fc2.weight"]).toMatchObject({ dtype: "q8_0", bytes: { length: NEURONS * 34 } });
  const error = (a: Float32Array, b: Float32Array) => Math.max(...a.map((v, i) => Math.abs(v - b[i]!)));
  const scale = Math.max(...weights.fc2.map(Math.abs));
  expect(error(q8.weights.fc2, weights.fc2)).toBeLessThan(scale / 127);
  expect(error(f16.weights.fc1, weights.fc1)).toBeLessThan(2 ** -11);
});
