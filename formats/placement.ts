import { check } from "./errors.ts";
import { Fields } from "./fields.ts";
import { readHardware, type Hardware } from "./hardware.ts";

/** Neurons that placement moves together. */
export const NEURON_BATCH = 64;

/** `pi.placement`: which parts of an artifact live on the GPU, why, and what that should give. Sizes in bytes. */
export interface Placement {
  vramBudget: number;
  hardware: Hardware;
  layers: LayerPlacement[];
  /** The output head is on the GPU. */
  head: boolean;
  memory: PlacementMemory;
  /** Main memory: the budget, null where none was given, and what is not on the GPU takes of it. */
  ram?: { budget: number | null; total: number };
  /**
   * Seconds a token saves against everything on the CPU, as the solver counts them, and a proven upper bound of that; below
   * 0 where a RAM budget forces more to the GPU than saves time.
   */
  objective: number;
  bound: number;
  /** (bound - objective) / bound, 0 when nothing can be saved. */
  gap: number;
  solver: "greedy" | "search" | "ilp";
  /** What HiGHS found for the same problem, where it was asked and finished. */
  referee: { objective: number; bound: number } | null;
  /** Share of the expected neuron work (bytes of neurons a token needs) that the GPU does. */
  gpuShare: number;
  predicted: PlacementSpeed;
}

/** Decoding speed as placed and without a GPU; artifacts of earlier versions do not say of which mode and context. */
export interface PlacementSpeed {
  tokensPerSecond: number;
  cpuOnlyTokensPerSecond: number;
  mode?: (typeof MODES)[number];
  /** Tokens that a token attends to. */
  contextTokens?: number;
}

const MODES = ["dense", "exact", "predictor"] as const;

export interface LayerPlacement {
  /** The layer's first `gpuNeurons` rows are on the GPU. */
  gpuNeurons: number;
  /** C_l: fewer neurons would not save their synchronisation; null where none ever does. */
  minimumNeurons: number | null;
  /** Share of the layer's activations that those neurons make up. */
  impactShare: number;
  /** The layer's attention and its KV cache are on the GPU. */
  attention: boolean;
  /** The layer's predictor is on the GPU. */
  predictor: boolean;
}

/** GPU memory of a placement; `total` is the sum of the others and never above the budget. */
export interface PlacementMemory {
  weights: number;
  predictors: number;
  kv: number;
  scratch: number;
  context: number;
  total: number;
}

/**
 * Parses `pi.placement` of a model of `nLayers` layers of `nNeurons`; throws `E_PLACEMENT` naming member, expected and
 * actual.
 */
export function parsePlacement(text: string, file: string, shape: { nLayers: number; nNeurons: number }): Placement {
  const fields = Fields.parse(text, `${file}: pi.placement`, "E_PLACEMENT");
  const solver = fields.string("solver");
  const referee = fields.objectOrNull("referee");
  check(
    solver === "greedy" || solver === "search" || solver === "ilp",
    "E_PLACEMENT",
    `${file}: pi.placement: solver: expected greedy, search or ilp, got ${solver}`,
  );
  return {
    vramBudget: fields.integer("vramBudget"),
    hardware: readHardware(fields.object("hardware")),
    layers: fields.objects("layers", shape.nLayers).map((layer) => ({
      gpuNeurons: layer.integer("gpuNeurons", 0, shape.nNeurons),
      minimumNeurons: layer.integerOrNull("minimumNeurons", 1),
      impactShare: layer.number("impactShare", 0, 1),
      attention: layer.boolean("attention"),
      predictor: layer.boolean("predictor"),
    })),
    head: fields.boolean("head"),
    memory: readMemory(fields.object("memory"), file),
    ...(fields.has("ram") && { ram: readRam(fields.object("ram")) }),
    objective: fields.number("objective", -Infinity),
    bound: fields.number("bound", -Infinity),
    gap: fields.number("gap", 0, 1),
    solver,
    referee: referee && { objective: referee.number("objective"), bound: referee.number("bound") },
    gpuShare: fields.number("gpuShare", 0, 1),
    predicted: readSpeed(fields.object("predicted"), file),
  };
}

function readRam(fields: Fields): NonNullable<Placement["ram"]> {
  return { budget: fields.integerOrNull("budget"), total: fields.number("total") };
}

function readSpeed(fields: Fields, file: string): PlacementSpeed {
  const speed = {
    tokensPerSecond: fields.number("tokensPerSecond"),
    cpuOnlyTokensPerSecond: fields.number("cpuOnlyTokensPerSecond"),
  };
  if (!fields.has("mode")) return speed;
  const mode = MODES.find((known) => known === fields.string("mode"));
  check(
    mode,
    "E_PLACEMENT",
    () => `${file}: pi.placement: predicted.mode: expected ${MODES.join(", ")}, got ${fields.string("mode")}`,
  );
  return { ...speed, mode, contextTokens: fields.number("contextTokens") };
}

function readMemory(fields: Fields, file: string): PlacementMemory {
  const parts = {
    weights: fields.integer("weights"),
    predictors: fields.integer("predictors"),
    kv: fields.integer("kv"),
    scratch: fields.integer("scratch"),
    context: fields.integer("context"),
  };
  const total = fields.integer("total");
  const sum = Object.values(parts).reduce((a, b) => a + b, 0);
  check(
    total === sum,
    "E_PLACEMENT",
    () => `${file}: pi.placement: memory: expected a total of ${sum} (the sum of its parts), got ${total}`,
  );
  return { ...parts, total };
}
