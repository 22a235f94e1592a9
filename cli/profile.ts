import { type Command, InvalidArgumentError } from "commander";
import type { Activations } from "../formats/activations.ts";
import type { StageContext } from "../io/progress.ts";
import { importActivations, type ImportActivationsOptions } from "../profile/import.ts";
import { mergeProfiles } from "../profile/merge.ts";
import { profile, type ProfileOptions } from "../profile/profile.ts";
import type { Shard } from "../profile/sampling.ts";
import { summarise } from "../profile/summary.ts";
import { formatNumber, printJson, printTable, stageContext } from "./output.ts";
import { parseInteger } from "./sizes.ts";

type Options = Partial<ProfileOptions & ImportActivationsOptions> & { merge?: string[]; json?: boolean };

/** Options that mean nothing when counts are imported. */
const OF_PROFILING = ["corpus", "merge", "field", "samples", "window", "seed", "shard", "threads"];

export function define(command: Command): void {
  command
    .argument("[DIR]", "directory of a converted model")
    .option("--corpus <PATH...>", "text, JSONL and Parquet files (also .gz), directories or patterns of them")
    .option("--field <NAME>", "field of JSON lines, column of Parquet files", "text")
    .option(
      "--tokens <N>",
      "stop after so many tokens (default: the whole corpus); with --import: as many were counted",
      parseInteger(1),
    )
    .option("--samples <N>", "rows to keep for training predictors, on average", parseInteger(0), 20_000)
    .option("--window <N>", "tokens of context, at most the model's", parseInteger(2), 512)
    .option("--seed <N>", "chooses other samples and held-out windows", parseInteger(0), 0)
    .option("--shard <I/N>", "profile only part I of N of the corpus' documents; see --merge", parseShard)
    .option("--threads <N>", "default: all cores", parseInteger(1, 1024))
    .option("-o, --out <DIR>", "where the results go (default: DIR)")
    .option("--merge <PATH...>", "add up profiles (directories or activations.arrow files) instead of making one")
    .option(
      "--import <DIR>",
      "take counts that were made elsewhere: activation_0.pt, activation_1.pt, … as of PowerInfer",
    )
    .option("--force", "profile again even if the results are up to date")
    .option("--json", "print one JSON document")
    .action(async (dir: string | undefined, options: Options) => {
      const context = stageContext();
      try {
        if (options.merge && options.import === undefined) {
          if (dir !== undefined || options.corpus) command.error("error: --merge takes neither DIR nor --corpus");
          if (!options.out) command.error("error: --merge needs -o");
          await runMerge(options.merge, options.out, options.json, context);
        } else if (options.import !== undefined) {
          if (dir === undefined) command.error("error: missing DIR, the directory of a converted model");
          const other = OF_PROFILING.find((name) => command.getOptionValueSource(name) === "cli");
          if (other) command.error(`error: --import does not go with --${other}`);
          await runImport(dir, { ...options, import: options.import }, context);
        } else {
          if (dir === undefined) command.error("error: missing DIR, the directory of a converted model");
          if (!options.corpus) command.error("error: missing --corpus");
          await runProfile(dir, { ...options, corpus: options.corpus }, context);
        }
      } finally {
        context.close();
      }
    });
}

async function runProfile(dir: string, options: Options & ProfileOptions, context: StageContext): Promise<void> {
  const { json, merge: _, import: __, ...settings } = options;
  const { activations, upToDate, tokensPerSecond } = await profile(dir, settings, context);
  if (json) printJson({ upToDate, tokensPerSecond, ...describe(activations) });
  else print(activations, upToDate ? "up to date" : `${formatNumber(tokensPerSecond)} tokens/s`);
}

async function runImport(
  dir: string,
  options: Options & ImportActivationsOptions,
  context: StageContext,
): Promise<void> {
  const { import: folder, tokens, out, force, json } = options;
  const given = { import: folder, ...(tokens && { tokens }), ...(out && { out }), ...(force && { force }) };
  const { activations, upToDate } = await importActivations(dir, given, context);
  if (json) printJson({ upToDate, ...describe(activations) });
  else print(activations, upToDate ? "up to date" : "imported");
}

async function runMerge(parts: string[], out: string, json: boolean | undefined, context: StageContext): Promise<void> {
  const activations = await mergeProfiles(parts, out, context);
  if (json) printJson(describe(activations));
  else print(activations, `${parts.length} profiles merged`);
}

/** What scripts may want of a profile. */
function describe(activations: Activations) {
  const { tokens, heldoutTokens, sampleRate, corpora } = activations;
  return { tokens, heldoutTokens, sampleRate, corpora, layers: summarise(activations) };
}

function print(activations: Activations, how: string): void {
  const percent = (share: number) => `${formatNumber(100 * share)} %`;
  const rows = summarise(activations).map(({ idle, hot80, never }, layer) => {
    return [String(layer), percent(idle), percent(hot80), percent(never)];
  });
  printTable(["layer", "idle", "neurons giving 80 %", "never active"], rows);
  const { tokens, heldoutTokens } = activations;
  process.stdout.write(`${formatNumber(tokens)} tokens profiled, ${formatNumber(heldoutTokens)} held out, ${how}\n`);
}

/** "2/8" as index 1 of 8. */
function parseShard(text: string): Shard {
  const [, index, count] = /^(\d+)\/(\d+)$/.exec(text)?.map(Number) ?? [];
  if (!index || !count || index > count)
    throw new InvalidArgumentError("Expected a part such as 1/8, from 1/N to N/N.");
  return { index: index - 1, count };
}
