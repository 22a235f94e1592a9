import { PiError } from "../formats/errors.ts";
import type { QualityReport } from "../formats/predictors.ts";
import type { StageContext } from "../io/progress.ts";
import { openModel } from "../model/open.ts";
import { measureQuality, qualityTokens } from "../model/quality.ts";

/** Tokens of held-out text that the gate looks at, in whole windows spread over the corpus. */
const GATE_TOKENS = 16384;

/** How often the misses may be halved before the gate gives up: a recall of 0.995 ends at 0.99992. */
const ROUNDS = 7;

export interface Gate {
  /** Perplexity with predictors over perplexity without. */
  maxPerplexityRatio: number;
  windows: readonly Int32Array[];
  threads: number;
}

/** Predictors that the gate can try and tighten. */
export interface Candidate {
  /** The converted model, and the predictors of all layers in a file. */
  model: string;
  predictors: string;
  /** Per layer, for a contribution-weighted recall. */
  thresholds(recall: number): Float32Array;
}

export interface Passed {
  recall: number;
  quality: QualityReport;
}

/**
 * Runs the model with its predictors on held-out text, asking all layers for half the misses again and again until the
 * model's perplexity is near enough to that of the same weights dense. A layer's recall is not the goal, only the knob.
 * `regrow` is asked every second time to size the predictors anew for the recall. Throws `E_QUALITY`.
 */
export async function passGate(
  start: Candidate,
  recall: number,
  gate: Gate,
  regrow: (recall: number) => Promise<Candidate>,
  context: StageContext,
): Promise<Passed> {
  const { maxPerplexityRatio: limit } = gate;
  let candidate = start;
  let quality = await tryOut(candidate, recall, gate, context);
  for (let round = 1; !(quality.perplexityRatio <= limit); round++) {
    const found = `${quality.perplexityRatio.toFixed(5)} at weighted recall ${recall.toFixed(5)}`;
    if (round === ROUNDS) {
      const { model } = candidate;
      throw new PiError(
        "E_QUALITY",
        `${model}: expected a perplexity ratio of at most ${limit} with predictors, got ${found}`,
      );
    }
    context.warn(`perplexity ratio ${found}, above ${limit}: asking for fewer misses`);
    recall = 1 - (1 - recall) / 2;
    if (round % 2 === 0) candidate = await regrow(recall);
    quality = await tryOut(candidate, recall, gate, context);
  }
  return { recall, quality };
}

async function tryOut(
  { model, predictors, thresholds }: Candidate,
  recall: number,
  { windows, threads }: Gate,
  context: StageContext,
): Promise<QualityReport> {
  const chosen = spread(windows);
  const contextTokens = qualityTokens(Math.max(...chosen.map((tokens) => tokens.length)), 1);
  const opened = await openModel(model, { predictors, threads, contextTokens, verify: false });
  try {
    opened.engine.setThresholds(thresholds(recall));
    const {
      bytesPerToken: _,
      bytesPerTokenDense: __,
      ...quality
    } = await measureQuality(opened, chosen, "predictor", context);
    return quality;
  } finally {
    opened.close();
  }
}

/** Every n-th window, so that about {@link GATE_TOKENS} tokens remain. */
function spread(windows: readonly Int32Array[]): Int32Array[] {
  const tokens = windows.reduce((sum, window) => sum + window.length, 0);
  const stride = Math.max(1, Math.round(tokens / GATE_TOKENS));
  return windows.filter((_, i) => i % stride === 0);
}
