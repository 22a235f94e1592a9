import { type Command, Option } from "commander";
import { convert } from "../convert/convert.ts";
import { WEIGHT_DTYPES, type WeightDType } from "../formats/dtypes.ts";
import type { StageContext } from "../io/progress.ts";
import { isSparse } from "../model/config.ts";
import { readModelFile } from "../model/model-file.ts";
import { place } from "../place/place.ts";
import { profile } from "../profile/profile.ts";
import { trainPredictors } from "../train-predictor/train-predictor.ts";
import { formatSeconds, printJson, printTable, stageContext } from "./output.ts";
import { addPlacementOptions, placeOptions, printPlacement, type PlacementFlags } from "./place.ts";
import { parseInteger } from "./sizes.ts";

interface Options extends PlacementFlags {
  corpus: string[];
  field: string;
  tokens?: number;
  dtype: WeightDType;
  output: string;
  dir?: string;
  threads?: number;
  force?: boolean;
  json?: boolean;
}

export function define(command: Command): void {
  command
    .argument("<SRC>", "Hugging Face folder, or hub id: org/name[@revision]")
    .requiredOption("--corpus <PATH...>", "text, JSONL and Parquet files to profile, directories or patterns of them")
    .option("--field <NAME>", "field of JSON lines, column of Parquet files", "text")
    .option("--tokens <N>", "profile at most so many tokens (default: the whole corpus)", parseInteger(1))
    .addOption(new Option("--dtype <TYPE>", "type of the weight matrices").choices(WEIGHT_DTYPES).default("f16"));
  addPlacementOptions(command);
  command
    .requiredOption("-o, --output <X.pi>", "artifact to write")
    .option("--dir <DIR>", "working directory, kept for the next build (default: X.work beside X.pi)")
    .option("--threads <N>", "default: all cores", parseInteger(1, 1024))
    .option("--force", "run every stage even if its output is up to date")
    .option("--json", "print one JSON document")
    .action(async (source: string, options: Options) => {
      const placement = { ...placeOptions(options, command), out: options.output, force: options.force };
      const dir = options.dir ?? `${options.output.replace(/\.pi$/, "")}.work`;
      const context = stageContext();
      try {
        const timer = new StageTimer();
        await runStages(source, dir, options, timer, context);
        const placed = await timer.run("place", () => place(dir, placement, context));
        context.close();
        if (options.json) return printJson({ path: options.output, dir, seconds: timer.seconds, ...placed });
        printPlacement(placed);
        process.stdout.write("\n");
        const rows = Object.entries(timer.seconds).map(([stage, seconds]) => [stage, formatSeconds(seconds)]);
        printTable(["stage", "time"], rows);
        process.stdout.write(`${options.output}\n`);
      } finally {
        context.close();
      }
    });
}

/**
 * Everything before placement; a stage whose output is up to date returns at once, so an interrupted build goes on
 * where it stopped.
 */
async function runStages(source: string, dir: string, options: Options, timer: StageTimer, context: StageContext) {
  const { corpus, field, dtype, tokens, threads, hardware, force = false } = options;
  const shared = { force, ...(threads !== undefined && { threads }) };
  await timer.run("convert", () => convert({ source, output: dir, dtype, force }, context));
  const profiling = { ...shared, corpus, field, ...(tokens !== undefined && { tokens }) };
  await timer.run("profile", () => profile(dir, profiling, context));
  const { config } = await readModelFile(dir);
  if (isSparse(config.activation)) {
    const training = { ...shared, ...(hardware !== undefined && { hardware }) };
    await timer.run("train-predictor", () => trainPredictors(dir, training, context));
  } else context.warn(`activation ${config.activation.kind} is smooth: no predictors are trained, the FFN runs dense`);
}

/** How long each stage took. */
class StageTimer {
  readonly seconds: Record<string, number> = {};

  async run<T>(stage: string, work: () => Promise<T>): Promise<T> {
    const start = performance.now();
    const result = await work();
    this.seconds[stage] = (performance.now() - start) / 1000;
    return result;
  }
}
