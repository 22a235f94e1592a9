import type { StageContext } from "../io/progress.ts";
import type { PredictorTrainer, PredictorWeights } from "../native/index.ts";
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
  epochs: number;
  seed: number;
  threads: number;
  neuron: NeuronBytes;
}

/** A layer's predictor: as stored, as trained (to go on from), and what every threshold would give. */
export interface SizedPredictor {
  stored: StoredPredictor;
  trained: PredictorWeights;
  curve: RecallCurve;
}

/** Ranks are whole blocks of the block types. */
const RANK_STEP = 32;

/** Ranks grow by this factor. */
const GROWTH = 1.5;

/**
 * Grows a predictor until growing stops paying. The paper's adaptive sizing iterates the hidden size from a start by the
 * layer's sparsity; what decides here is the expected bytes a token reads in this layer's FFN at the required recall:
 * the predictor, the tested rows of all neurons that it predicts, and the other rows of those that fire. `previous` is
 * grown on from where it stands.
 */
export async function sizeLayer(
  samples: LayerSamples,
  sizing: Sizing,
  label: string,
  context: StageContext,
  previous?: SizedPredictor,
): Promise<SizedPredictor> {
  const attempt = async (rank: number, start?: PredictorWeights) => {
    const { epochs, seed, threads } = sizing;
    const trainer = await train(samples, { rank, epochs, seed, threads, start }, `${label}, rank ${rank}`, context);
    return cheapest(samples, trainer, sizing);
  };
  let best = previous ?? (await attempt(startRank(samples)));
  let smaller: SizedPredictor | undefined;
  for (;;) {
    const rank = roundUp(GROWTH * best.stored.rank);
    if (rank > roundUp(samples.dim) || (smaller && !pays(smaller, best, rank, sizing))) return best;
    const larger = await attempt(rank, best.trained);
    if (cost(larger, sizing) >= cost(best, sizing)) return best;
    smaller = best;
    best = larger;
  }
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

/** As many hidden units as the input has dimensions, times the share of neurons that are active. */
function startRank({ dim, nNeurons, contributions, heldout }: LayerSamples): number {
  let active = 0;
  for (const row of heldout) {
    for (let i = row * nNeurons; i < (row + 1) * nNeurons; i++) if (contributions[i]! > 0) active++;
  }
  return roundUp(Math.max(1, (dim * active) / (heldout.length * nNeurons)));
}

/** The trained predictor in the type that costs least at the required recall, measured with the weights as stored. */
async function cheapest(samples: LayerSamples, trainer: PredictorTrainer, sizing: Sizing): Promise<SizedPredictor> {
  const trained = trainer.weights();
  let best: SizedPredictor | undefined;
  for (const dtype of sizing.dtypes) {
    const stored = await storePredictor(trained, samples.dim, dtype);
    trainer.setWeights(stored.weights);
    const candidate = { stored, trained, curve: await measureCurve(samples, trainer) };
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
