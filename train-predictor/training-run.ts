import type { PredictorMetrics } from "../formats/predictors.ts";
import { canonicalJson } from "../formats/provenance.ts";
import { sha256 } from "../io/hash.ts";
import { samplesPath } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { miss, storedCurve, type OperatingPoint } from "./curve.ts";
import type { Layer, Measure } from "./gate.ts";
import type { FinishedLayer, TrainingJournal } from "./journal.ts";
import type { Plan } from "./plan.ts";
import { openLayerSamples } from "./samples.ts";
import { ffnBytes, sizeLayer } from "./size-layer.ts";
import { measureThresholds, spread } from "./thresholds.ts";
import { writePredictors } from "./write.ts";

/** What training shows a predictor unless told otherwise: fewer samples are shown more often (docs/log.md). */
const ROWS_SHOWN = 240_000;
const MIN_EPOCHS = 4;

/** A layer is sized anew when it is to miss this many times what it was sized for, or as many times less. */
const RESIZE = 2;

/** Misses that differ by less than this factor are the same: sizing anew would give the same rank. */
const SAME = 1.1;

/** A sized layer, as the gate sees it. */
export interface RunLayer extends Layer {
  /** What the journal calls it. */
  key: string;
  /** The recall its predictor was sized for. */
  recall: number;
  finished: FinishedLayer;
}

/** Sizes layers and measures them together; everything that was done before an interruption is in the journal. */
export class TrainingRun {
  readonly #plan: Plan;
  readonly #journal: TrainingJournal;
  readonly #context: StageContext;
  /** The layers whose predictors are in the candidate file. */
  #candidate: string | undefined;

  constructor(plan: Plan, journal: TrainingJournal, context: StageContext) {
    this.#plan = plan;
    this.#journal = journal;
    this.#context = context;
  }

  /** Every layer sized for the run's recall, one after the other: the samples of one layer are open at a time. */
  async sizeAll(): Promise<RunLayer[]> {
    const { model, recall, maxBytes } = this.#plan;
    const layers: RunLayer[] = [];
    for (let layer = 0; layer < model.config.nLayers; layer++) {
      const left = maxBytes - layers.reduce((sum, { finished }) => sum + finished.bytes, 0);
      layers.push(await this.#size(layer, recall, left / (model.config.nLayers - layer)));
    }
    return layers;
  }

  /**
   * `layers`, with those sized anew that are to miss much more or less than they were sized for, or whose recall now
   * takes more neurons in vain than is allowed.
   */
  async resize(layers: readonly RunLayer[], points: readonly OperatingPoint[]): Promise<RunLayer[]> {
    const sized = [...layers];
    for (const [i, layer] of layers.entries()) {
      const recall = this.#newRecall(layer, points[i]!);
      if (recall === undefined) continue;
      const others = sized.reduce((sum, { finished }, j) => sum + (j === i ? 0 : finished.bytes), 0);
      const allowed = Math.max(layer.finished.bytes, this.#plan.maxBytes - others);
      sized[i] = await this.#size(i, recall, allowed, layer.finished.rank);
    }
    return sized;
  }

  /** The recall to size a layer anew for that is to run at `point`; undefined when it is good enough as it is. */
  #newRecall(layer: RunLayer, point: OperatingPoint): number | undefined {
    const factor = Math.max(miss(point), 1e-6) / (1 - layer.recall);
    const far = factor > RESIZE || factor < 1 / RESIZE;
    const inVain = point.trueSparsity - point.predictedSparsity > this.#plan.maxGap && factor < 1 / SAME;
    return far || inVain ? Math.min(point.weightedRecall, 1 - 1e-5) : undefined;
  }

  /** Measures thresholds of these layers' predictors on held-out text. */
  measureWith(layers: readonly RunLayer[]): Measure {
    const { dir, heldout, threads } = this.#plan;
    return (points, tokens) => {
      const thresholds = Float32Array.from(points, ({ threshold }) => threshold);
      const what = { layers: layers.map(({ key }) => key), thresholds: [...thresholds], tokens };
      return this.#journal.measured(sha256(canonicalJson(what)), async () => {
        const predictors = await this.#writeCandidate(layers, points);
        return measureThresholds(
          { model: dir, predictors, threads },
          thresholds,
          spread(heldout, tokens),
          this.#context,
        );
      });
    };
  }

  async #size(layer: number, recall: number, maxBytes: number, start?: number): Promise<RunLayer> {
    this.#context.signal.throwIfAborted();
    const key = `layer ${layer}, recall ${recall.toFixed(6)}, at most ${Math.floor(maxBytes)} bytes`;
    const finished = this.#journal.layer(key) ?? (await this.#train(layer, recall, maxBytes, key, start));
    const { model, neuron } = this.#plan;
    const bytes = (point: OperatingPoint) => ffnBytes(finished.bytes, model.config.nNeurons, neuron, point);
    return { key, recall, finished, points: finished.points, bytes };
  }

  async #train(layer: number, recall: number, maxBytes: number, key: string, start?: number): Promise<FinishedLayer> {
    const { dir, model, samples: maxRows, memory, epochs, seed } = this.#plan;
    const scratch = this.#journal.path("rows");
    const samples = await openLayerSamples(samplesPath(dir, layer), model.weights, maxRows, scratch, memory);
    try {
      const rows = samples.chunks.reduce((a, b) => a + b, 0);
      const sizing = {
        ...this.#plan,
        recall,
        maxBytes,
        epochs: epochs ?? Math.max(MIN_EPOCHS, Math.round(ROWS_SHOWN / rows)),
        seed: seed + layer,
      };
      const label = `train layer ${layer} of ${model.config.nLayers}`;
      const sized = await sizeLayer(samples, sizing, label, this.#context, this.#journal.attempts(key), start);
      return await this.#journal.finish(key, sized);
    } finally {
      await samples.close();
    }
  }

  /** A file of these layers' predictors that has yet to be measured. */
  async #writeCandidate(layers: readonly RunLayer[], points: readonly OperatingPoint[]): Promise<string> {
    const path = this.#journal.path("candidate");
    const candidate = layers.map(({ key }) => key).join("\n");
    if (this.#candidate === candidate) return path;
    const metrics = layers.map(({ finished }, i) => metricsOf(finished, points[i]!));
    await writePredictors(path, this.#plan, this.#journal, layers, { metrics }, this.#context.signal);
    this.#candidate = candidate;
    return path;
  }
}

/** What is stored of a layer that runs at `point`. */
export function metricsOf({ rank, bytes, points }: FinishedLayer, point: OperatingPoint): PredictorMetrics {
  return { rank, ...point, bytes, curve: storedCurve(points) };
}
