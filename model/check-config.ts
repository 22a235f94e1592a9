import { PiError } from "../formats/errors.ts";
import { Fields } from "../formats/fields.ts";
import type { Activation, ModelConfig, RopeScaling } from "./config.ts";

/** Sizes above these belong to no model; they come from a corrupt or hostile file and would exhaust memory. */
const MAX_SIZE = 2 ** 31 - 1;
const MAX_LAYERS = 10_000;
/** What counts as a positive real number. */
const [SMALLEST, LARGEST] = [1e-30, 1e30];

const CODE = "E_CONFIG";
const ACTIVATIONS: readonly Activation["kind"][] = ["relu", "relu2", "fatrelu", "drelu", "silu", "gelu", "gelu_tanh"];

/** Parameters of each scaling, all positive numbers. */
const SCALINGS: Record<RopeScaling["type"], readonly string[]> = {
  linear: ["factor"],
  llama3: ["factor", "lowFreqFactor", "highFreqFactor", "originalMaxPositions"],
};

/**
 * Checks that `config`, which may come from a stranger's file, describes a decoder that the engine can run: sizes in
 * range and fitting each other, known kinds. Throws `E_CONFIG` naming the field, what was expected and what was found;
 * `where` begins the message.
 */
export function checkConfig(config: ModelConfig, where: string): void {
  const fields = new Fields(config, where, CODE);
  checkSizes(fields, config, where);
  oneOf(fields, "norm", ["rms", "layer"], where);
  fields.number("normEps", SMALLEST, LARGEST);
  checkPosition(fields, config, where);
  checkFfn(fields, config, where);
  const bias = fields.object("bias");
  for (const key of ["qkv", "attnOut", "ffn", "head"]) bias.boolean(key);
  for (const key of ["parallelResidual", "sharedNorm", "tiedHead"]) fields.boolean(key);
  if (config.sharedNorm && !config.parallelResidual) refuse(where, "sharedNorm", "parallelResidual with it", false);
  fields.integerOrNull("bosToken", 0, config.vocabSize - 1);
  const { eosTokens, vocabSize } = config;
  const known = (id: unknown) => Number.isInteger(id) && (id as number) >= 0 && (id as number) < vocabSize;
  if (!Array.isArray(eosTokens) || !eosTokens.every(known)) {
    refuse(where, "eosTokens", `a list of tokens below ${vocabSize}`, eosTokens);
  }
}

function checkSizes(fields: Fields, { nHeads, nKvHeads }: ModelConfig, where: string): void {
  for (const key of ["dim", "nHeads", "nKvHeads", "headDim", "nNeurons", "vocabSize", "maxPositions"]) {
    fields.integer(key, 1, MAX_SIZE);
  }
  fields.integer("nLayers", 1, MAX_LAYERS);
  if (nHeads % nKvHeads !== 0) refuse(where, "nKvHeads", `a divisor of nHeads ${nHeads}`, nKvHeads);
}

function checkPosition(fields: Fields, { position, headDim }: ModelConfig, where: string): void {
  oneOf(fields, "position", ["rope", "learned"], where);
  if (position === "rope") {
    fields.number("ropeTheta", SMALLEST, LARGEST);
    if (headDim % 2 !== 0) refuse(where, "headDim", "an even number", headDim);
  }
  const scaling = fields.objectOrNull("ropeScaling");
  if (!scaling) return;
  const type = oneOf(scaling, "type", Object.keys(SCALINGS), `${where}: ropeScaling`);
  for (const key of SCALINGS[type as RopeScaling["type"]]) scaling.number(key, SMALLEST, LARGEST);
}

function checkFfn(fields: Fields, { gated }: ModelConfig, where: string): void {
  fields.boolean("gated");
  const activation = fields.object("activation");
  const kind = oneOf(activation, "kind", ACTIVATIONS, `${where}: activation`);
  if (kind === "drelu" && !gated) refuse(where, "activation.kind", "a gated FFN with drelu", "gated false");
  if (kind === "fatrelu") activation.number("threshold", 0, LARGEST);
}

function oneOf(fields: Fields, key: string, known: readonly string[], where: string): string {
  const value = fields.string(key);
  return known.includes(value) ? value : refuse(where, key, known.join(", "), value);
}

function refuse(where: string, field: string, expected: string, actual: unknown): never {
  throw new PiError(CODE, `${where}: ${field}: expected ${expected}, got ${JSON.stringify(actual)}`);
}
