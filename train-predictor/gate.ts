import { PiError } from "../formats/errors.ts";
import type { QualityReport } from "../formats/predictors.ts";
import type { StageContext } from "../io/progress.ts";
import { allocate, expectedLoss, type Candidates } from "./allocate.ts";
import { miss, type OperatingPoint } from "./curve.ts";

/** Tokens of held-out text that decide, and that sensitivities are measured on, in whole windows spread over the corpus. */
const GATE_TOKENS = 16384;
const PROBE_TOKENS = 2048;

/** How often the expected loss may be halved before the gate gives up. */
const ROUNDS = 8;

/** Halvings between what passed and what did not, or twice what passed. */
const REFINEMENTS = 2;

/** Layers are probed alone, or next to each other in as many groups. */
const MAX_PROBES = 16;

/** Misses of the layers that are probed: many enough to be seen. */
const PROBE_MISS = 0.02;

/** A ratio this near to 1 with no neuron missed is 1: there is no shortlist. */
const EXACT = 1e-4;

/** How the divergence grows with the misses, where it cannot be measured; and what is believed. */
const EXPONENTS = { usual: 1.5, lowest: 1, highest: 2 };

export interface Limits {
  /** Perplexity with predictors over perplexity without. */
  maxPerplexityRatio: number;
  /** Contribution-weighted recall, mean over layers. */
  recall: number;
}

/** Quality with these points' thresholds, on about so many tokens. */
export type Measure = (points: readonly OperatingPoint[], tokens: number) => Promise<QualityReport>;

export interface Passed<T> {
  layers: T[];
  points: OperatingPoint[];
  quality: QualityReport;
}

/** What the gate needs of a layer, besides its sensitivity. */
export type Layer = Omit<Candidates, "sensitivity">;

/**
 * Chooses every layer's threshold so that a token takes the least time while the model's quality, measured on held-out text,
 * holds: layers share one price of quality (`allocate`), and the sum that they may lose is searched by measuring. A
 * layer's own recall is neither goal nor knob. `resize` is asked for layers whose predictor was sized for another
 * recall than it gets. The ratio may be as far below 1 as above: a model that is surer by mistake is no better. A
 * shortlist of the head is not the predictors' doing: the ratio with no neuron missed stands for 1. Throws `E_QUALITY`.
 */
export async function passGate<T extends Layer>(
  start: readonly T[],
  limits: Limits,
  measureWith: (layers: readonly T[]) => Measure,
  resize: (layers: readonly T[], points: readonly OperatingPoint[]) => Promise<T[]>,
  name: string,
  context: StageContext,
): Promise<Passed<T>> {
  const { sensitivities, exponent, base } = await probe(start, limits, measureWith(start));
  const attempt = async (sized: readonly T[], loss: number, mayResize: boolean): Promise<Passed<T>> => {
    const choose = (layers: readonly T[]) => allocate(withSensitivity(layers, sensitivities), loss, exponent);
    const layers = mayResize ? await resize(sized, choose(sized)) : [...sized];
    const points = choose(layers);
    return { layers, points, quality: await measureWith(layers)(points, GATE_TOKENS) };
  };
  if (base !== 1) {
    context.warn(
      `perplexity ratio ${base.toFixed(5)} with no neuron missed (a shortlist of the head): the limit counts from there`,
    );
  }
  const passes = ({ quality: { perplexityRatio, weightedRecall } }: Passed<T>) => {
    const deviation = Math.abs(Math.log(perplexityRatio / base));
    return deviation <= Math.log(limits.maxPerplexityRatio) && weightedRecall >= limits.recall;
  };

  let loss = lossOfRecall(withSensitivity(start, sensitivities), limits.recall, exponent);
  let tried = await attempt(start, loss, true);
  let failed = Infinity;
  for (let round = 1; !passes(tried); round++, failed = loss, loss /= 2) {
    const { perplexityRatio, weightedRecall } = tried.quality;
    const found = `perplexity ratio ${perplexityRatio.toFixed(5)} at weighted recall ${weightedRecall.toFixed(5)}`;
    const wanted = `within ${limits.maxPerplexityRatio} of ${base.toFixed(5)} at ${limits.recall}`;
    if (round === ROUNDS) {
      throw new PiError("E_QUALITY", `${name}: expected a perplexity ratio ${wanted}, got ${found}`);
    }
    context.warn(`${found}, wanted ${wanted}: asking for fewer misses`);
    tried = await attempt(tried.layers, loss / 2, round % 2 === 0);
  }
  // What passed at once may have been asked for too little.
  failed = Math.min(failed, 2 * loss);
  for (let i = 0; i < REFINEMENTS; i++) {
    const between = Math.sqrt(loss * failed);
    const better = await attempt(tried.layers, between, false);
    if (passes(better)) [tried, loss] = [better, between];
    else failed = between;
  }
  return tried;
}

