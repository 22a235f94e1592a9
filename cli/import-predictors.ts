import type { Command } from "commander";
import {
  importPredictors,
  type ImportPredictorsOptions,
  type ImportPredictorsResult,
} from "../train-predictor/import.ts";
import { formatBytes, formatNumber, printJson, printTable, stageContext } from "./output.ts";

/** Options of `pi train-predictor` that mean something when nothing is trained. */
const ACCEPTED = new Set(["import", "recall", "maxPerplexityRatio", "dtype", "samples", "threads", "force", "json"]);

/** `pi train-predictor DIR --import FOLDER`. */
export async function runImport(
  command: Command,
  dir: string,
  { json, ...options }: ImportPredictorsOptions & { json?: boolean },
): Promise<void> {
  const other = command.options.find((option) => {
    return !ACCEPTED.has(option.attributeName()) && command.getOptionValueSource(option.attributeName()) === "cli";
  });
  if (other) command.error(`error: --import does not go with ${other.long}`);
  const context = stageContext();
  try {
    const result = await importPredictors(dir, options, context);
    context.close();
    if (json) printJson(result);
    else print(result);
  } finally {
    context.close();
  }
}

function print({ path, upToDate, metrics, quality }: ImportPredictorsResult): void {
  const percent = (share: number) => `${formatNumber(100 * share)} %`;
  printTable(
    ["layer", "rank", "threshold", "recall", "weighted", "precision", "idle", "predicted idle", "size"],
    metrics.map((layer, index) => [
      String(index),
      layer.rank,
      formatNumber(layer.threshold),
      percent(layer.recall),
      percent(layer.weightedRecall),
      percent(layer.precision),
      percent(layer.trueSparsity),
      percent(layer.predictedSparsity),
      formatBytes(layer.bytes),
    ]),
  );
  const { perplexityRatio, meanKl, top1Agreement, corpus } = quality;
  process.stdout.write(
    `${path}: ${upToDate ? "up to date" : "imported"}, perplexity ratio ${formatNumber(perplexityRatio, 5)}, ` +
      `mean KL ${formatNumber(meanKl)}, top-1 agreement ${percent(top1Agreement)} on ${formatNumber(corpus.tokens)} tokens\n`,
  );
}
