import { type Command, Option } from "commander";
import {
  PREDICTOR_DTYPES,
  trainPredictors,
  type TrainPredictorOptions,
  type TrainPredictorResult,
} from "../train-predictor/train-predictor.ts";
import { runImport } from "./import-predictors.ts";
import { formatBytes, formatNumber, printJson, printTable, stageContext } from "./output.ts";
import { parseInteger, parseNumber } from "./sizes.ts";

type Options = TrainPredictorOptions & { import?: string; json?: boolean };

export function define(command: Command): void {
  command
    .argument("<DIR>", "directory of a profiled model")
    .option("--recall <R>", "contribution-weighted recall to start from", parseNumber(0.5, 0.99999), 0.995)
    .option(
      "--max-perplexity-ratio <R>",
      "perplexity with predictors over perplexity dense, on held-out text",
      parseNumber(1),
      1.002,
    )
    .addOption(new Option("--dtype <TYPE>", "of the matrices").choices(["auto", ...PREDICTOR_DTYPES]).default("auto"))
    .option("--samples <N>", "sampled rows of a layer to use at most", parseInteger(16), 32768)
    .option("--epochs <N>", "passes over them (default: until 240,000 rows were shown, four at least)", parseInteger(1))
    .option("--seed <N>", "of weights and order", parseInteger(0), 0)
    .option("--threads <N>", "default: all cores", parseInteger(1, 1024))
    .option("--import <DIR>", "take predictors that were trained elsewhere: model_0.pt, model_1.pt, … as of PowerInfer")
    .option("--force", "train again even if the predictors are up to date")
    .option("--json", "print one JSON document")
    .action(async (dir: string, { json, import: folder, ...options }: Options) => {
      if (folder !== undefined) {
        return runImport(command, dir, { ...options, import: folder, ...(json && { json }) });
      }
      const context = stageContext();
      try {
        const result = await trainPredictors(dir, options, context);
        if (json) printJson(result);
        else print(result);
      } finally {
        context.close();
      }
    });
}

function print({ path, upToDate, metrics, quality, ffnBytes }: TrainPredictorResult): void {
  const percent = (share: number) => `${formatNumber(100 * share)} %`;
  printTable(
    ["layer", "rank", "recall", "weighted", "precision", "idle", "predicted idle", "size", "FFN bytes/token"],
    metrics.map((layer, index) => [
      String(index),
      layer.rank,
      percent(layer.recall),
      percent(layer.weightedRecall),
      percent(layer.precision),
      percent(layer.trueSparsity),
      percent(layer.predictedSparsity),
      formatBytes(layer.bytes),
      `${formatBytes(ffnBytes[index]!.predictor)} of ${formatBytes(ffnBytes[index]!.dense)}`,
    ]),
  );
  const { perplexity, perplexityDense, perplexityRatio, meanKl, top1Agreement, corpus } = quality;
  process.stdout.write(
    `${path}: ${upToDate ? "up to date, " : ""}perplexity ${formatNumber(perplexity, 5)} against ` +
      `${formatNumber(perplexityDense, 5)} dense (ratio ${formatNumber(perplexityRatio, 5)}), mean KL ${formatNumber(meanKl)}, ` +
      `top-1 agreement ${percent(top1Agreement)} on ${formatNumber(corpus.tokens)} held-out tokens\n`,
  );
}