function withSensitivity<T extends Layer>(layers: readonly T[], sensitivities: readonly number[]): Candidates[] {
  return layers.map((layer, i) => ({
    points: layer.points,
    seconds: (point) => layer.seconds(point),
    sensitivity: sensitivities[i]!,
  }));
}

/** The most that layers may be expected to lose if their mean recall on the curves is to be `recall`. */
function lossOfRecall(layers: readonly Candidates[], recall: number, exponent: number): number {
  const uniform = layers.map(({ points }) => atRecall(points, recall));
  let [low, high] = [0, 16 * expectedLoss(layers, uniform, exponent)];
  for (let i = 0; i < 40; i++) {
    const middle = (low + high) / 2;
    const points = allocate(layers, middle, exponent);
    if (points.reduce((sum, point) => sum + miss(point), 0) / points.length <= 1 - recall) low = middle;
    else high = middle;
  }
  return low;
}

/** The sparsest point of at least this recall. */
function atRecall(points: readonly OperatingPoint[], recall: number): OperatingPoint {
  return points.find(({ weightedRecall }) => weightedRecall >= recall) ?? points.at(-1)!;
}

/** The point to probe a layer at: where none that misses so little is worth having, the one that misses least of all that do. */
function probePoint(points: readonly OperatingPoint[]): OperatingPoint {
  const wanted = atRecall(points, 1 - PROBE_MISS);
  return miss(wanted) > 0 ? wanted : (points.findLast((point) => miss(point) > 0) ?? wanted);
}

/**
 * What a miss of each layer does to the model: with all other layers missing nothing, the divergence that comes on top
 * of that of the head. How it grows with the misses is measured on all layers together.
 */
async function probe<T extends Layer>(layers: readonly T[], { recall }: Limits, measure: Measure) {
  const whole = layers.map(({ points }) => points.at(-1)!);
  const { meanKl: floor, perplexityRatio } = await measure(whole, PROBE_TOKENS);
  const added = async (points: readonly OperatingPoint[]) => (await measure(points, PROBE_TOKENS)).meanKl - floor;
  const uniform = (target: number) => layers.map(({ points }) => atRecall(points, target));
  const meanMiss = (points: readonly OperatingPoint[]) => points.reduce((sum, p) => sum + miss(p), 0);
  const [many, few] = [uniform(recall - 1.5 * (1 - recall)), uniform(1 - (1 - recall) / 2)];
  const measured = Math.log((await added(many)) / (await added(few))) / Math.log(meanMiss(many) / meanMiss(few));
  const exponent = Number.isFinite(measured)
    ? Math.min(EXPONENTS.highest, Math.max(EXPONENTS.lowest, measured))
    : EXPONENTS.usual;

  const groups = Math.min(MAX_PROBES, layers.length);
  const sensitivities: number[] = [];
  for (let group = 0; group < groups; group++) {
    const inside = (layer: number) => Math.floor((layer * groups) / layers.length) === group;
    const points = layers.map((layer, i) => (inside(i) ? probePoint(layer.points) : whole[i]!));
    const missed = points.reduce((sum, point, i) => sum + (inside(i) ? miss(point) ** exponent : 0), 0);
    const kl = await added(points);
    // A layer that seems to cost nothing may still cost a little.
    const sensitivity = missed > 0 ? Math.max(kl, 1e-7) / missed : 1;
    layers.forEach((_, i) => inside(i) && sensitivities.push(sensitivity));
  }
  const exact = Math.abs(perplexityRatio - 1) < EXACT;
  return { sensitivities, exponent, base: exact ? 1 : (await measure(whole, GATE_TOKENS)).perplexityRatio };
}
