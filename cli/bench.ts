import { type Command, Option } from "commander";
import { availableParallelism } from "node:os";
import { readArtifact } from "../model/artifact.ts";
import { measureSpeed, type ModeSpeed } from "../model/measure.ts";
import { checkMode, sparseModes } from "../model/modes.ts";
import { openModel, type OpenModel } from "../model/open.ts";
import { FFN_MODE, native, type FfnMode } from "../native/index.ts";
import { formatBytes, formatNumber, formatSeconds, printJson, printTable, stageContext } from "./output.ts";
import { percent } from "./place.ts";
import { parseInteger } from "./sizes.ts";

interface Options {
  mode?: FfnMode[];
  prompt: number;
  tokens: number;
  repeats: number;
  threads?: number;
  predictors?: string;
  json?: boolean;
}

export function define(command: Command): void {
  command
    .argument("<X>", "artifact, or directory of a converted model")
    .addOption(
      new Option("--mode <MODE...>", "modes to measure (default: all the model has)").choices(Object.keys(FFN_MODE)),
    )
    .option("--prompt <N>", "tokens of the prompt", parseInteger(1), 128)
    .option("--tokens <N>", "tokens to decode after it", parseInteger(1), 64)
    .option("--repeats <N>", "measurements of each mode; the median counts", parseInteger(1), 5)
    .option("--threads <N>", "default: all cores", parseInteger(1, 1024))
    .option("--predictors <FILE>", "predictors.safetensors to use with a converted model")
    .option("--json", "print one JSON document")
    .action(bench);
}

async function bench(path: string, options: Options, command: Command): Promise<void> {
  const context = stageContext();
  try {
    const { prompt, tokens, repeats, predictors } = options;
    const threads = options.threads ?? availableParallelism();
    const started = performance.now();
    const model = await openModel(path, { threads, contextTokens: prompt + tokens, ...(predictors && { predictors }) });
    const loadSeconds = (performance.now() - started) / 1000;
    try {
      const { maxPositions } = model.config;
      if (prompt + tokens > maxPositions) {
        command.error(
          `error: --prompt and --tokens: expected at most ${maxPositions} together, got ${prompt + tokens}`,
        );
      }
      for (const mode of options.mode ?? []) checkMode(model, mode);
      const modes = options.mode ?? ["dense" as const, ...sparseModes(model)];
      const speeds = await measureSpeed(model, { modes, prompt, tokens, repeats, threads }, context);
      context.close();
      const run = { model: model.name, isa: native().isa().active, threads, prompt, tokens, repeats, loadSeconds };
      const report = { ...run, predicted: predictionOf(model), modes: Object.fromEntries(speeds), peakRss: peakRss() };
      if (options.json) printJson(report);
      else print(report, speeds);
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

const peakRss = (): number => process.resourceUsage().maxRSS * 1024;

interface Report {
  model: string;
  isa: string;
  threads: number;
  prompt: number;
  tokens: number;
  loadSeconds: number;
  predicted: ReturnType<typeof predictionOf>;
  peakRss: number;
}

function print(report: Report, speeds: Map<FfnMode, ModeSpeed>): void {
  const { predicted } = report;
  printTable(
    ["mode", "prefill tok/s", "decode tok/s", "read/token", "GB/s", "limit GB/s", "share of it", "limit"],
    [...speeds].map(([mode, s]) => [
      mode,
      formatNumber(s.prefillTokensPerSecond),
      formatNumber(s.decodeTokensPerSecond),
      formatBytes(s.bytesPerToken),
      formatNumber(s.bytesPerSecond / 1e9),
      formatNumber(s.limit.bytesPerSecond / 1e9),
      percent(s.share),
      describeLimit(s),
    ]),
  );
  process.stdout.write("\nread per decoded token\n");
  const [first] = speeds.values();
  printTable(
    ["mode", ...Object.keys(first!.bytes)],
    [...speeds].map(([mode, s]) => [mode as string].concat(Object.values(s.bytes).map(formatBytes))),
  );
  const lines = [
    "",
    `${report.model}: ${report.threads} threads, ${report.isa}, prompt ${report.prompt}, ${report.tokens} tokens decoded`,
    `loaded and verified in ${formatSeconds(report.loadSeconds)}, peak memory ${formatBytes(report.peakRss)}`,
  ];
  if (predicted) {
    lines.push(
      `predicted for ${predicted.hardware}: ${formatNumber(predicted.tokensPerSecond)} tokens/s as placed, ` +
        `${formatNumber(predicted.cpuOnlyTokensPerSecond)} on the CPU alone`,
    );
  }
  process.stdout.write(`${lines.join("\n")}\n`);
}

function describeLimit({ limit }: ModeSpeed): string {
  return limit.kind === "memory" ? "memory" : `last-level cache, ${formatBytes(limit.bufferBytes)}`;
}
