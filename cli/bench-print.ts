/** What `pi bench` found, as tables. */
import type { PlacementSpeed } from "../formats/placement.ts";
import type { GpuSplit } from "../model/gpu-fit.ts";
import type { Speed, Swaps } from "../model/measure.ts";
import type { LayerTrace } from "../model/trace.ts";
import type { FfnMode, GpuMemory } from "../native/index.ts";
import type { ForecastSpeed } from "./bench-forecast.ts";
import { formatBytes, formatNumber, formatSeconds, printTable } from "./output.ts";
import { percent } from "./place.ts";

/** One device, opened and measured. */
export interface DeviceRun {
  /** `cpu`, or the name of the GPU that had a part. */
  device: string;
  loadSeconds: number;
  firstTokenSeconds: number;
  peakRss: number;
  /** `swaps`: where neurons may change places. */
  gpu: { memory: GpuMemory; budget: number; split: GpuSplit; swaps: Swaps | null } | null;
  /** What `pi place` predicted, and for which machine; null for what is no artifact. */
  placed: (PlacementSpeed & { hardware: string }) | null;
  /** Where a trace was written, of what, and what it says of the prompt and of each layer in decoding. */
  trace: {
    path: string;
    mode: FfnMode;
    context: number;
    tokens: number;
    /** `streamedBytes`: the CPU's weights that were sent to the GPU for it. */
    prompt: { seconds: number; streamedBytes: number };
    layers: LayerTrace[];
  } | null;
}

export interface BenchReport {
  model: string;
  isa: string;
  threads: number;
  tokens: number;
  repeats: number;
  devices: DeviceRun[];
  speeds: ForecastSpeed[];
}

const write = (...lines: string[]): void => void process.stdout.write(lines.map((line) => `${line}\n`).join(""));

export function printBench(report: BenchReport): void {
  const { speeds, devices } = report;
  const several = devices.length > 1 || devices.some(({ gpu }) => gpu);
  const table: SpeedTable = (header, rows, cells) =>
    printTable(
      [...(several ? ["device"] : []), "mode", "context", "batch", ...header],
      rows.map((speed) =>
        [...(several ? [speed.device] : []), speed.mode, speed.context, speed.batch as string | number].concat(
          cells(speed),
        ),
      ),
    );
  table(["prefill tok/s", "decode tok/s", "GB/s", "limit GB/s", "share of it", "limit"], speeds, (s) => [
    formatNumber(s.prefillTokensPerSecond ?? NaN),
    formatNumber(s.decodeTokensPerSecond),
    formatNumber(s.bytesPerSecond / 1e9),
    formatNumber(s.limit.bytesPerSecond / 1e9),
    percent(s.share),
    describeLimit(s),
  ]);
  write("", "read per decoded token");
  table(["in all", ...Object.keys(speeds[0]!.bytes)], speeds, (s) =>
    [s.bytesPerToken, ...Object.values(s.bytes)].map(formatBytes),
  );
  printGpu(speeds, table);
  write("", "milliseconds of a step (ffn with its predictor)");
  table(Object.keys(speeds[0]!.stepSeconds), speeds, (s) =>
    Object.values(s.stepSeconds).map((seconds) => (1000 * seconds).toFixed(2)),
  );
  for (const { trace } of devices) if (trace) printTrace(trace);
  write("", ...describeForecasts(speeds), ...describeRatios(speeds));
  write(
    `${report.model}: ${report.threads} threads, ${report.isa}, ${report.tokens} tokens decoded, medians of ${report.repeats}`,
    ...devices.flatMap((device) => describeDevice(device, several)),
    ...describePlaced(devices[0]!),
  );
}

/** A table with a row for each of some speeds. */
type SpeedTable = (
  header: readonly string[],
  rows: readonly ForecastSpeed[],
  cells: (speed: ForecastSpeed) => string[],
) => void;

/** What a GPU read, and what both devices did. */
function printGpu(speeds: readonly ForecastSpeed[], table: SpeedTable): void {
  const hybrid = speeds.filter(({ gpu }) => gpu);
  if (hybrid.length === 0) return;
  write("", "read per decoded token by the GPU");
  table(["in all", ...Object.keys(hybrid[0]!.gpu!.bytes)], hybrid, ({ gpu }) =>
    [gpu!.bytesPerToken, ...Object.values(gpu!.bytes)].map(formatBytes),
  );
  write("", "both devices, per decoded token");
  const header = ["GPU's neurons", "of those that fired", "transfers", "bytes", "waits", "waited ms", "kernels"];
  table(header, hybrid, ({ gpu }) => [
    percent(gpu!.neuronShare),
    percent(gpu!.firedShare),
    formatNumber(gpu!.transfers),
    formatBytes(gpu!.transferBytes),
    formatNumber(gpu!.waits),
    (1000 * gpu!.waitSeconds).toFixed(2),
    formatNumber(gpu!.kernels),
  ]);
}

