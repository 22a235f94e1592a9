/** Where no text was profiled, predictors are measured on what the model itself says. */
import type { PredictorMetrics } from "../formats/predictors.ts";
import type { StageContext } from "../io/progress.ts";
import { forcedStep, kvTokensFor } from "../model/forced-logits.ts";
import { NEUTRAL_CHOICE } from "../model/neutral-choice.ts";
import type { OpenModel } from "../model/open.ts";
import { FFN_MODE, KV_BLOCK, type Choice } from "../native/index.ts";

/** Texts that are sampled side by side, and tokens of each. */
const TEXTS = 8;
const TOKENS = 256;

/** KV capacity in tokens that {@link ownText} needs. */
export const ownTextTokens = (): number => kvTokensFor(TOKENS, TEXTS);

/**
 * Samples texts from the dense model, each from the token that begins a text to the one that ends it, or {@link TOKENS}.
 * The same model gives the same texts. Costs as many dense steps as the longest has tokens.
 */
export async function ownText(model: OpenModel, context: StageContext): Promise<Int32Array[]> {
  const { bosToken, eosTokens, maxPositions } = model.config;
  const length = Math.min(TOKENS, maxPositions);
  const texts = Array.from({ length: TEXTS }, () =>
    Int32Array.of(bosToken ?? eosTokens[0] ?? 0, ...Array<number>(length - 1)),
  );
  const rows = Int32Array.from({ length: TEXTS }, (_, i) => i);
  const blocks = kvTokensFor(length, 1) / KV_BLOCK;
  const blockTables = Int32Array.from({ length: TEXTS * blocks }, (_, i) => i);
  const choose = Array.from(rows, (seed): Choice => ({ ...NEUTRAL_CHOICE, seed }));
  for (let at = 0; at + 1 < length; at++) {
    context.signal.throwIfAborted();
    const { tokens } = await model.engine.step({
      tokens: Int32Array.from(texts, (text) => text[at]!),
      positions: new Int32Array(TEXTS).fill(at),
      sequences: rows,
      blockTables,
      blocksPerSequence: blocks,
      modes: new Uint8Array(TEXTS).fill(FFN_MODE.dense),
      outputs: rows,
      choose,
    });
    texts.forEach((text, i) => (text[at + 1] = tokens![i]!));
    context.progress({ label: "sample text", done: (at + 1) * TEXTS, total: length * TEXTS, unit: "tokens" });
  }
  return texts.map((text) => {
    const end = text.findIndex((token, i) => i > 0 && eosTokens.includes(token));
    return end < 0 ? text : text.subarray(0, end + 1);
  });
}

/** What the predictors said of every neuron, and what was true, per layer over all tokens of `windows`. */
export async function measureLayers(
  { engine, config }: OpenModel,
  windows: readonly Int32Array[],
  signal: AbortSignal,
): Promise<Omit<PredictorMetrics, "rank" | "threshold" | "bytes">[]> {
  engine.setRecallTracking(true);
  engine.resetStats();
  for (const window of windows) {
    signal.throwIfAborted();
    const blocks = kvTokensFor(window.length, 1) / KV_BLOCK;
    await engine.step(forcedStep(window, 0, window.length, "predictor", blocks, 0));
  }
  const { layers } = engine.stats();
  engine.setRecallTracking(false);
  return layers.map(({ rows, active, predicted, hit, weightedRecall }) => {
    const cells = Math.max(1, rows * config.nNeurons);
    return {
      recall: active > 0 ? hit / active : 1,
      weightedRecall: rows > 0 ? Math.min(1, weightedRecall / rows) : 1,
      precision: predicted > 0 ? hit / predicted : 1,
      trueSparsity: 1 - active / cells,
      predictedSparsity: 1 - predicted / cells,
    };
  });
}
