/** Predictors that need no training: they are made from the gate's weights, and fitted to what its inputs are like. */
import type { PredictorKind } from "../formats/predictors.ts";
import { DTYPES, type DType } from "../formats/dtypes.ts";
import { predictorTensors } from "../model/tensors.ts";
import { native, type PredictorTensor } from "../native/index.ts";
import { measureCurve, RECALLS, type OperatingPoint, type Scorer } from "./curve.ts";
import { ScoreFitter, type ScoreFit } from "./fit-scores.ts";
import { bitsOf, type GateWeights } from "./gate-weights.ts";
import type { RowShape } from "./keyed-rows.ts";
import type { LayerSamples } from "./samples.ts";
import { GROWTH, highestRank, RANK_STEP, roundUp, type SizedPredictor, type Sizing } from "./size-layer.ts";
import { bytesIn, bytesOf, matrixDType, type PredictorDType, type Stored } from "./store.ts";

/** Rows that scores are fitted on; and that are scored at a time. */
const FIT_ROWS = 4096;
const STEP_ROWS = 512;

/** The type of a low-bit gate: the smallest there is. */
const LOWBIT = "q4_0";

/** What is needed to make a layer's predictors. */
export interface LayerInput {
  samples: LayerSamples;
  gate: GateWeights;
  sizing: Sizing;
}

/** Why a kind cannot be had in a layer; undefined when it can. */
export function impossible(kind: PredictorKind, { dim }: RowShape, gate: DType): string | undefined {
  if (kind === "sign" && dim % DTYPES.bit.blockSize !== 0) {
    return `rows of ${dim} signs are no whole number of bytes`;
  }
  if (kind !== "lowbit") return undefined;
  if (dim % DTYPES[LOWBIT].blockSize !== 0) return `rows of ${dim} weights are no whole number of ${LOWBIT}'s blocks`;
  return bitsOf(gate) > bitsOf(LOWBIT) ? undefined : `the gate is ${gate}: a copy in ${LOWBIT} is no smaller`;
}

/** The layer's predictor of one of the training-free kinds, the cheapest of its ranks and types, with its points. */
export async function makeTrainingFree(
  kind: Exclude<PredictorKind, "mlp">,
  input: LayerInput,
): Promise<SizedPredictor> {
  if (kind === "exact") return exact(input.samples);
  if (kind === "sign") return measured(input, await signPredictor(input));
  if (kind === "lowbit") return measured(input, await lowbitPredictor(input));
  return cheapestSvd(input);
}

/** Nothing is predicted and nothing missed: the gate of every neuron is computed. */
function exact({ nNeurons, heldout }: LayerSamples): SizedPredictor {
  const cells = heldout.rows * nNeurons;
  const active = heldout.contributions.subarray(0, cells).reduce((count, c) => count + (c > 0 ? 1 : 0), 0) / cells;
  const point = {
    threshold: 0,
    recall: 1,
    weightedRecall: 1,
    precision: active,
    trueSparsity: 1 - active,
    predictedSparsity: 0,
  };
  return { stored: { kind: "exact", rank: 0, tensors: {}, bytes: 0 }, points: [point] };
}

async function signPredictor({ samples, gate, sizing }: LayerInput): Promise<Stored> {
  const { nNeurons, dim } = samples;
  const bits = await native().convertTensor(bytesOf(gate.values), "f32", "bit", nNeurons, dim, false);
  const parts = (scale: Float32Array, bias: Float32Array): Stored["tensors"] => ({
    "signs.weight": { dtype: "bit", bytes: bits },
    "signs.scale": { dtype: "f32", bytes: bytesOf(scale) },
    "signs.bias": { dtype: "f32", bytes: bytesOf(bias) },
  });
  const raw = parts(new Float32Array(nNeurons).fill(1), new Float32Array(nNeurons));
  const { scale, bias } = await fitScores(samples, gate, tensorsOf("sign", 0, raw, samples), sizing.threads);
  const tensors = parts(scale, bias);
  return { kind: "sign", rank: 0, tensors, bytes: bytesIn(tensors) };
}

