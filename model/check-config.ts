import { PiError } from "../formats/errors.ts";
import type { Activation, ModelConfig, RopeScaling } from "./config.ts";

/** Sizes above these belong to no model; they come from a corrupt or hostile file and would exhaust memory. */
const MAX_SIZE = 2 ** 31 - 1;
const MAX_LAYERS = 10_000;

const ACTIVATIONS: readonly Activation["kind"][] = ["relu", "relu2", "fatrelu", "drelu", "silu", "gelu", "gelu_tanh"];
const SCALINGS: readonly RopeScaling["type"][] = ["linear", "llama3"];

/**
 * Checks that `config` describes a decoder the engine can run: sizes in range and fitting each other, known kinds.
 * Throws `E_CONFIG` naming the field, what was expected and what was found; `where` begins the message.
 */
export function checkConfig(config: ModelConfig, where: string): void {
  const fail = (field: string, expected: string, actual: unknown): never => {
    throw new PiError("E_CONFIG", `${where}: ${field}: expected ${expected}, found ${JSON.stringify(actual)}`);
  };
  const integer = (field: keyof ModelConfig, max = MAX_SIZE): number => {
    const value = config[field] as number;
    return Number.isInteger(value) && value >= 1 && value <= max
      ? value
      : fail(field, `a whole number from 1 to ${max}`, value);
  };
  const oneOf = <T>(field: string, value: T, known: readonly T[]): void => {
    if (!known.includes(value)) fail(field, known.join(", "), value);
  };
  const positive = (field: string, value: number): void => {
    if (!(Number.isFinite(value) && value > 0)) fail(field, "a positive number", value);
  };

  for (const field of ["dim", "nNeurons", "vocabSize", "maxPositions", "headDim"] as const) integer(field);
  integer("nLayers", MAX_LAYERS);
  if (integer("nHeads") % integer("nKvHeads") !== 0)
    fail("nKvHeads", `a divisor of nHeads ${config.nHeads}`, config.nKvHeads);

  oneOf("norm", config.norm, ["rms", "layer"]);
  positive("normEps", config.normEps);
  oneOf("position", config.position, ["rope", "learned"]);
  if (config.position === "rope") {
    positive("ropeTheta", config.ropeTheta);
    if (config.headDim % 2 !== 0) fail("headDim", "an even number", config.headDim);
  }
  const scaling = config.ropeScaling;
  if (scaling !== null) {
    oneOf("ropeScaling.type", scaling?.type, SCALINGS);
    for (const [key, value] of Object.entries(scaling))
      if (key !== "type") positive(`ropeScaling.${key}`, value as number);
  }

  const activation = config.activation;
  oneOf("activation.kind", activation?.kind, ACTIVATIONS);
  if (activation.kind === "drelu" && !config.gated) fail("activation.kind", "a gated FFN with drelu", "gated false");
  if (activation.kind === "fatrelu" && !(Number.isFinite(activation.threshold) && activation.threshold >= 0)) {
    fail("activation.threshold", "a number of at least 0", activation.threshold);
  }
  const { bias, gated, parallelResidual, sharedNorm, tiedHead } = config;
  const { qkv, attnOut, ffn, head } = bias ?? {};
  const flags = {
    "bias.qkv": qkv,
    "bias.attnOut": attnOut,
    "bias.ffn": ffn,
    "bias.head": head,
    gated,
    parallelResidual,
    sharedNorm,
    tiedHead,
  };
  for (const [field, value] of Object.entries(flags)) oneOf(field, value, [true, false]);
  if (config.sharedNorm && !config.parallelResidual)
    fail("sharedNorm", "parallelResidual with it", config.parallelResidual);

  const token = (field: string, id: number | null): void => {
    if (id !== null && !(Number.isInteger(id) && id >= 0 && id < config.vocabSize))
      fail(field, `a token below ${config.vocabSize}`, id);
  };
  token("bosToken", config.bosToken);
  if (!Array.isArray(config.eosTokens)) fail("eosTokens", "a list of tokens", config.eosTokens);
  for (const id of config.eosTokens) token("eosTokens", id);
}
