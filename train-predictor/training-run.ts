import type { ConsideredPredictor, CurvePoint, PredictorKind, PredictorMetrics } from "../formats/predictors.ts";
import { canonicalJson } from "../formats/provenance.ts";
import { sha256 } from "../io/hash.ts";
import type { StageContext } from "../io/progress.ts";
import { miss, storedPoints, type OperatingPoint } from "./curve.ts";
import { choosable, frontier, type Candidate } from "./frontier.ts";
import type { Layer, Measure } from "./gate.ts";
import type { TrainingJournal } from "./journal.ts";
import { LayerWork } from "./layer-work.ts";
import type { PricedPlan } from "./plan.ts";
import { measureThresholds, spread } from "./thresholds.ts";
import { writePredictors } from "./write.ts";

/** A layer is sized anew when it is to miss this many times what it was sized for, or as many times less. */
const RESIZE = 2;

/** Misses that differ by less than this factor are the same: sizing anew would give the same rank. */
const SAME = 1.1;

/** A layer with the predictors it may get, as the gate sees it. */
export interface RunLayer extends Layer {
  /** The simplest kind first. */
  candidates: readonly Candidate[];
  /** Whose point it is. */
  owner(point: OperatingPoint): Candidate;
}

/** Sizes layers and measures them together; everything that was done before an interruption is in the journal. */
export class TrainingRun {
  readonly #plan: PricedPlan;
  readonly #journal: TrainingJournal;
  readonly #context: StageContext;
  /** The layers whose predictors are in the candidate file. */
  #candidate: string | undefined;

  constructor(plan: PricedPlan, journal: TrainingJournal, context: StageContext) {
    this.#plan = plan;
    this.#journal = journal;
    this.#context = context;
  }

  /** Every layer with its candidates, sized for the run's recall, one after the other: the samples of one layer are open at a time. */
  async sizeAll(): Promise<RunLayer[]> {
    const { model, recall, maxBytes } = this.#plan;
    const layers: RunLayer[] = [];
    for (let layer = 0; layer < model.config.nLayers; layer++) {
      const left = maxBytes - layers.reduce((sum, { candidates }) => sum + largest(candidates), 0);
      layers.push(await this.#size(layer, recall, left / (model.config.nLayers - layer)));
    }
    return layers;
  }

  /**
   * `layers`, with those trained anew whose trained predictor is to miss much more or less than it was sized for, or whose
   * recall now takes more neurons in vain than is allowed.
   */
  async resize(layers: readonly RunLayer[], points: readonly OperatingPoint[]): Promise<RunLayer[]> {
    const sized = [...layers];
    for (const [i, layer] of layers.entries()) {
      const current = layer.owner(points[i]!);
      const recall = current.finished.kind === "mlp" ? this.#newRecall(current, points[i]!) : undefined;
      if (recall === undefined) continue;
      const others = sized.reduce((sum, { candidates }, j) => sum + (j === i ? 0 : largest(candidates)), 0);
      const allowed = Math.max(current.finished.bytes, this.#plan.maxBytes - others);
      const [again] = (await this.#size(i, recall, allowed, ["mlp"], current.finished.rank)).candidates;
      const rest = layer.candidates.filter((candidate) => candidate !== current);
      sized[i] = runLayer([...rest, again!]);
    }
    return sized;
  }

  /** The recall to train a layer anew for that is to run at `point`; undefined when it is good enough as it is. */
  #newRecall({ recall }: Candidate, point: OperatingPoint): number | undefined {
    const factor = Math.max(miss(point), 1e-6) / (1 - recall);
    const far = factor > RESIZE || factor < 1 / RESIZE;
    const inVain = point.trueSparsity - point.predictedSparsity > this.#plan.maxGap && factor < 1 / SAME;
    return far || inVain ? Math.min(point.weightedRecall, 1 - 1e-5) : undefined;
  }

  /** Measures points of these layers' predictors on held-out text. */
  measureWith(layers: readonly RunLayer[]): Measure {
    const { dir, heldout, threads } = this.#plan;
    return (points, tokens) => {
      const chosen = layers.map((layer, i) => layer.owner(points[i]!));
      const thresholds = Float32Array.from(points, ({ threshold }) => threshold);
      const what = { layers: chosen.map(({ key }) => key), thresholds: [...thresholds], tokens };
      return this.#journal.measured(sha256(canonicalJson(what)), async () => {
        const predictors = await this.#writeCandidate(chosen, points);
        return measureThresholds(
          { model: dir, predictors, threads },
          thresholds,
          spread(heldout, tokens),
          this.#context,
        );
      });
    };
  }

