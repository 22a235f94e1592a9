import { Option, type Command } from "commander";
import type { Placement, PlacementSpeed } from "../formats/placement.ts";
import { SOLVERS, type SolverName } from "../place/choose.ts";
import { DEFAULT_MAX_KL } from "../place/inputs.ts";
import { place, type PlaceOptions, type PlaceResult } from "../place/place.ts";
import { formatBytes, formatNumber, printJson, printTable, stageContext } from "./output.ts";
import { parseInteger, parseNumber, parseSize } from "./sizes.ts";

/** Options of placement that `pi build` takes too. */
export interface PlacementFlags {
  vram?: number;
  vramBudget?: number;
  ram?: number;
  ctx?: number;
  hardware?: string;
  solver?: SolverName;
  name?: string;
  maxKl?: number;
}

interface Options extends PlacementFlags {
  output: string;
  force?: boolean;
  json?: boolean;
}

export function define(command: Command): void {
  command.argument("<DIR>", "directory of a converted and profiled model");
  addPlacementOptions(command);
  command
    .requiredOption("-o, --output <X.pi>", "artifact to write")
    .option("--force", "place again even if the artifact is up to date")
    .option("--json", "print one JSON document")
    .action(async (dir: string, { output, force, json, ...flags }: Options) => {
      const options = { ...placeOptions(flags, command), out: output, force };
      const context = stageContext();
      try {
        const result = await place(dir, options, context);
        context.close();
        if (json) printJson({ path: output, ...result });
        else {
          printPlacement(result);
          process.stdout.write(`${output}${result.upToDate ? " is up to date" : ""}\n`);
        }
      } finally {
        context.close();
      }
    });
}

export function addPlacementOptions(command: Command): void {
  command
    .option("--vram <SIZE>", "GPU memory that everything together may take, e.g. 24G; 0: CPU only", parseSize)
    .addOption(
      new Option("--vram-budget <GiB>", "the same; a bare number counts GiB")
        .argParser(parseGibibytes)
        .conflicts("vram"),
    )
    .option("--ram <SIZE>", "main memory that what stays with the CPU may take (default: all it needs)", parseSize)
    .option(
      "--ctx <N>",
      "tokens of KV cache to make room for (default: the model's context, at most 4096)",
      parseInteger(1),
    )
    .option("--hardware <FILE>", "place for the machine described there (default: this one, measured)")
    .addOption(new Option("--solver <NAME>", "ilp: let HiGHS decide").choices(SOLVERS).default("auto"))
    .option(
      "--max-kl <NATS>",
      "mean KL of predictor mode against dense that is accepted",
      parseNumber(0),
      DEFAULT_MAX_KL,
    )
    .option("--name <NAME>", "what /v1/models shows (default: the artifact's file name)");
}

/** Stage options from the command line; a missing budget is wrong usage. */
export function placeOptions(flags: PlacementFlags, command: Command): Omit<PlaceOptions, "out"> {
  const vram = flags.vram ?? flags.vramBudget;
  if (vram === undefined) command.error("error: required option '--vram <SIZE>' not specified (0: CPU only)");
  const { ram, ctx, hardware, solver, name, maxKl } = flags;
  return { vram, ram, contextTokens: ctx, hardware, solver, name, maxKl };
}

function parseGibibytes(text: string): number {
  return parseSize(/^\s*[\d.]+\s*$/.test(text) ? `${text.trim()}G` : text);
}

/** Tables of a placement; `predictors` says whether there are any. */
export function printPlacement({ placement, predictors }: Pick<PlaceResult, "placement" | "predictors">): void {
  const { memory, vramBudget, predicted } = placement;
  printTable(...layerTable(placement, predictors));
  const lines = [
    `hardware   ${placement.hardware.name}, ${describeGpu(placement)}`,
    `           ${placement.hardware.source}`,
    `memory     ${formatBytes(memory.total)} of ${formatBytes(vramBudget)}: weights ${formatBytes(memory.weights)}, ` +
      `predictors ${formatBytes(memory.predictors)}, KV ${formatBytes(memory.kv)}, scratch ${formatBytes(memory.scratch)}, ` +
      `context ${formatBytes(memory.context)}`,
    ...describeRam(placement),
    `objective  ${describeObjective(placement)}`,
    `GPU share  ${percent(placement.gpuShare)} of the neuron work${placement.head ? ", and the head" : ""}`,
    `predicted  ${formatNumber(predicted.tokensPerSecond)} tokens/s; all on the CPU ${formatNumber(predicted.cpuOnlyTokensPerSecond)}${describeCase(predicted)}`,
  ];
  process.stdout.write(`${lines.join("\n")}\n`);
}

function describeRam({ ram }: Placement): string[] {
  if (!ram) return [];
  return [
    `RAM        ${formatBytes(ram.total)}${ram.budget === null ? "" : ` of ${formatBytes(ram.budget)}`} for what stays with the CPU`,
  ];
}

/** Which mode and context a predicted speed is of. */
function describeCase({ mode, contextTokens }: PlacementSpeed): string {
  return mode === undefined ? "" : ` (${mode}, ${formatNumber(contextTokens!)} tokens of context)`;
}

/** Per layer, what is on the GPU. */
function layerTable({ layers }: Placement, predictors: boolean): [string[], string[][]] {
  const device = (gpu: boolean): string => (gpu ? "GPU" : "CPU");
  const rows = layers.map((layer, l) => [
    String(l),
    formatNumber(layer.gpuNeurons),
    layer.minimumNeurons === null ? "–" : formatNumber(layer.minimumNeurons),
    percent(layer.impactShare),
    device(layer.attention),
    predictors ? device(layer.predictor) : "–",
  ]);
  return [["layer", "GPU neurons", "at least", "activations", "attention", "predictor"], rows];
}

function describeGpu({ hardware: { cpu, gpu, link } }: Placement): string {
  const speed = (bandwidth: number): string => `${formatNumber(bandwidth / 1e9)} GB/s`;
  const card = gpu ? `${gpu.name} ${speed(gpu.bandwidth)}` : "no GPU";
  return `CPU ${speed(cpu.bandwidth)}, ${card}, sync ${formatNumber(link.syncSeconds * 1e6)} µs`;
}

function describeObjective({ objective, bound, gap, solver, referee }: Placement): string {
  const ms = (seconds: number): string => formatNumber(seconds * 1e3, 7);
  const proof = gap < 1e-6 ? "proven optimal" : `at most ${ms(bound)}, gap ${percent(gap)}`;
  const checked = referee ? `; HiGHS: ${ms(referee.objective)} ms` : "";
  return `${ms(objective)} ms a token saved, ${proof} (${solver}${checked})`;
}

export const percent = (share: number): string => `${formatNumber(100 * share)} %`;
