import { type Command, Option } from "commander";
import { availableParallelism } from "node:os";
import { chromeTrace } from "../formats/chrome-trace.ts";
import { check } from "../formats/errors.ts";
import { writeAtomic } from "../io/atomic-file.ts";
import type { StageContext } from "../io/progress.ts";
import { readArtifact } from "../model/artifact.ts";
import { DEVICES, type DeviceChoice, type GpuUse } from "../model/device.ts";
import { firstToken, measureSpeed, speedTokens, traceText, type SpeedOptions } from "../model/measure.ts";
import { checkMode, sparseModes } from "../model/modes.ts";
import { openModel, type OpenModel } from "../model/open.ts";
import { summariseTrace } from "../model/trace.ts";
import { FFN_MODE, native, type FfnMode, type KvType } from "../native/index.ts";
import { forecaster, type ForecastSpeed } from "./bench-forecast.ts";
import { printBench, type BenchReport, type DeviceRun } from "./bench-print.ts";
import { addAdaptOption, addVramOption, deviceOptions, reportDevice } from "./device-options.ts";
import { kvTypeOption } from "./kv-type.ts";
import { printJson, stageContext } from "./output.ts";
import { parseInteger } from "./sizes.ts";

interface Options {
  device: DeviceChoice[];
  vram?: number;
  adapt?: boolean;
  mode?: FfnMode[];
  context: number[];
  batch: number[];
  tokens: number;
  repeats: number;
  threads?: number;
  kvType?: KvType;
  predictors?: string;
  trace?: string;
  json?: boolean;
}

/** Tokens that are traced at most: a picture of a few steps says it all. */
const TRACED_TOKENS = 8;

export function define(command: Command): void {
  command
    .argument("<X>", "artifact, or directory of a converted model")
    .addOption(
      new Option("--device <NAME...>", "devices to measure; with cpu and gpu, also the ratio")
        .choices(DEVICES)
        .default(["auto"], "auto"),
    );
  addAdaptOption(addVramOption(command))
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
    .option("--trace <FILE>", "write what CPU and GPU did for the prompt and a few tokens, in Chrome's trace format")
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
    const devices = [...new Set(options.device)];
    const runs = [];
    for (const device of devices) {
      const { trace: _, ...others } = options;
      // The CPU alone needs no picture beside itself.
      const traced = device === "cpu" && devices.length > 1 ? others : options;
      runs.push(await benchDevice(path, device, traced, command, context));
    }
    context.close();
    const { tokens, repeats } = options;
    const threads = threadsOf(options);
    const report: BenchReport = {
      model: runs[0]!.model,
      isa: native().isa().active,
      threads,
      tokens,
      repeats,
      devices: runs.map(({ run }) => run),
      speeds: runs.flatMap(({ speeds }) => speeds),
    };
    if (options.json) printJson(report);
    else printBench(report);
  } finally {
    context.close();
  }
}

const threadsOf = ({ threads }: Options): number => threads ?? availableParallelism();

/** Everything about one device: opened, measured and closed, so that two never share memory. */
async function benchDevice(
  path: string,
  device: DeviceChoice,
  options: Options,
  command: Command,
  context: StageContext,
): Promise<{ model: string; run: DeviceRun; speeds: ForecastSpeed[] }> {
  const { context: contexts, batch: batches, tokens, predictors, kvType, vram, adapt } = options;
  const started = performance.now();
  const since = () => (performance.now() - started) / 1000;
  const model = await openModel(path, {
    ...deviceOptions({ device, ...(vram !== undefined && { vram }), ...(adapt && { adapt }) }),
    threads: threadsOf(options),
    contextTokens: speedTokens({ contexts, batches, tokens }),
    ...(kvType && { kvType }),
    ...(predictors && { predictors }),
  });
  if (device !== "cpu") reportDevice(model.device);
  const { run, speeds, forecasts } = await measureOpened(model, since, options, command, context).finally(() =>
    model.close(),
  );
  // The GPU is measured when the model has left its memory.
  return { model: model.name, run, speeds: await forecasts.beside(speeds) };
}

async function measureOpened(
  model: OpenModel,
  since: () => number,
  options: Options,
  command: Command,
  context: StageContext,
) {
  const { context: contexts, batch: batches, tokens, repeats, kvType, trace } = options;
  const { gpu } = model.device;
  checkContexts(model, contexts, tokens, command);
  check(trace === undefined || gpu, "E_DEVICE", "--trace: expected a model with a part on a GPU, found none there");
  const loadSeconds = since();
  await firstToken(model);
  const firstTokenSeconds = since();
  for (const mode of options.mode ?? []) checkMode(model, mode);
  const modes = options.mode ?? ["dense" as const, ...sparseModes(model)];
  const threads = threadsOf(options);
  const forecasts = await forecaster(model, { threads, kvType, tokens, contextTokens: model.kvTokens });
  const what = { modes, contexts, batches, tokens, repeats, threads, between: forecasts.probe };
  const { speeds, peakRss, texts, swaps } = await measureSpeed(model, what, context);
  const run: DeviceRun = {
    device: gpu?.name ?? "cpu",
    loadSeconds,
    firstTokenSeconds,
    peakRss,
    gpu: gpu ? { memory: gpu.memory, budget: gpu.budget, split: gpu.split, swaps: gpu.adapt ? swaps : null } : null,
    placed: placedFor(model),
    trace: trace === undefined || !gpu ? null : await writeTrace(trace, model, gpu, texts[0]!, what),
  };
  return { run, speeds, forecasts };
}

function checkContexts({ config }: OpenModel, contexts: number[], tokens: number, command: Command): void {
  const longest = Math.max(...contexts) + tokens;
  if (longest <= config.maxPositions) return;
  command.error(`error: --context and --tokens: expected at most ${config.maxPositions} together, got ${longest}`);
}

/** Writes a trace of the mode that skips most; returns what it shows of the prompt, and of each layer in decoding. */
async function writeTrace(
  path: string,
  model: OpenModel,
  { name, split }: GpuUse,
  text: Int32Array,
  { modes, contexts, tokens: most }: Pick<SpeedOptions, "modes" | "contexts" | "tokens">,
): Promise<DeviceRun["trace"]> {
  const tokens = Math.min(TRACED_TOKENS, most);
  const what = { mode: modes.at(-1)!, context: contexts[0]!, tokens };
  const { prompt, decoding } = await traceText(model, text, what);
  const { seconds, streamedBytes } = prompt;
  const json = chromeTrace([...prompt.spans, ...decoding], {
    process: `pi bench ${model.name}, ${what.mode}`,
    cpu: "CPU",
    gpu: name,
  });
  await writeAtomic(path, (file) => file.writeFile(`${json}\n`));
  const layers = summariseTrace(decoding, split, model.config.nNeurons, tokens);
  return { path, ...what, prompt: { seconds, streamedBytes }, layers };
}

/** What `pi place` predicted for the artifact and the machine it was placed for. */
function placedFor({ file }: OpenModel): DeviceRun["placed"] {
  if (file.format !== "artifact") return null;
  const { predicted, hardware } = readArtifact(file).placement;
  return { ...predicted, hardware: hardware.name };
}
