/** Which device computes an opened model, and what of the model it gets. */
import { check, PiError } from "../formats/errors.ts";
import { native, type DeviceReport, type GpuMemory, type GpuOptions, type OpenOptions } from "../native/index.ts";
import { readArtifact, type Artifact } from "./artifact.ts";
import { isSparse, type ModelConfig } from "./config.ts";
import { allOnGpu, fitSteps, leastSplit, placedOnGpu, stepsOf, type GpuSplit, type Step } from "./gpu-fit.ts";
import { gpuRows, isEmpty, partBytes, sumParts, type PartBytes } from "./gpu-memory.ts";
import type { ModelFile } from "./model-file.ts";

/** `auto`: the GPU where there is one and the artifact was placed for one. */
export const DEVICES = ["auto", "gpu", "cpu"] as const;
export type DeviceChoice = (typeof DEVICES)[number];

export interface DeviceOptions {
  /** Default: auto. */
  device?: DeviceChoice;
  /** Bytes of GPU memory that this process may take, all told; default: the placement's budget. 0: none. */
  vram?: number;
  /** Neurons change places between CPU and GPU as they are asked for (default false). */
  adapt?: boolean;
}

/** The GPU of an opened model. */
export interface GpuUse {
  name: string;
  split: GpuSplit;
  memory: GpuMemory;
  /** Bytes that it may take. */
  budget: number;
  /** Some of what was placed, or asked for, did not fit. */
  reduced: boolean;
  adapt: boolean;
}

/** Either a GPU, or why there is none where an artifact was placed for one; neither where none was asked for. */
export interface DeviceUse {
  gpu?: GpuUse;
  missing?: string;
}

/** A GPU that a model is to run on, and what says which parts of it; `missing`: one was placed for, and there is none. */
export interface WantedGpu {
  found?: Extract<DeviceReport, { found: true }>;
  artifact?: Artifact;
  missing?: string;
}

/** Looks for a GPU where one is wanted. Throws `E_DEVICE` where one was insisted on and cannot be had. */
export function wantedGpu(file: ModelFile, { device = "auto", vram }: DeviceOptions): WantedGpu {
  const insisted = device === "gpu";
  check(!insisted || vram !== 0, "E_DEVICE", "--device gpu with --vram 0: expected memory for the GPU, got none");
  if (device === "cpu" || vram === 0) return {};
  const asked = insisted || vram !== undefined;
  if (file.format !== "artifact") {
    const path = `${file.path}: expected an artifact, which says what a GPU gets (pi place makes one)`;
    check(!asked, "E_DEVICE", `${path}, found a converted model`);
    return {};
  }
  const artifact = readArtifact(file);
  const placed = artifact.placement.memory.total > 0;
  if (!placed && !asked) return {};
  check(
    placed || vram !== undefined,
    "E_DEVICE",
    `${file.path}: was placed for the CPU alone; --vram <SIZE> says what of the GPU's memory it may take`,
  );
  const report = native().device();
  if (report.found) return { found: report, artifact };
  check(!insisted, "E_DEVICE", `--device gpu: ${report.reason}`);
  return { missing: `no GPU: ${report.reason}` };
}

/** Tokens of KV cache that a placement made room for; undefined for what is no artifact. */
export function placedContext({ provenance }: ModelFile): number | undefined {
  const { contextTokens } = provenance.options;
  return typeof contextTokens === "number" ? contextTokens : undefined;
}

/**
 * Decides what the GPU gets of a model that `options` opens: what was placed, or as much as is worth most and fits the memory
 * that is there. Throws `E_DEVICE`, and `E_VRAM` with the numbers where a GPU was asked for and nothing fits.
 */
