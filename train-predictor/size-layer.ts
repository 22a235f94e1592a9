import type { StageContext } from "../io/progress.ts";
import type { PredictorTrainer } from "../native/index.ts";
import { measureCurve, RECALLS, type OperatingPoint } from "./curve.ts";
import type { Cost, FfnPrices } from "./ffn-prices.ts";
import type { RowShape } from "./keyed-rows.ts";
import type { LayerSamples } from "./samples.ts";
import { storePredictor, type PredictorDType, type Stored } from "./store.ts";
import { train, type Hyperparameters, type TrainingState } from "./train.ts";

/** What sizing a layer's predictor aims at and may spend. */
export interface Sizing {
  /** Contribution-weighted recall at which costs are compared. */
  recall: number;
  /** Points of sparsity that false positives may take, as long as `maxBytes` allows. */
  maxGap: number;
  /** Of the stored predictor. */
  maxBytes: number;
  /** Types to choose from, by cost. */
  dtypes: readonly PredictorDType[];
  /** Passes over the training rows for the rank that was chosen. */
  epochs: number;
  seed: number;
  threads: number;
  prices: FfnPrices;
  hyperparameters: Hyperparameters;
}

/** A rank that was tried: what its predictor costs at the required recall. */
export interface Trial {
  rank: number;
  epochs: number;
  /** Of the predictor alone. */
  cost: Cost;
  point: OperatingPoint;
}

/** A layer's predictor as stored, and what every threshold on its curve would give. */
export interface SizedPredictor {
  stored: Stored;
  /** In ascending order of recall; the last one misses nothing. */
  points: OperatingPoint[];
}

/** What survives an interruption: ranks that were tried, and the training that was under way. */
export interface Attempts {
  tried(rank: number, epochs: number): Trial | undefined;
  record(trial: Trial): Promise<void>;
  training(rank: number, epochs: number): TrainingState;
}

/** Ranks are whole blocks of the block types. */
export const RANK_STEP = 32;

/** Ranks change by this factor. */
export const GROWTH = 1.5;

/** Ranks are compared after this share of the passes: enough to see which one is going to be cheaper. */
const TRIAL = 1 / 3;

/** Of the false positives per unit of rank: halved by 64 units. */
const USUAL_DECAY = 0.989;

/**
 * Finds the rank that costs a token least and trains it. The paper's adaptive sizing iterates the hidden size from a
 * start by the layer's sparsity, corrected for skew; what decides here is the expected time of a token in this layer's
 * FFN at the required recall: the predictor, the tested rows of all neurons that it predicts, and the other rows of those
 * that fire. Where that predicts too many neurons in vain, the rank grows further. Every rank starts from fresh
 * weights: a grown predictor stays behind one trained at its size (docs/log.md).
 */
export async function sizeLayer(
  samples: LayerSamples,
  sizing: Sizing,
  label: string,
  context: StageContext,
  attempts: Attempts = FORGETFUL,
  start = startRank(samples),
): Promise<SizedPredictor> {
  const attempt = async (rank: number, epochs: number, what: string) => {
    const about = { label: `${label}, ${what} ${rank}`, recall: sizing.recall };
    const trainer = await train(samples, { ...sizing, rank, epochs }, about, context, attempts.training(rank, epochs));
    const found = await cheapest(samples, trainer, sizing);
    const trial = { rank, epochs, cost: found.cost, point: found.point };
    await attempts.record(trial);
    return { ...found, trial };
  };
  const trialEpochs = Math.ceil(TRIAL * sizing.epochs);
  const highest = highestRank(samples, sizing);
  const climb = await cheapestRank(Math.min(start, highest), sizing, highest, async (rank) => {
    return attempts.tried(rank, trialEpochs) ?? (await attempt(rank, trialEpochs, "trying rank")).trial;
  });
  for (let { rank } = climb; ;) {
    const known = attempts.tried(rank, sizing.epochs);
    const larger = known && largerRank(known, climb.decay, highest, sizing);
    if (larger !== undefined) rank = larger;
    else {
      const { stored, curve, trial } = await attempt(rank, sizing.epochs, "rank");
      const next = largerRank(trial, climb.decay, highest, sizing);
      if (next === undefined) return { stored, points: curve.points(RECALLS) };
      rank = next;
    }
  }
}

const FORGETFUL: Attempts = {
  tried: () => undefined,
  record: () => Promise.resolve(),
  training: () => ({ load: () => Promise.resolve(undefined), save: () => Promise.resolve() }),
};

/** Climbs from `start`, up first, for as long as it gets cheaper; `decay` is what a unit of rank leaves of the false positives. */
async function cheapestRank(
  start: number,
  sizing: Sizing,
  highest: number,
  attempt: (rank: number) => Promise<Trial>,
): Promise<{ rank: number; decay: number }> {
  const trials: Trial[] = [await attempt(start)];
  let best = trials[0]!;
  for (let rank = roundUp(GROWTH * start); rank <= highest; rank = roundUp(GROWTH * rank)) {
    if (trials.length > 1 && !pays(best, decayOf(trials), rank, sizing)) break;
    const larger = await attempt(rank);
    trials.push(larger);
    if (expected(larger, sizing) >= expected(best, sizing)) break;
    best = larger;
  }
  if (best === trials[0]) {
    for (let rank = roundDown(start / GROWTH); rank > 0; rank = roundDown(rank / GROWTH)) {
      const smaller = await attempt(rank);
      trials.unshift(smaller);
      if (expected(smaller, sizing) >= expected(best, sizing)) break;
      best = smaller;
    }
  }
  return { rank: best.rank, decay: decayOf(trials) };
}

