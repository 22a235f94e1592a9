import type { QualityReport } from "../formats/predictors.ts";
import type { StageContext } from "../io/progress.ts";
import { openModel } from "../model/open.ts";
import { measureQuality, qualityTokens } from "../model/quality.ts";

/** A converted model with predictors beside it. */
export interface Where {
  model: string;
  predictors: string;
  threads: number;
}

/** Runs a model in predictor mode with one threshold a layer, and compares it with the same weights dense. */
export async function measureThresholds(
  { model, predictors, threads }: Where,
  thresholds: Float32Array,
  windows: readonly Int32Array[],
  context: StageContext,
): Promise<QualityReport> {
  const contextTokens = qualityTokens(Math.max(...windows.map((tokens) => tokens.length)), 1);
  const opened = await openModel(model, { predictors, threads, contextTokens, verify: false });
  try {
    opened.engine.setThresholds(thresholds);
    const measured = await measureQuality(opened, windows, "predictor", context);
    const { bytesPerToken: _, bytesPerTokenDense: __, ...quality } = measured;
    return quality;
  } finally {
    opened.close();
  }
}

/** Every n-th window, so that about `tokens` tokens remain. */
export function spread(windows: readonly Int32Array[], tokens: number): Int32Array[] {
  const all = windows.reduce((sum, window) => sum + window.length, 0);
  const stride = Math.max(1, Math.round(all / tokens));
  return windows.filter((_, i) => i % stride === 0);
}
