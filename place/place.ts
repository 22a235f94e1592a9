import { basename } from "node:path";
import { activityOf } from "../formats/activity.ts";
import type { Gpu } from "../formats/hardware.ts";
import type { Placement } from "../formats/placement.ts";
import { provenance, sameProvenance } from "../formats/provenance.ts";
import { machineName } from "../io/hardware.ts";
import { sha256 } from "../io/hash.ts";
import type { StageContext } from "../io/progress.ts";
import { readArtifact } from "../model/artifact.ts";
import { gpuRows, isEmpty, NO_MEMORY } from "../model/gpu-memory.ts";
import { readModelFile } from "../model/model-file.ts";
import { tensorRefs } from "../model/open.ts";
import { KV_BLOCK, native } from "../native/index.ts";
import { choosePlacement, type Count, type SolverName } from "./choose.ts";
import { hotFirst, modelCosts, type ModelCosts } from "./costs.ts";
import { measureHardware, readHardwareFile } from "./hardware.ts";
import { readInputs, type Inputs } from "./inputs.ts";
import { pack } from "./pack.ts";
import { gpuSplit } from "./plan.ts";

export interface PlaceOptions {
  /** Where the artifact goes. */
  out: string;
  /** Bytes of GPU memory that everything together may take; 0 for CPU only. */
  vram: number;
  /** Bytes of main memory that what is not on the GPU may take; default: as much as it takes. */
  ram?: number | undefined;
  /**
   * Tokens of KV cache to make room for, all sequences together; default: the model's longest context, at most 4096.
   */
  contextTokens?: number | undefined;
  /** A hardware file; default: this machine, measured. */
  hardware?: string | undefined;
  solver?: SolverName | undefined;
  /** What the model is called; default: the artifact's file name. */
  name?: string | undefined;
  /** Mean divergence of predictor mode from dense, in nats a token, up to which predictors are accepted. Default 0.01. */
  maxKl?: number | undefined;
  /** Place again even if the artifact is up to date. */
  force?: boolean | undefined;
}

export interface PlaceResult {
  placement: Placement;
  /** Whether the artifact has predictors. */
  predictors: boolean;
  /** The artifact was there already. */
  upToDate: boolean;
}

const DEFAULT_CONTEXT = 4096;

/**
 * Of the rule by which parts go to the GPU: what an earlier one placed is placed again. 2: neurons with their predictor. 3: kernels
 * cost a launch, and meetings what they cost beside their neighbours; there is room for what prompts send.
 */
const RULE = 3;

/**
 * Decides which neurons, attention layers, predictors and head live on the GPU, orders every layer's neurons hot first
 * and packs everything into one artifact. Throws `E_BUDGET`, `E_MISMATCH`, `E_QUALITY`, `E_CHECKSUM`, `E_HARDWARE` and what reading
 * the inputs throws.
 */
export async function place(dir: string, options: PlaceOptions, context: StageContext): Promise<PlaceResult> {
  const inputs = await readInputs(dir, context, options.maxKl);
  const { config } = inputs.model;
  const contextTokens = options.contextTokens ?? Math.min(config.maxPositions, DEFAULT_CONTEXT);
  const file = options.hardware === undefined ? undefined : await readHardwareFile(options.hardware, options.vram);
  const { vram, ram, solver = "auto", name = basename(options.out, ".pi") } = options;
  const machine = file ? sha256(file.text) : machineName();
  const origin = provenance(
    "place",
    { rule: RULE, vram, ...(ram !== undefined && { ram }), contextTokens, solver, name, machine },
    inputs.hashes,
  );

  const existing = options.force ? undefined : await readModelFile(options.out).catch(() => undefined);
  if (existing?.format === "artifact" && sameProvenance(existing.provenance, origin)) {
    const { placement, predictors } = readArtifact(existing);
    return { placement, predictors: predictors !== undefined, upToDate: true };
  }
  const activity = inputs.activations.layers.map((_, layer) => hotFirst(inputs.activations, layer));
  const tensors = new Map([...inputs.model.tensors, ...(inputs.predictors?.tensors ?? [])]);
  const costs = modelCosts({ ...inputs.model, tensors }, activity, inputs.predictors?.metrics, { contextTokens });
  const hardware = file?.hardware ?? (await measureHardware(vram, weightBytes(tensors)));
  const count = counter(inputs, costs, contextTokens, vram, hardware.gpu);
  const placement = await choosePlacement(costs, hardware, { vram, ram }, solver, context, count);
  const metadata = { ...artifactMetadata(inputs, placement, name), "pi.provenance": JSON.stringify(origin) };
  const sources = [inputs.model, ...(inputs.predictors ? [inputs.predictors] : [])];
  const orders = costs.layers.map(({ order }) => order);
  await pack(options.out, sources, orders, metadata, context);
  return { placement, predictors: inputs.predictors !== undefined, upToDate: false };
}

const weightBytes = (tensors: ReadonlyMap<string, { bytes: number }>): number =>
  [...tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);

/** What the engine will take of a GPU's memory for a split and a budget, beside the context that a runtime takes on `gpu`. */
function counter(
  { model, predictors }: Inputs,
  costs: ModelCosts,
  contextTokens: number,
  budget: number,
  gpu: Gpu,
): Count {
  const options = {
    files: [model.path, ...(predictors ? [predictors.path] : [])],
    tensors: [...tensorRefs(model.tensors, 0), ...(predictors ? tensorRefs(predictors.tensors, 1) : [])],
    config: JSON.stringify(model.config),
    thresholds: Float32Array.from(predictors?.metrics ?? [], ({ threshold }) => threshold),
    threads: 1,
    kvBlocks: Math.ceil(contextTokens / KV_BLOCK),
    kvType: costs.kv.type,
  };
  const rows = gpuRows(model.config, budget);
  return (split) => {
    const placed = gpuSplit(split);
    if (isEmpty(placed)) return NO_MEMORY;
    const {
      context: _,
      total: __,
      ...counted
    } = native().gpuMemory({
      ...options,
      gpu: { ...placed, vramBytes: gpu.vramBytes, maxRows: rows },
    });
    const parts = { ...counted, context: gpu.reservedBytes };
    return { ...parts, total: Object.values(parts).reduce((a, b) => a + b, 0) };
  };
}

/** Everything an artifact says of itself but its provenance and tensors. */
function artifactMetadata(
  { model, activations, predictors, files }: Inputs,
  placement: Placement,
  name: string,
): Record<string, string> {
  const kept = ["pi.version", "pi.config", "pi.dtype", "pi.weights"].map((key) => [key, model.metadata[key]!]);
  return {
    "pi.format": "artifact",
    ...(Object.fromEntries(kept) as Record<string, string>),
    ...(predictors
      ? { "pi.predictors": JSON.stringify(predictors.metrics), "pi.quality": JSON.stringify(predictors.quality) }
      : {}),
    "pi.placement": JSON.stringify(placement),
    "pi.activity": JSON.stringify(activityOf(activations)),
    "pi.files": JSON.stringify(files),
    "pi.name": name,
  };
}
