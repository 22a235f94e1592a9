import { expect, test } from "vitest";
import { silentContext } from "../../io/progress.ts";
import { native, type TrainerState } from "../../native/index.ts";
import { samplesInMemory, type LayerSamples } from "../../train-predictor/samples.ts";
import { sizeLayer, type SizedPredictor, type Sizing } from "../../train-predictor/size-layer.ts";
import { FfnPrices, neuronRows } from "../../train-predictor/ffn-prices.ts";
import { storePredictor } from "../../train-predictor/store.ts";
import { HYPERPARAMETERS, train, type TrainingState } from "../../train-predictor/train.ts";
import { planted } from "../native/planted.ts";
import { BANDWIDTH_ONLY } from "../place/ideal-work.ts";

const DIM = 48;
const NEURONS = 128;
const ROWS = 1600;

function samples(rank: number): LayerSamples {
  const data = planted({ dim: DIM, nNeurons: NEURONS, rank, rows: ROWS, seed: 5 });
  return samplesInMemory(data, data, 200);
}

/** Of neurons with rows of this width, where bytes are all that counts. */
const pricesOf = (width: number): FfnPrices =>
  new FfnPrices(
    { dim: DIM, nNeurons: NEURONS },
    neuronRows(width, { gate: "f16", up: "f16", down: "f16" }),
    { bandwidth: 1e9, work: BANDWIDTH_ONLY },
    0,
  );

const SIZING: Sizing = {
  recall: 0.99,
  maxGap: 1,
  maxBytes: 1e9,
  hyperparameters: HYPERPARAMETERS,
  dtypes: ["f16", "q8_0"],
  epochs: 30,
  seed: 1,
  threads: 2,
  prices: pricesOf(4096),
};

/** What a predictor gives at a recall of at least 0.99. */
const at99 = ({ points }: SizedPredictor) => points.find(({ weightedRecall }) => weightedRecall >= 0.99 - 1e-8)!;

test("a planted gate is found: most of the idle neurons are known at 99 % recall", async () => {
  const sized = await sizeLayer(samples(4), SIZING, "layer", silentContext);
  const { stored } = sized;
  const point = at99(sized);
  expect(point.weightedRecall).toBeGreaterThanOrEqual(0.99 - 1e-8);
  expect(1 - point.predictedSparsity).toBeLessThan(2 * (1 - point.trueSparsity));
  expect(stored.rank % 32).toBe(0);
});

test("a predictor is as large as saves bytes: small when neurons cost nothing", async () => {
  const data = samples(24);
  const dear = await sizeLayer(data, SIZING, "layer", silentContext);
  const cheap = await sizeLayer(data, { ...SIZING, prices: pricesOf(1) }, "layer", silentContext);
  expect(cheap.stored.rank).toBe(32);
  expect(dear.stored.rank).toBeGreaterThan(32);
  expect(at99(dear).predictedSparsity).toBeGreaterThan(at99(cheap).predictedSparsity);
});

test("a predictor grows past what saves bytes while it predicts too many, and never past its limit", async () => {
  const data = samples(24);
  const free = { ...SIZING, prices: pricesOf(1), dtypes: ["q8_0"] as const };
  const cheap = await sizeLayer(data, free, "layer", silentContext);
  const gap = at99(cheap).trueSparsity - at99(cheap).predictedSparsity;
  const grown = await sizeLayer(data, { ...free, maxGap: gap / 2 }, "layer", silentContext);
  expect(grown.stored.rank).toBeGreaterThan(cheap.stored.rank);
  const limited = await sizeLayer(data, { ...free, maxGap: 0, maxBytes: cheap.stored.bytes }, "layer", silentContext);
  expect(limited.stored.bytes).toBeLessThanOrEqual(cheap.stored.bytes);
});

test("points ascend to one that misses nothing", async () => {
  const { points } = await sizeLayer(samples(4), { ...SIZING, epochs: 2 }, "layer", silentContext);
  expect(points.at(-1)!.weightedRecall).toBeCloseTo(1, 8);
  for (const [i, point] of points.slice(1).entries()) {
    expect(point.weightedRecall).toBeGreaterThanOrEqual(points[i]!.weightedRecall);
    expect(point.predictedSparsity).toBeLessThanOrEqual(points[i]!.predictedSparsity);
  }
});

test("training that was interrupted after a pass ends with the same bits", async () => {
  const data = samples(4);
  const training = { rank: 32, epochs: 4, seed: 1, threads: 1 };
  const about = { label: "layer", recall: 0.9 };
  const whole = await train(data, training, about, silentContext);
  let kept: { epoch: number; state: TrainerState } | undefined;
  const keeping: TrainingState = {
    load: () => Promise.resolve(kept),
    save: (epoch, state) => {
      kept = { epoch, state: state() };
      return epoch === 2 ? Promise.reject(new Error("unplugged")) : Promise.resolve();
    },
  };
  await expect(train(data, training, about, silentContext, keeping)).rejects.toThrow("unplugged");
  expect(kept!.epoch).toBe(2);
  const rest = await train(data, training, about, silentContext, { ...keeping, save: () => Promise.resolve() });
  expect(rest.state()).toEqual(whole.state());
});

test("training can be stopped", async () => {
  const controller = new AbortController();
  const context = { ...silentContext, signal: controller.signal, progress: () => controller.abort() };
  const call = train(
    samples(4),
    { rank: 32, epochs: 5, seed: 1, threads: 1 },
    { label: "layer", recall: 0.9 },
    context,
  );
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
    labelShare: 1,
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
