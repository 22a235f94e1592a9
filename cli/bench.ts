import { type Command, Option } from "commander";
import { availableParallelism } from "node:os";
import { readArtifact } from "../model/artifact.ts";
import { defaultKvType } from "../model/kv-type.ts";
import { firstToken, measureSpeed, speedTokens, type Measured, type Speed } from "../model/measure.ts";
import { checkMode, sparseModes } from "../model/modes.ts";
import { openModel, type OpenModel } from "../model/open.ts";
import { WEIGHT_DTYPES } from "../formats/dtypes.ts";
import type { Cpu } from "../formats/hardware.ts";
import { forecast, medianForecast, tokensPerSecond, type Forecast } from "../place/forecast.ts";
import { measureCpu, measurement } from "../model/measure-cpu.ts";
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
      const { probe, machines } = await probeFor(model, threads, kvType);
      const what = { modes, contexts, batches, tokens, repeats, threads, between: probe };
      const measured = await measureSpeed(model, what, context);
      context.close();
      const speeds = withForecasts(model, measured.speeds, machines, { tokens, kvType, contextTokens });
      const run = { model: model.name, isa: native().isa().active, threads, tokens, repeats };
      const report = { ...run, loadSeconds, firstTokenSeconds, predicted: predictionOf(model), ...measured, speeds };
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

/** What was measured, and what this machine's costs, measured between the repeats, say that it should have been. */
interface ForecastSpeed extends Speed {
  /** Null for several sequences at once, and for models that are no artifact of this version. */
  predictedTokensPerSecond: number | null;
  /** Predicted over measured, less 1. */
  predictionError: number | null;
  /** Of a token, by part. */
  predictedSeconds?: Forecast;
}

/** A loop's time in one measurement of this machine: there is one for every repeat. */
const LOOP_SECONDS = 0.02;

/**
 * What measures this machine for an artifact's types and size, into `machines`, and for anything else does nothing. It is
 * called between the repeats, as neighbours come and go.
 */
async function probeFor({ file }: OpenModel, threads: number, kvType: KvType | undefined) {
  const machines: Cpu[] = [];
  if (file.format !== "artifact") return { machines, probe: () => Promise.resolve() };
  const tensors = [...file.tensors.values()];
  const bytes = tensors.reduce((sum, tensor) => sum + tensor.bytes, 0);
  const types = new Set(tensors.flatMap(({ dtype }) => WEIGHT_DTYPES.find((type) => type === dtype) ?? []));
  // The head's sketch is of four bits, whatever the weights are.
  if (types.has("q8_0")) types.add("q4_0");
  const usual = await measurement(bytes);
  const cacheBytes = usual.cacheBytes !== null && bytes <= 2 * usual.cacheBytes ? usual.cacheBytes : null;
  const kvTypes = [kvType ?? defaultKvType(file.dtype)];
  const what = { ...usual, cacheBytes, threads, seconds: LOOP_SECONDS, types: [...types], kvTypes };
  return { machines, probe: async () => void machines.push(await measureCpu(what)) };
}

function withForecasts(
  { file }: OpenModel,
  speeds: Speed[],
  machines: readonly Cpu[],
  { tokens, kvType, contextTokens }: { tokens: number; kvType: KvType | undefined; contextTokens: number },
): ForecastSpeed[] {
  const artifact = file.format === "artifact" ? readArtifact(file) : null;
  return speeds.map((speed) => {
    const { mode, context, batch, decodeTokensPerSecond } = speed;
    const options = {
      mode,
      contextTokens,
      attended: context + (tokens + 1) / 2,
      kvType: kvType ?? defaultKvType(file.dtype),
    };
    const seconds = machines.flatMap((cpu) => {
      if (!artifact || batch > 1) return [];
      const { activity, predictors } = artifact;
      return forecast({ model: file, activity, predictors }, cpu, options) ?? [];
    });
    if (seconds.length === 0) return { ...speed, predictedTokensPerSecond: null, predictionError: null };
    const parts = medianForecast(seconds);
    const predicted = tokensPerSecond(parts);
    return {
      ...speed,
      predictedTokensPerSecond: predicted,
      predictionError: predicted / decodeTokensPerSecond - 1,
      predictedSeconds: parts,
    };
  });
}

interface Report extends Measured {
  speeds: ForecastSpeed[];
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
  const table = (header: string[], cells: (speed: ForecastSpeed) => string[]) =>
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
  process.stdout.write("\nmilliseconds of a step (ffn with its predictor)\n");
  table(Object.keys(speeds[0]!.stepSeconds), (s) =>
    Object.values(s.stepSeconds).map((seconds) => (1000 * seconds).toFixed(2)),
  );
  const lines = [
    "",
    ...describeForecasts(speeds),
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

/** One line for each that there is a prediction for. */
function describeForecasts(speeds: ForecastSpeed[]): string[] {
  return speeds.flatMap(({ mode, context, predictedTokensPerSecond, predictionError, decodeTokensPerSecond }) =>
    predictedTokensPerSecond === null
      ? []
      : [
          `predicted ${formatNumber(predictedTokensPerSecond)} tokens/s (${mode}, context ${context}), ` +
            `measured ${formatNumber(decodeTokensPerSecond)}: ${predictionError! < 0 ? "" : "+"}${percent(predictionError!)}`,
        ],
  );
}

function describeLimit({ limit }: Speed): string {
  return limit.kind === "memory" ? "memory" : `last-level cache, ${formatBytes(limit.bufferBytes)}`;
}