export function planDevice(
  file: ModelFile,
  options: OpenOptions,
  { found, artifact, missing }: WantedGpu,
  wanted: DeviceOptions,
): DeviceUse {
  if (!found || !artifact) return missing === undefined ? {} : { missing };
  const parts = partBytes(file, { type: options.kvType, blocks: options.kvBlocks });
  const budget = Math.min(wanted.vram ?? artifact.placement.vramBudget, found.freeBytes + found.contextBytes);
  const adapt = wanted.adapt ?? false;
  const count = (split: GpuSplit): GpuMemory =>
    withContext(
      native().gpuMemory({ ...options, gpu: gpuOptions(file.config, { split, budget, adapt }) }),
      found.contextBytes,
    );
  const { nLayers } = file.config;
  const use = ({ split, memory }: Fitted, reduced: boolean): DeviceUse => {
    return { gpu: { name: found.name, split, memory, budget, reduced, adapt } };
  };
  const whole = startOf(file, artifact, parts, wanted.vram);
  const all = count(whole);
  if (all.total <= budget) return use({ split: whole, memory: all }, false);
  const steps = stepsTo(whole, file, artifact, parts);
  const least = count(leastSplit(steps, nLayers));
  const fitted = fitMemory(steps, parts, budget, count, all) ?? fitMemory(steps, parts, budget, count, least);
  if (fitted) return use(fitted, true);
  const needs = `expected at least ${least.total} bytes of GPU memory (context ${least.context}, scratch ${least.scratch}, the least part of the model ${least.total - least.context - least.scratch})`;
  const has = `got ${budget} (${found.freeBytes} free on ${found.name})`;
  check(wanted.device !== "gpu" && wanted.vram === undefined, "E_VRAM", `${file.path}: ${needs}, ${has}`);
  return { missing: `${needs}, ${has}` };
}

interface Fitted {
  split: GpuSplit;
  memory: GpuMemory;
}

/** Room that is worth another count, as a share of the budget. */
const ROOM = 0.01;

/**
 * The steps that fit by the sizes of parts and some scratch, and then by the engine's count, which maps the model each time
 * and is asked for a few times; null where none do.
 */
function fitMemory(
  steps: readonly Step[],
  parts: PartBytes,
  budget: number,
  count: (split: GpuSplit) => GpuMemory,
  { scratch, context }: GpuMemory,
): Fitted | null {
  const nLayers = parts.layers.length;
  const total = (split: GpuSplit): number => sumParts(split, { ...parts, scratch }, context).total;
  for (let allowed = budget; ;) {
    const split = fitSteps(steps, nLayers, allowed, total);
    if (isEmpty(split)) return null;
    const memory = count(split);
    if (memory.total > budget) {
      allowed -= memory.total - budget;
      continue;
    }
    // A split may need less scratch than all of a model: that room is tried, too.
    const room = scratch - memory.scratch;
    const wider = room > ROOM * budget ? fitSteps(steps, nLayers, allowed + room, total) : split;
    const widened = wider === split ? memory : count(wider);
    return widened.total <= budget ? { split: wider, memory: widened } : { split, memory };
  }
}

/** What was placed, or all of the model where more memory may be taken than it was placed for. */
function startOf(file: ModelFile, { placement }: Artifact, parts: PartBytes, vram: number | undefined): GpuSplit {
  const more = placement.memory.total === 0 || (vram !== undefined && vram > placement.vramBudget);
  return more ? allOnGpu(parts, file.config.nNeurons) : placedOnGpu(placement, parts);
}

function stepsTo(split: GpuSplit, file: ModelFile, artifact: Artifact, parts: PartBytes): Step[] {
  const { nNeurons, activation } = file.config;
  const { placement, activity, predictors } = artifact;
  const mode = predictors ? "predictor" : isSparse(activation) ? "exact" : "dense";
  return stepsOf(split, { parts, nNeurons, activity, mode, hardware: placement.hardware });
}

/** What the engine is told. */
export function gpuOptions(
  config: ModelConfig,
  { split, budget, adapt }: Pick<GpuUse, "split" | "budget" | "adapt">,
): GpuOptions {
  return { ...split, vramBytes: budget, maxRows: gpuRows(config, budget), adapt };
}

/** A count of parts with what the device's context takes. */
function withContext(memory: GpuMemory, contextBytes: number): GpuMemory {
  return { ...memory, context: contextBytes, total: memory.total + contextBytes };
}

/**
 * The error for an engine that could not be opened: where the GPU's memory went to somebody else meanwhile, what was asked,
 * what is free, and what would fit.
 */
export function openingError(path: string, error: Error, gpu: GpuUse | undefined): PiError {
  const now = gpu && native().device();
  const asked = gpu ? gpu.memory.total - gpu.memory.context : 0;
  if (!gpu || !now?.found || now.freeBytes >= asked) return new PiError("E_ENGINE", `${path}: ${error.message}`);
  const { name, freeBytes, contextBytes } = now;
  const fits = freeBytes + contextBytes;
  return new PiError(
    "E_VRAM",
    `${path}: asked for ${asked} bytes of ${name}'s memory, of which ${freeBytes} are free; --vram ${fits} would fit (${error.message})`,
  );
}
