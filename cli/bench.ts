import { type Command, Option } from "commander";
import { availableParallelism } from "node:os";
import { readArtifact } from "../model/artifact.ts";
import { firstToken, measureSpeed, speedTokens, type Measured, type Speed } from "../model/measure.ts";
import { checkMode, sparseModes } from "../model/modes.ts";
import { openModel, type OpenModel } from "../model/open.ts";
import { FFN_MODE, native, type FfnMode, type KvType } from "../native/index.ts";
import { kvTypeOption } from "./kv-type.ts";
import { formatBytes, formatNumber, formatSeconds, printJson, printTable, stageContext } from "./output.ts";
import { percent } from "./place.ts";
import { parseInteger } from "./sizes.ts";

interface Options {
  mode?: FfnMode[];
  context: number[];
  batch: number[];
  tokens: number;
  repeats: number;
  threads?: number;
  kvType?: KvType;
  predictors?: string;
  json?: boolean;
}

export function define(command: Command): void {
  command
    .argument("<X>", "artifact, or directory of a converted model")
    .addOption(
      new Option("--mode <MODE...>", "modes to measure (default: all the model has)").choices(Object.keys(FFN_MODE)),
    )
    .addOption(listOption("--context <N...>", "tokens in the cache when decoding begins, one or more numbers", 0, 128))
    .addOption(listOption("--batch <N...>", "sequences decoded together, one or more numbers", 1, 1))
    .option("--tokens <N>", "tokens to decode of each", parseInteger(1), 64)
    .option("--repeats <N>", "measurements of everything; the median counts", parseInteger(1), 5)
    .option("--threads <N>", "default: all cores", parseInteger(1, 1024))
    .addOption(kvTypeOption())
    .option("--predictors <FILE>", "predictors.safetensors to use with a converted model")
    .option("--json", "print one JSON document")
    .action(bench);
}

/** An option that takes whole numbers of at least `min`; `fallback` stands alone where it is not given. */
function listOption(flags: string, description: string, min: number, fallback: number): Option {
  const parse = (text: string, before: unknown) => [
    ...(before === initial ? [] : (before as number[])),
    parseInteger(min)(text),
  ];
  const initial = [fallback];
  return new Option(flags, description).argParser(parse).default(initial, `${fallback}`);
}

async function bench(path: string, options: Options, command: Command): Promise<void> {
  const context = stageContext();
  try {
    const { context: contexts, batch: batches, tokens, repeats, predictors, kvType } = options;
    const threads = options.threads ?? availableParallelism();
    const contextTokens = speedTokens({ contexts, batches, tokens });
    const started = performance.now();
    const since = () => (performance.now() - started) / 1000;
    const opening = { threads, contextTokens, ...(kvType && { kvType }), ...(predictors && { predictors }) };
    const model = await openModel(path, opening);
    try {
      const { maxPositions } = model.config;
      const longest = Math.max(...contexts) + tokens;
      if (longest > maxPositions) {
        command.error(`error: --context and --tokens: expected at most ${maxPositions} together, got ${longest}`);
      }
      const loadSeconds = since();
      await firstToken(model);
      const firstTokenSeconds = since();
      for (const mode of options.mode ?? []) checkMode(model, mode);
      const modes = options.mode ?? ["dense" as const, ...sparseModes(model)];
      const measured = await measureSpeed(model, { modes, contexts, batches, tokens, repeats, threads }, context);
      context.close();
      const run = { model: model.name, isa: native().isa().active, threads, tokens, repeats };
      const report = { ...run, loadSeconds, firstTokenSeconds, predicted: predictionOf(model), ...measured };
      if (options.json) printJson(report);
      else print(report);
    } finally {
      model.close();
    }
  } finally {
    context.close();
  }
}

/** What `pi place` predicted for the artifact and the machine it was placed for. */
function predictionOf({ file }: OpenModel) {
  if (file.format !== "artifact") return null;
  const { predicted, hardware } = readArtifact(file).placement;
  return { ...predicted, hardware: hardware.name };
}

interface Report extends Measured {
  model: string;
  isa: string;
  threads: number;
  tokens: number;
  repeats: number;
  loadSeconds: number;
  firstTokenSeconds: number;
  predicted: ReturnType<typeof predictionOf>;
}

function print(report: Report): void {
  const { predicted, speeds } = report;
  const table = (header: string[], cells: (speed: Speed) => string[]) =>
    printTable(
      ["mode", "context", "batch", ...header],
      speeds.map((speed) => [speed.mode, speed.context, speed.batch as string | number].concat(cells(speed))),
    );
  table(["prefill tok/s", "decode tok/s", "GB/s", "limit GB/s", "share of it", "limit"], (s) => [
    formatNumber(s.prefillTokensPerSecond ?? NaN),
    formatNumber(s.decodeTokensPerSecond),
    formatNumber(s.bytesPerSecond / 1e9),
    formatNumber(s.limit.bytesPerSecond / 1e9),
    percent(s.share),
    describeLimit(s),
  ]);
  process.stdout.write("\nread per decoded token\n");
  table(["in all", ...Object.keys(speeds[0]!.bytes)], (s) =>
    [s.bytesPerToken, ...Object.values(s.bytes)].map(formatBytes),
  );
  const lines = [
    "",
    `${report.model}: ${report.threads} threads, ${report.isa}, ${report.tokens} tokens decoded, medians of ${report.repeats}`,
    `loaded and verified in ${formatSeconds(report.loadSeconds)}, first token after ${formatSeconds(report.firstTokenSeconds)}, peak memory ${formatBytes(report.peakRss)}`,
  ];
  if (predicted) {
    lines.push(
      `predicted for ${predicted.hardware}: ${formatNumber(predicted.tokensPerSecond)} tokens/s as placed, ` +
        `${formatNumber(predicted.cpuOnlyTokensPerSecond)} on the CPU alone`,
    );
  }
  process.stdout.write(`${lines.join("\n")}\n`);
}

function describeLimit({ limit }: Speed): string {
  return limit.kind === "memory" ? "memory" : `last-level cache, ${formatBytes(limit.bufferBytes)}`;
}
