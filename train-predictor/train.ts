import type { StageContext } from "../io/progress.ts";
import { native, type PredictorTrainer } from "../native/index.ts";
import type { LayerSamples } from "./samples.ts";

/** What shapes the training of one predictor. */
export interface Hyperparameters {
  /** Highest; decays to nothing along a cosine. */
  learningRate: number;
  weightDecay: number;
  /** Share of an active neuron's weight in the loss that follows its contribution. */
  contributionWeight: number;
  /** Rows an update. */
  batch: number;
}

/** Measured: docs/log.md, 2026-11-21. */
export const HYPERPARAMETERS: Hyperparameters = {
  learningRate: 0.007,
  weightDecay: 0.01,
  contributionWeight: 0.5,
  batch: 128,
};

/** Share of the updates over which the learning rate rises. */
const WARMUP = 0.05;
/** Rows between two looks at the clock, the learning rate and the wish to stop. */
const CHUNK = 2048;

export interface Training {
  rank: number;
  /** Passes over the training rows. */
  epochs: number;
  seed: number;
  threads: number;
  hyperparameters?: Hyperparameters;
}

/** Trains one predictor and returns its trainer. Throws the signal's reason when aborted. */
export async function train(
  samples: LayerSamples,
  training: Training,
  label: string,
  context: StageContext,
): Promise<PredictorTrainer> {
  const { dim, nNeurons } = samples;
  const { rank, seed, threads, epochs, hyperparameters = HYPERPARAMETERS } = training;
  const trainer = native().createTrainer({ dim, nNeurons, rank, seed, threads, ...hyperparameters });
  const random = randomIndices(seed);
  const total = epochs * samples.train.length;
  for (let epoch = 0; epoch < epochs; epoch++) {
    const order = shuffled(samples.train, random);
    for (let at = 0; at < order.length; at += CHUNK) {
      context.signal.throwIfAborted();
      const rows = order.subarray(at, at + CHUNK);
      const done = epoch * order.length + at;
      const rate = hyperparameters.learningRate * schedule((done + rows.length / 2) / total);
      const loss = await trainer.epoch(samples.hidden, samples.contributions, rows, hyperparameters.batch, rate);
      context.progress({ label, done: done + rows.length, total, unit: "tokens", note: `loss ${loss.toFixed(4)}` });
    }
  }
  return trainer;
}

/** Share of the highest learning rate: linear warm-up, then half a cosine to zero; `progress` in [0, 1]. */
function schedule(progress: number): number {
  return Math.min(1, progress / WARMUP) * 0.5 * (1 + Math.cos(Math.PI * progress));
}

/** A new random order of `rows` (Fisher and Yates). */
function shuffled(rows: Int32Array, random: (below: number) => number): Int32Array {
  const order = rows.slice();
  for (let i = order.length - 1; i > 0; i--) {
    const j = random(i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/** Whole numbers below a bound, by mulberry32. */
function randomIndices(seed: number): (below: number) => number {
  let state = seed | 0;
  return (below) => {
    state = (state + 0x6d2b79f5) | 0;
    let z = Math.imul(state ^ (state >>> 15), 1 | state);
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
    return Math.floor((((z ^ (z >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}
