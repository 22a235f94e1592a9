import { type Command, Option } from "commander";
import { PREDICTOR_KINDS, type QualityReport } from "../formats/predictors.ts";
import type { StageContext } from "../io/progress.ts";
import { readModelFile } from "../model/model-file.ts";
import {
  PREDICTOR_DTYPES,
  trainPredictors,
  type TrainPredictorOptions,
  type TrainPredictorResult,
} from "../train-predictor/train-predictor.ts";
import { readWindows } from "./eval-windows.ts";
import { runImport } from "./import-predictors.ts";
import {
  formatBytes,
  formatMicroseconds,
  formatNumber,
  printJson,
  printTable,
  rankText,
  stageContext,
} from "./output.ts";
import { printKinds } from "./predictor-kinds.ts";
import { parseInteger, parseNumber } from "./sizes.ts";

interface Options extends Omit<TrainPredictorOptions, "crossCorpus" | "memory" | "saveSeconds"> {
  import?: string;
  eval?: string[];
  evalTokens: number;
  field: string;
  json?: boolean;
}

const EVAL_WINDOW = 512;

export function define(command: Command): void {
  command.argument("<DIR>", "directory of a profiled model");
  addTargets(command);
  command
    .addOption(new Option("--kind <KIND>", "of the predictors").choices(["auto", ...PREDICTOR_KINDS]).default("auto"))
    .addOption(
      new Option("--dtype <TYPE>", "of the matrices of an mlp or svd")
        .choices(["auto", ...PREDICTOR_DTYPES])
        .default("auto"),
    )
    .option("--hardware <FILE>", "choose kinds and sizes for the machine described there (default: this one, measured)")
    .option("--samples <N>", "sampled rows of a layer to use, about", parseInteger(16), 32768)
    .option("--epochs <N>", "passes over them (default: until 240,000 rows were shown, four at least)", parseInteger(1))
    .option("--label-share <R>", "label active only those that hold this share of a row's contribution", parseShare, 1)
    .option("--contribution-weight <R>", "share of an active neuron's weight that follows it", parseShare, 0.5)
    .option("--eval <PATH...>", "text from elsewhere than the profile's, to measure on as well")
    .option("--eval-tokens <N>", "tokens of it to look at", parseInteger(2), 32768)
    .option("--field <NAME>", "of it: field of JSON lines, column of Parquet files", "text")
    .option("--seed <N>", "of weights and order", parseInteger(0), 0)
    .option("--threads <N>", "default: all cores", parseInteger(1, 1024))
    .option("--import <DIR>", "take predictors that were trained elsewhere: model_0.pt, model_1.pt, … as of PowerInfer")
    .option("--force", "train again even if the predictors are up to date, and forget an interrupted training")
    .option("--json", "print one JSON document")
    .action(async (dir: string, { json, import: folder, ...options }: Options) => {
      if (folder !== undefined) {
        return runImport(command, dir, { ...options, import: folder, ...(json && { json }) });
      }
      const context = stageContext();
      try {
        const result = await trainPredictors(dir, await stageOptions(dir, options, context), context);
        context.close();
        if (json) printJson(result);
        else print(result);
      } finally {
        context.close();
      }
    });
}

function addTargets(command: Command): void {
  command
    .option("--recall <R>", "contribution-weighted recall on held-out text, at least", parseNumber(0.5, 0.99999), 0.995)
    .option(
      "--max-perplexity-ratio <R>",
      "perplexity with predictors over perplexity dense, on held-out text",
      parseNumber(1),
      1.001,
    )
    .option(
      "--max-gap <R>",
      "share of a layer's neurons that may be predicted in vain, if size allows",
      parseShare,
      0.08,
    )
    .option("--max-size <R>", "bytes of all predictors over bytes of the model", parseShare, 0.08);
}

const parseShare = parseNumber(0, 1);

async function stageOptions(
  dir: string,
  { eval: corpus, evalTokens: tokens, field, ...options }: Omit<Options, "json">,
  context: StageContext,
): Promise<TrainPredictorOptions> {
  if (!corpus) return options;
  const text = { corpus, field, tokens, window: EVAL_WINDOW };
  return { ...options, crossCorpus: await readWindows(await readModelFile(dir), text, context) };
}

const percent = (share: number) => `${formatNumber(100 * share)} %`;

function print(result: TrainPredictorResult): void {
  const { path, upToDate, metrics, quality, ffn, sizeShare } = result;
  printTable(
    [
      "layer",
      "kind",
      "rank",
      "recall",
      "weighted",
      "precision",
      "idle",
      "predicted idle",
      "size",
      "FFN bytes/token",
      "time",
    ],
    metrics.map((layer, index) => [
      String(index),
      layer.kind ?? "mlp",
      rankText(layer),
      percent(layer.recall),
      `${formatNumber(100 * layer.weightedRecall, 4)} %`,
      percent(layer.precision),
      percent(layer.trueSparsity),
      percent(layer.predictedSparsity),
      formatBytes(layer.bytes),
      `${formatBytes(ffn[index]!.predictor.bytes)} of ${formatBytes(ffn[index]!.dense.bytes)}`,
      `${formatMicroseconds(ffn[index]!.predictor.seconds)} of ${formatMicroseconds(ffn[index]!.dense.seconds)}`,
    ]),
  );
  printKinds(result);
  const bytes = metrics.reduce((sum, layer) => sum + layer.bytes, 0);
  const lines = [
    `${path}: ${upToDate ? "up to date, " : ""}${formatBytes(bytes)}, ${percent(sizeShare)} of the model`,
    `held-out text   ${describeQuality(quality)}`,
    ...(quality.crossCorpus ? [`other text      ${describeQuality(quality.crossCorpus)}`] : []),
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}

/** Quality on one corpus, in a line. */
function describeQuality(quality: QualityReport): string {
  const { perplexity, perplexityDense, perplexityRatio, meanKl, p99Kl, top1Agreement, weightedRecall, corpus } =
    quality;
  return (
    `perplexity ${formatNumber(perplexity, 5)} against ${formatNumber(perplexityDense, 5)} dense ` +
    `(ratio ${formatNumber(perplexityRatio, 5)}), KL mean ${formatNumber(meanKl)}, p99 ${formatNumber(p99Kl)}, ` +
    `top-1 agreement ${percent(top1Agreement)}, weighted recall ${formatNumber(100 * weightedRecall, 4)} % ` +
    `on ${formatNumber(corpus.tokens)} tokens (${corpus.sha256.slice(0, 12)})`
  );
}
