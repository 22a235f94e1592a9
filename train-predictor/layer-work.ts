import type { PredictorKind } from "../formats/predictors.ts";
import { samplesPath } from "../io/profile-files.ts";
import type { StageContext } from "../io/progress.ts";
import { readGate, type GateWeights } from "./gate-weights.ts";
import type { FinishedLayer, TrainingJournal } from "./journal.ts";
import type { PricedPlan } from "./plan.ts";
import { openLayerSamples, type LayerSamples } from "./samples.ts";
import { sizeLayer, type Sizing } from "./size-layer.ts";
import { makeTrainingFree } from "./training-free.ts";

/** What training shows a predictor unless told otherwise: fewer samples are shown more often (docs/log.md). */
const ROWS_SHOWN = 240_000;
const MIN_EPOCHS = 4;

/** Makes predictors of one layer; its samples are opened when first needed, and its gate likewise. */
export class LayerWork {
  readonly #plan: PricedPlan;
  readonly #journal: TrainingJournal;
  readonly #context: StageContext;
  readonly #layer: number;
  #samples: LayerSamples | undefined;
  #gate: GateWeights | undefined;

  constructor(plan: PricedPlan, journal: TrainingJournal, context: StageContext, layer: number) {
    this.#plan = plan;
    this.#journal = journal;
    this.#context = context;
    this.#layer = layer;
  }

  /** A predictor of `kind` for this recall; `start` is the rank to begin at. */
  async make(
    kind: PredictorKind,
    recall: number,
    maxBytes: number,
    key: string,
    start?: number,
  ): Promise<FinishedLayer> {
    this.#context.signal.throwIfAborted();
    const { model, epochs, seed } = this.#plan;
    const samples = await this.#open();
    const rows = samples.chunks.reduce((a, b) => a + b, 0);
    const sizing: Sizing = {
      ...this.#plan,
      recall,
      maxBytes,
      epochs: epochs ?? Math.max(MIN_EPOCHS, Math.round(ROWS_SHOWN / rows)),
      seed: seed + this.#layer,
    };
    const what = `layer ${this.#layer} of ${model.config.nLayers}`;
    if (kind === "mlp") {
      const attempts = this.#journal.attempts(key);
      return this.#journal.finish(
        key,
        await sizeLayer(samples, sizing, `train ${what}`, this.#context, attempts, start),
      );
    }
    const { nLayers } = model.config;
    this.#context.progress({ label: `fit ${what}, ${kind}`, done: this.#layer, total: nLayers, unit: "steps" });
    this.#gate ??= await readGate(model, this.#layer);
    return this.#journal.finish(key, await makeTrainingFree(kind, { samples, gate: this.#gate, sizing }));
  }

  async close(): Promise<void> {
    await this.#samples?.close();
  }

  async #open(): Promise<LayerSamples> {
    const { dir, model, samples: maxRows, memory } = this.#plan;
    const scratch = this.#journal.path("rows");
    this.#samples ??= await openLayerSamples(samplesPath(dir, this.#layer), model.weights, maxRows, scratch, memory);
    return this.#samples;
  }
}