async function lowbitPredictor({ samples, gate, sizing }: LayerInput): Promise<Stored> {
  const { nNeurons, dim } = samples;
  const parts = async (values: Float32Array, bias: Float32Array): Promise<Stored["tensors"]> => ({
    "gate.weight": { dtype: LOWBIT, bytes: await encode(values, nNeurons, dim, LOWBIT) },
    "gate.bias": { dtype: "f32", bytes: bytesOf(bias) },
  });
  const raw = await parts(gate.values, new Float32Array(nNeurons));
  const { scale, bias } = await fitScores(samples, gate, tensorsOf("lowbit", 0, raw, samples), sizing.threads);
  const tensors = await parts(scaled(gate.values, scale), bias);
  return { kind: "lowbit", rank: 0, tensors, bytes: bytesIn(tensors) };
}

/**
 * Climbs the ranks for as long as that makes a token read less, tries those beside the best, and grows that until no more
 * neurons than allowed are predicted in vain.
 */
async function cheapestSvd(input: LayerInput): Promise<SizedPredictor> {
  const { samples, sizing } = input;
  const moments = await inputMoments(samples, sizing.threads);
  const highest = Math.min(highestRank(samples, sizing), samples.dim, samples.nNeurons);
  const tried = new Map<number, SizedSvd>();
  const attempt = async (rank: number): Promise<SizedSvd> => {
    const found = tried.get(rank) ?? (await bestSvdOfRank(input, moments, rank));
    tried.set(rank, found);
    return found;
  };
  let best = await attempt(Math.min(RANK_STEP, highest));
  for (let { rank } = best.stored; rank < highest;) {
    rank = Math.min(highest, roundUp(GROWTH * rank));
    const larger = await attempt(rank);
    if (larger.cost >= best.cost) break;
    best = larger;
  }
  for (const rank of [best.stored.rank - RANK_STEP, best.stored.rank + RANK_STEP]) {
    if (rank <= 0 || rank > highest) continue;
    const beside = await attempt(rank);
    if (beside.cost < best.cost) best = beside;
  }
  while (gapOf(best.point) > sizing.maxGap && best.stored.rank < highest) {
    best = await attempt(Math.min(highest, best.stored.rank + RANK_STEP));
  }
  return { stored: best.stored, points: best.points };
}

/** Share of the neurons that is predicted beyond those that fire. */
const gapOf = ({ trueSparsity, predictedSparsity }: OperatingPoint): number => trueSparsity - predictedSparsity;

/** With what a token then takes at the required recall, in seconds. */
type SizedSvd = SizedPredictor & { cost: number; point: OperatingPoint };

/** The svd of a rank in the type that costs least at the required recall. */
async function bestSvdOfRank(input: LayerInput, moments: Float64Array, rank: number) {
  const { samples, gate, sizing } = input;
  const { nNeurons, dim } = samples;
  const { threads, seed } = sizing;
  const { u, v } = await native().lowRank(gate.values, moments, { nNeurons, dim, rank, seed, threads });
  const raw = await svdParts(samples, rank, u, v, new Float32Array(nNeurons), "f16");
  const { scale, bias } = await fitScores(samples, gate, tensorsOf("svd", rank, raw, samples), threads);
  const fitted = scaled(u, scale);
  const found: SizedSvd[] = [];
  for (const [i, dtype] of sizing.dtypes.entries()) {
    const tensors = await svdParts(samples, rank, fitted, v, bias, dtype);
    const bytes = bytesIn(tensors);
    // Of types that are all too large, the last is the smallest.
    if (bytes > sizing.maxBytes && i + 1 < sizing.dtypes.length) continue;
    found.push(await measured(input, { kind: "svd", rank, tensors, bytes }));
  }
  return found.reduce((a, b) => (b.cost < a.cost ? b : a));
}

