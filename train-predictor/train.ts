import type { StageContext } from "../io/progress.ts";
import { native, type PredictorTrainer, type TrainerState } from "../native/index.ts";
import { measureCurve } from "./curve.ts";
import type { Rows } from "./keyed-rows.ts";
import type { LayerSamples } from "./samples.ts";

/** What shapes the training of one predictor. */
export interface Hyperparameters {
  /** Highest; decays to nothing along a cosine. */
  learningRate: number;
  weightDecay: number;
  /** Share of an active neuron's weight in the loss that follows its contribution. */
  contributionWeight: number;
  /** A row's strongest neurons that hold this share of its contribution are labelled active; 1: all that fire. */
  labelShare: number;
  /** Rows an update. */
  batch: number;
}

/** Measured: docs/log.md, 2026-11-21. */
export const HYPERPARAMETERS: Hyperparameters = {
  learningRate: 0.007,
  weightDecay: 0.01,
  contributionWeight: 0.5,
  labelShare: 1,
  batch: 128,
};

/** Share of the updates over which the learning rate rises. */
const WARMUP = 0.05;
/** Rows between two looks at the clock, the learning rate and the wish to stop. */
const STEP_ROWS = 2048;
/** Held-out rows that progress reports on after every pass. */
const GLANCE_ROWS = 512;

export interface Training {
  rank: number;
  /** Passes over the training rows. */
  epochs: number;
  seed: number;
  threads: number;
  hyperparameters?: Hyperparameters;
}

/** Where a training that may be interrupted keeps what a finished pass left. */
export interface TrainingState {
  load(): Promise<{ epoch: number; state: TrainerState } | undefined>;
  save(epoch: number, state: () => TrainerState): Promise<void>;
}

/**
 * Trains one predictor and returns its trainer, which goes on from `kept` if something is there: the result is the same.
 * Progress says the loss, and how many neurons the last pass's predictor would need for `recall`. Throws the signal's
 * reason when aborted.
 */
export async function train(
  samples: LayerSamples,
  training: Training,
  { label, recall }: { label: string; recall: number },
  context: StageContext,
  kept?: TrainingState,
): Promise<PredictorTrainer> {
  const { dim, nNeurons } = samples;
  const { rank, seed, threads, epochs, hyperparameters = HYPERPARAMETERS } = training;
  const trainer = native().createTrainer({ dim, nNeurons, rank, seed, threads, ...hyperparameters });
  const found = await kept?.load();
  if (found) trainer.setState(found.state);
  const perEpoch = samples.chunks.reduce((a, b) => a + b, 0);
  const total = epochs * perEpoch;
  const glanced = { ...samples.heldout, rows: Math.min(GLANCE_ROWS, samples.heldout.rows) };
  let glance = "";
  for (let epoch = found?.epoch ?? 0; epoch < epochs; epoch++) {
    let done = epoch * perEpoch;
    for await (const { rows, order } of shuffledChunks(samples, seed, epoch)) {
      for (let at = 0; at < order.length; at += STEP_ROWS) {
        context.signal.throwIfAborted();
        const step = order.subarray(at, at + STEP_ROWS);
        const rate = hyperparameters.learningRate * schedule((done + step.length / 2) / total);
        const loss = await trainer.epoch(rows.hidden, rows.contributions, step, hyperparameters.batch, rate);
        done += step.length;
        context.progress({ label, done, total, unit: "tokens", note: `loss ${loss.toFixed(4)}${glance}` });
      }
    }
    const { predictedSparsity } = (await measureCurve(samples, trainer, glanced)).at(recall);
    glance = `, predicts ${percent(1 - predictedSparsity)} for recall ${percent(recall)}`;
    await kept?.save(epoch + 1, () => trainer.state());
  }
  return trainer;
}

const percent = (share: number): string => `${(100 * share).toFixed(1)} %`;

/**
 * All chunks in a new order, each with a new order of its rows; both are functions of seed, epoch and chunk, so that a
 * pass can be repeated without those before it. The next chunk is read while one is used.
 */
async function* shuffledChunks(samples: LayerSamples, seed: number, epoch: number) {
  const order = shuffled(samples.chunks.length, randomIndices([seed, epoch]));
  let next: Promise<Rows> | undefined = samples.chunk(order[0]!);
  for (const [i, chunk] of order.entries()) {
    const rows = await next!;
    next = i + 1 < order.length ? samples.chunk(order[i + 1]!) : undefined;
    // It may fail while nobody awaits it yet; whoever awaits it is told.
    next?.catch(() => undefined);
    yield { rows, order: shuffled(rows.rows, randomIndices([seed, epoch, chunk])) };
  }
}

/** Share of the highest learning rate: linear warm-up, then half a cosine to zero; `progress` in [0, 1]. */
function schedule(progress: number): number {
  return Math.min(1, progress / WARMUP) * 0.5 * (1 + Math.cos(Math.PI * progress));
}

/** The numbers below `count` in a random order (Fisher and Yates). */
function shuffled(count: number, random: (below: number) => number): Int32Array {
  const order = Int32Array.from({ length: count }, (_, i) => i);
  for (let i = order.length - 1; i > 0; i--) {
    const j = random(i + 1);
    [order[i], order[j]] = [order[j]!, order[i]!];
  }
  return order;
}

/** Whole numbers below a bound, by mulberry32, whose state starts as a hash of `seeds`. */
function randomIndices(seeds: readonly number[]): (below: number) => number {
  let state = 0;
  const next = () => {
    state = (state + 0x6d2b79f5) | 0;
    let z = Math.imul(state ^ (state >>> 15), 1 | state);
    z = (z + Math.imul(z ^ (z >>> 7), 61 | z)) ^ z;
    return (z ^ (z >>> 14)) >>> 0;
  };
  for (const seed of seeds) state = next() ^ (seed | 0) ^ Math.floor(seed / 2 ** 32);
  return (below) => Math.floor((next() / 2 ** 32) * below);
}