function printTrace({ path, mode, context, tokens, prompt, layers }: NonNullable<DeviceRun["trace"]>): void {
  const us = (seconds: number): string => formatNumber(seconds * 1e6);
  if (context > 0) {
    const sent = `${formatBytes(prompt.streamedBytes)} of the CPU's weights sent to the GPU`;
    write("", `the prompt of ${context} tokens, traced: ${formatSeconds(prompt.seconds)}, ${sent}`);
  }
  write("", `per token and layer, ${mode}, context ${context}, launched one by one (µs; ${tokens} tokens in ${path})`);
  printTable(
    ["layer", "transfers", "CPU waits", "CPU waited", "GPU waited", "CPU worked", "GPU worked", "both at neurons"],
    layers.map((layer) => [
      String(layer.layer),
      formatNumber(layer.transfers),
      formatNumber(layer.waits),
      us(layer.cpuWaitSeconds),
      us(layer.gpuWaitSeconds),
      us(layer.cpuSeconds),
      us(layer.gpuSeconds),
      layer.overlap === null ? "–" : percent(layer.overlap),
    ]),
  );
}

/** One line for each that there is a prediction for. */
function describeForecasts(speeds: readonly ForecastSpeed[]): string[] {
  return speeds.flatMap(({ device, mode, context, gpu, decodeTokensPerSecond, ...prediction }) => {
    const { predictedTokensPerSecond, predictionError, predictedKernels: kernels } = prediction;
    if (predictedTokensPerSecond === null) return [];
    const where = gpu ? `${device}, ` : "";
    return [
      `predicted ${formatNumber(predictedTokensPerSecond)} tokens/s (${where}${mode}, context ${context}), ` +
        `measured ${formatNumber(decodeTokensPerSecond)}: ${predictionError! < 0 ? "" : "+"}${percent(predictionError!)}` +
        (kernels
          ? `; ${formatNumber(kernels.count)} kernels a token, ${(1000 * kernels.seconds).toFixed(2)} ms of it beside what they read`
          : ""),
    ];
  });
}

/** The GPU against the CPU alone, wherever both were measured. */
function describeRatios(speeds: readonly Speed[]): string[] {
  return speeds.flatMap((speed) => {
    if (!speed.gpu) return [];
    const { mode, context, batch } = speed;
    const same = (other: Speed) => other.mode === mode && other.context === context && other.batch === batch;
    const alone = speeds.find((other) => !other.gpu && same(other));
    if (!alone) return [];
    const ratio = speed.decodeTokensPerSecond / alone.decodeTokensPerSecond;
    return [
      `${speed.device} and CPU: ${formatNumber(ratio)} × the CPU alone (${mode}, context ${context}, batch ${batch})`,
    ];
  });
}

function describeDevice({ device, gpu, ...run }: DeviceRun, several: boolean): string[] {
  const { loadSeconds, firstTokenSeconds, peakRss } = run;
  const lines = [
    `${several ? `${device}: ` : ""}loaded and verified in ${formatSeconds(loadSeconds)}, first token after ${formatSeconds(firstTokenSeconds)}, peak memory ${formatBytes(peakRss)}`,
  ];
  if (gpu) {
    const { total, ...parts } = gpu.memory;
    const each = Object.entries(parts).map(([part, bytes]) => `${part} ${formatBytes(bytes)}`);
    lines.push(`${device}: ${formatBytes(total)} of ${formatBytes(gpu.budget)}: ${each.join(", ")}`);
    if (gpu.swaps) lines.push(`${device}: ${describeSwaps(gpu.swaps)}`);
  }
  return lines;
}

function describeSwaps({ made, stopped }: Swaps): string {
  const ended = stopped === null ? "" : `, and no more will: ${stopped}`;
  return `${formatNumber(made)} pairs of neurons changed places${ended}`;
}

function describePlaced({ placed }: DeviceRun): string[] {
  if (!placed) return [];
  const { hardware, tokensPerSecond, cpuOnlyTokensPerSecond } = placed;
  return [
    `predicted for ${hardware}: ${formatNumber(tokensPerSecond)} tokens/s as placed, ${formatNumber(cpuOnlyTokensPerSecond)} on the CPU alone`,
  ];
}

function describeLimit({ limit }: Speed): string {
  return limit.kind === "memory" ? "memory" : `last-level cache, ${formatBytes(limit.bufferBytes)}`;
}