  /** `layer` with predictors of `kinds` for this recall. */
  async #size(
    layer: number,
    recall: number,
    maxBytes: number,
    kinds: readonly PredictorKind[] = this.#plan.kinds,
    start?: number,
  ): Promise<RunLayer> {
    this.#context.signal.throwIfAborted();
    const { prices } = this.#plan;
    const key = (kind: PredictorKind) =>
      `layer ${layer}, ${kind}, recall ${recall.toFixed(6)}, at most ${Math.floor(maxBytes)} bytes`;
    const work = new LayerWork(this.#plan, this.#journal, this.#context, layer);
    try {
      const candidates: Candidate[] = [];
      for (const kind of kinds) {
        const finished = this.#journal.layer(key(kind)) ?? (await work.make(kind, recall, maxBytes, key(kind), start));
        const predictor = prices.predictor(finished);
        const cost = (point: OperatingPoint) => prices.at(predictor, point);
        candidates.push({ key: key(kind), recall, finished, cost, allowed: finished.bytes <= maxBytes });
      }
      return runLayer(candidates);
    } finally {
      await work.close();
    }
  }

  /** A file of these predictors that has yet to be measured. */
  async #writeCandidate(chosen: readonly Candidate[], points: readonly OperatingPoint[]): Promise<string> {
    const path = this.#journal.path("candidate");
    const candidate = chosen.map(({ key }) => key).join("\n");
    if (this.#candidate === candidate) return path;
    const metrics = chosen.map((taken, i) => metricsOf(taken, points[i]!));
    await writePredictors(path, this.#plan, this.#journal, chosen, { metrics }, this.#context.signal);
    this.#candidate = candidate;
    return path;
  }
}

function runLayer(candidates: readonly Candidate[]): RunLayer {
  const { points, owner } = frontier(choosable(candidates));
  return { candidates, points, owner, seconds: (point) => owner(point).cost(point).seconds };
}

const largest = (candidates: readonly Candidate[]): number =>
  Math.max(...choosable(candidates).map(({ finished }) => finished.bytes));

/** What is stored of a layer that runs at `point`. */
export function metricsOf({ finished, cost }: Candidate, point: OperatingPoint): PredictorMetrics {
  const { kind, rank, bytes, points } = finished;
  const curve = storedPoints(points).map((stored): CurvePoint => {
    const { weightedRecall, predictedSparsity, threshold } = stored;
    return { weightedRecall, predictedSparsity, threshold, secondsPerToken: secondsAt(cost, stored) };
  });
  return { kind, rank, ...point, bytes, secondsPerToken: secondsAt(cost, point), curve };
}

/** Rounded: what was measured is not exact. */
const secondsAt = (cost: Candidate["cost"], point: OperatingPoint): number =>
  Number(cost(point).seconds.toPrecision(4));

/** What is reported of predictors that a layer might have got. */
export function consideredOf({ candidates }: RunLayer): ConsideredPredictor[] {
  return candidates.map(({ finished: { kind, rank, bytes, points }, cost }) => {
    const curve = storedPoints(points).map((point) => {
      const { weightedRecall, predictedSparsity } = point;
      const bytesPerToken = Math.round(cost(point).bytes);
      return { weightedRecall, predictedSparsity, bytesPerToken, secondsPerToken: secondsAt(cost, point) };
    });
    return { kind, rank, bytes, curve };
  });
}
