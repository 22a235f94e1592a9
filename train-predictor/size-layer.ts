import type { StageContext } from "../io/progress.ts";
import type { PredictorTrainer } from "../native/index.ts";
import { RecallCurve, type OperatingPoint } from "./curve.ts";
import type { LayerSamples } from "./samples.ts";
import { storePredictor, type NeuronBytes, type PredictorDType, type StoredPredictor } from "./store.ts";
import { train } from "./train.ts";

/** What sizing a layer's predictor aims at and may spend. */
export interface Sizing {
  /** Contribution-weighted recall at which costs are compared. */
  recall: number;
  /** Types to choose from, by cost. */
  dtypes: readonly PredictorDType[];
  /** Passes over the training rows for the rank that was chosen. */
  epochs: number;
  seed: number;
  threads: number;
  neuron: NeuronBytes;
}

/** A layer's predictor as stored, and what every threshold would give. */
export interface SizedPredictor {
  stored: StoredPredictor;
  curve: RecallCurve;
}

/** Ranks are whole blocks of the block types. */
const RANK_STEP = 32;

/** Ranks change by this factor. */
const GROWTH = 1.5;

/** Ranks are compared after this share of the passes: enough to see which one is going to be cheaper. */
const TRIAL = 1 / 3;

/**
 * Finds the rank that makes a token read least and trains it. The paper's adaptive sizing iterates the hidden size from a
 * start by the layer's sparsity; what decides here is the expected bytes a token reads in this layer's FFN at the
 * required recall: the predictor, the tested rows of all neurons that it predicts, and the other rows of those that
 * fire. Every rank starts from fresh weights: a grown predictor stays behind one trained at its size (docs/log.md).
 */
export async function sizeLayer(
  samples: LayerSamples,
  sizing: Sizing,
  label: string,
  context: StageContext,
  start = startRank(samples),
): Promise<SizedPredictor> {
  const attempt = async (rank: number, epochs: number, what: string) => {
    const { seed, threads } = sizing;
    const trainer = await train(samples, { rank, epochs, seed, threads }, `${label}, ${what} ${rank}`, context);
    return cheapest(samples, trainer, sizing);
  };
  const rank = await cheapestRank(start, sizing, roundUp(samples.dim), (tried) => {
    return attempt(tried, Math.ceil(TRIAL * sizing.epochs), "trying rank");
  });
  return attempt(rank, sizing.epochs, "rank");
}

/** Climbs from `start`, up first, for as long as the cost falls. */
async function cheapestRank(
  start: number,
  sizing: Sizing,
  highest: number,
  attempt: (rank: number) => Promise<SizedPredictor>,
): Promise<number> {
  let best = await attempt(start);
  const betterThanBest = (other: SizedPredictor) => cost(other, sizing) < cost(best, sizing);
  let smaller: SizedPredictor | undefined;
  for (let rank = roundUp(GROWTH * start); rank <= highest; rank = roundUp(GROWTH * rank)) {
    if (smaller && !pays(smaller, best, rank, sizing)) break;
    const larger = await attempt(rank);
    if (!betterThanBest(larger)) break;
    smaller = best;
    best = larger;
  }
  if (smaller) return best.stored.rank;
  for (let rank = roundDown(start / GROWTH); rank > 0; rank = roundDown(rank / GROWTH)) {
    const candidate = await attempt(rank);
    if (!betterThanBest(candidate)) break;
    best = candidate;
  }
  return best.stored.rank;
}

/**
 * Whether growing to `rank` can be expected to pay: false positives, which are what a larger predictor saves, are taken
 * to shrink by the same factor for every unit of rank as they did from `smaller` to `current`. Spares training the
 * largest predictor of a layer only to see it lose.
 */
function pays(smaller: SizedPredictor, current: SizedPredictor, rank: number, { recall, neuron }: Sizing): boolean {
  const falsePositives = ({ stored, curve }: SizedPredictor) => {
    const { predictedSparsity, trueSparsity, recall: found } = curve.at(recall);
    return stored.weights.fc2Bias.length * neuron.test * (1 - predictedSparsity - (1 - trueSparsity) * found);
  };
  const left = falsePositives(current);
  const byUnit = (left / falsePositives(smaller)) ** (1 / (current.stored.rank - smaller.stored.rank));
  const units = rank - current.stored.rank;
  return left * (1 - byUnit ** units) > (current.stored.bytes / current.stored.rank) * units;
}

const roundUp = (rank: number): number => Math.ceil(rank / RANK_STEP) * RANK_STEP;
const roundDown = (rank: number): number => Math.floor(rank / RANK_STEP) * RANK_STEP;

/** Twice the inputs that the share of active neurons would leave, and no more than there are. */
function startRank({ dim, nNeurons, contributions, heldout }: LayerSamples): number {
  let active = 0;
  for (const row of heldout) {
    for (let i = row * nNeurons; i < (row + 1) * nNeurons; i++) if (contributions[i]! > 0) active++;
  }
  return roundUp(dim * Math.min(1, Math.max(2 * active, 1) / (heldout.length * nNeurons)));
}

/** The trained predictor in the type that costs least at the required recall, measured with the weights as stored. */
async function cheapest(samples: LayerSamples, trainer: PredictorTrainer, sizing: Sizing): Promise<SizedPredictor> {
  const weights = trainer.weights();
  let best: SizedPredictor | undefined;
  for (const dtype of sizing.dtypes) {
    const stored = await storePredictor(weights, samples.dim, dtype);
    trainer.setWeights(stored.weights);
    const candidate = { stored, curve: await measureCurve(samples, trainer) };
    if (!best || cost(candidate, sizing) < cost(best, sizing)) best = candidate;
  }
  return best!;
}

/** Rows scored at a time. */
const SCORE_ROWS = 1024;

/** The recall curve on the held-out rows. */
export async function measureCurve(samples: LayerSamples, trainer: PredictorTrainer): Promise<RecallCurve> {
  const curve = new RecallCurve(samples.nNeurons);
  for (let at = 0; at < samples.heldout.length; at += SCORE_ROWS) {
    const rows = samples.heldout.subarray(at, at + SCORE_ROWS);
    curve.add(await trainer.scores(samples.hidden, rows), samples.contributions, rows);
  }
  return curve;
}

function cost({ stored, curve }: SizedPredictor, { recall, neuron }: Sizing): number {
  return ffnBytes(stored.bytes, stored.weights.fc2Bias.length, neuron, curve.at(recall));
}

/** Expected bytes that a token reads in a layer's FFN. */
export function ffnBytes(
  predictorBytes: number,
  nNeurons: number,
  neuron: NeuronBytes,
  point: Pick<OperatingPoint, "recall" | "trueSparsity" | "predictedSparsity">,
): number {
  const tested = 1 - point.predictedSparsity;
  const firing = (1 - point.trueSparsity) * point.recall;
  return predictorBytes + nNeurons * (tested * neuron.test + firing * neuron.rest);
}