async function svdParts(
  { nNeurons, dim }: RowShape,
  rank: number,
  u: Float32Array,
  v: Float32Array,
  bias: Float32Array,
  dtype: PredictorDType,
): Promise<Stored["tensors"]> {
  const [ofV, ofU] = [matrixDType(dim, dtype), matrixDType(rank, dtype)];
  return {
    "v.weight": { dtype: ofV, bytes: await encode(v, rank, dim, ofV) },
    "u.weight": { dtype: ofU, bytes: await encode(u, nNeurons, rank, ofU) },
    "u.bias": { dtype: "f32", bytes: bytesOf(bias) },
  };
}

const encode = (values: Float32Array, rows: number, cols: number, dtype: DType): Promise<Uint8Array> =>
  native().convertTensor(bytesOf(values), "f32", dtype, rows, cols, false, undefined, "fitted");

/** Rows of `matrix`, one per element of `scale`, times that. */
function scaled(matrix: Float32Array, scale: Float32Array): Float32Array {
  const cols = matrix.length / scale.length;
  const out = matrix.slice();
  scale.forEach((factor, row) => {
    for (let j = row * cols; j < (row + 1) * cols; j++) out[j]! *= factor;
  });
  return out;
}

/** Second moments of the rows to learn from. */
async function inputMoments(samples: LayerSamples, threads: number): Promise<Float64Array> {
  const { dim } = samples;
  const moments = new Float64Array((dim + 1) ** 2);
  for (const index of samples.chunks.keys()) {
    await native().addMoments((await samples.chunk(index)).hidden, moments, { dim, threads });
  }
  return moments;
}

/** Fits raw scores to the gate's outputs on rows to learn from. */
async function fitScores(
  samples: LayerSamples,
  gate: GateWeights,
  raw: PredictorTensor[],
  threads: number,
): Promise<ScoreFit> {
  const rows = await samples.chunk(0);
  const [scores, outputs] = [scorer(samples, raw, threads), scorer(samples, gate.exactly, threads)];
  const fitter = new ScoreFitter(samples.nNeurons);
  for (const index of steps(Math.min(FIT_ROWS, rows.rows))) {
    const contributions = rows.contributions.subarray(
      index[0]! * samples.nNeurons,
      (index[0]! + index.length) * samples.nNeurons,
    );
    const raws = await scores.scores(rows.hidden, index);
    fitter.add(raws, await outputs.scores(rows.hidden, index), contributions);
  }
  return fitter.fit();
}

function* steps(rows: number): Generator<Int32Array> {
  for (let at = 0; at < rows; at += STEP_ROWS) {
    yield Int32Array.from({ length: Math.min(STEP_ROWS, rows - at) }, (_, i) => at + i);
  }
}

/** A predictor as the engine computes it. */
export function scorer({ dim, nNeurons }: RowShape, tensors: readonly PredictorTensor[], threads: number): Scorer {
  return { scores: (hidden, rows) => native().predictorScores(tensors, hidden, rows, { dim, nNeurons, threads }) };
}

/** `parts` as the engine takes them. */
export function tensorsOf(kind: PredictorKind, rank: number, parts: Stored["tensors"], shape: RowShape) {
  return predictorTensors(shape, rank, kind).map(({ name, shape: sizes }): PredictorTensor => {
    const { dtype, bytes } = parts[name]!;
    return { name, shape: sizes, dtype, bytes };
  });
}

/** A predictor's points on the held-out rows, and what it costs at the required recall. */
async function measured({ samples, sizing }: LayerInput, stored: Stored): Promise<SizedSvd> {
  const tensors = tensorsOf(stored.kind, stored.rank, stored.tensors, samples);
  const curve = await measureCurve(samples, scorer(samples, tensors, sizing.threads), samples.heldout);
  const point = curve.at(sizing.recall);
  const cost = sizing.prices.at(sizing.prices.predictor(stored), point).seconds;
  return { stored, points: curve.points(RECALLS), cost, point };
}