/** Seconds of a token in the layer's FFN. */
const expected = ({ cost, point }: Pick<Trial, "cost" | "point">, { prices }: Sizing): number =>
  prices.at(cost, point).seconds;

/** Share of a layer's neurons that is predicted in vain. */
const falsePositives = ({ predictedSparsity, trueSparsity, recall }: OperatingPoint): number =>
  1 - predictedSparsity - (1 - trueSparsity) * recall;

/** What one more unit of rank leaves of the false positives, from two neighbouring trials; what is usual where there is one. */
function decayOf(trials: readonly Trial[]): number {
  const [smaller, larger] = trials.slice(-2) as [Trial, Trial | undefined];
  if (!larger) return USUAL_DECAY;
  const left = falsePositives(larger.point) / falsePositives(smaller.point);
  return left > 0 && left < 1 ? left ** (1 / (larger.rank - smaller.rank)) : USUAL_DECAY;
}

/**
 * Whether growing from `current` to `rank` can be expected to pay: false positives, which are what a larger predictor
 * saves, are taken to shrink by `decay` for every unit of rank. Spares training the largest predictor of a layer only to
 * see it lose.
 */
function pays(current: Trial, decay: number, rank: number, sizing: Sizing): boolean {
  const units = rank - current.rank;
  const { cost, point } = current;
  const larger = { bytes: (cost.bytes * rank) / current.rank, seconds: (cost.seconds * rank) / current.rank };
  const saved = falsePositives(point) * (1 - decay ** units);
  const grown = { cost: larger, point: { ...point, predictedSparsity: point.predictedSparsity + saved } };
  return expected(grown, sizing) < expected(current, sizing);
}

/** The rank at which no more neurons than allowed should be predicted in vain; undefined when it is reached or cannot be. */
function largerRank({ rank, point }: Trial, decay: number, highest: number, { maxGap }: Sizing): number | undefined {
  const gap = point.trueSparsity - point.predictedSparsity;
  if (gap <= maxGap || rank >= highest) return undefined;
  const units = Math.log(Math.max(maxGap, 1e-3) / gap) / Math.log(decay);
  return Math.min(highest, roundUp(rank + Math.max(1, units)));
}

export const roundUp = (rank: number): number => Math.ceil(rank / RANK_STEP) * RANK_STEP;
const roundDown = (rank: number): number => Math.floor(rank / RANK_STEP) * RANK_STEP;

/** The largest rank that the bytes allow in the smallest type, and no more than the input is wide. */
export function highestRank({ dim, nNeurons }: RowShape, { maxBytes, dtypes }: Sizing): number {
  const bits = Math.min(...dtypes.map((dtype) => ({ f16: 16, q8_0: 8.5, q4_0: 4.5 })[dtype]));
  const allowed = (maxBytes - 4 * nNeurons) / (((dim + nNeurons) * bits) / 8);
  return Math.max(RANK_STEP, Math.min(roundDown(allowed), roundUp(dim)));
}

/**
 * Twice the inputs that the share of active neurons would leave, corrected for skew: neurons that fire always or never
 * need no prediction. The correction is the share of the activity's variance that is within neurons; it is 1 when all
 * fire equally often.
 */
function startRank({ dim, nNeurons, heldout }: LayerSamples): number {
  const fired = new Float64Array(nNeurons);
  for (let row = 0; row < heldout.rows; row++) {
    for (let i = 0; i < nNeurons; i++)
      if (heldout.contributions[row * nNeurons + i]! > 0) fired[i]! += 1 / heldout.rows;
  }
  const mean = fired.reduce((a, b) => a + b, 0) / nNeurons;
  const within = fired.reduce((sum, f) => sum + f * (1 - f), 0) / nNeurons;
  const skew = mean > 0 && mean < 1 ? within / (mean * (1 - mean)) : 0;
  return Math.max(RANK_STEP, roundUp(dim * Math.min(1, 2 * mean * skew)));
}

/** The trained predictor in the type that is best at the required recall, measured with the weights as stored. */
async function cheapest(samples: LayerSamples, trainer: PredictorTrainer, sizing: Sizing) {
  const weights = trainer.weights();
  const candidates = [];
  for (const [i, dtype] of sizing.dtypes.entries()) {
    const stored = await storePredictor(weights, samples.dim, dtype);
    // Of types that are all too large, the last is the smallest.
    if (stored.bytes > sizing.maxBytes && i + 1 < sizing.dtypes.length) continue;
    trainer.setWeights(stored.weights);
    const curve = await measureCurve(samples, trainer, samples.heldout);
    candidates.push({ stored, cost: sizing.prices.predictor(stored), curve, point: curve.at(sizing.recall) });
  }
  const seconds = candidates.map((candidate) => expected(candidate, sizing));
  return candidates[seconds.indexOf(Math.min(...seconds))]!;
}
