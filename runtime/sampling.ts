import { randomInt } from "node:crypto";
import { check, PiError } from "../formats/errors.ts";
import type { Choice } from "../native/index.ts";
import { checkNumber, type NumberRange, ParameterError, shown } from "./parameters.ts";

/** Every numeric sampling parameter: its name in requests and configs, what it accepts, and the value that does nothing. */
export const SAMPLING_PARAMETERS = {
  temperature: { name: "temperature", min: 0, max: 2, fallback: 1, help: "0 is greedy" },
  topP: { name: "top_p", min: 0, max: 1, fallback: 1, help: "smallest set of tokens with this probability" },
  topK: { name: "top_k", min: 0, max: 2 ** 30, integer: true, fallback: 0, help: "most likely tokens, 0 is all" },
  minP: { name: "min_p", min: 0, max: 1, fallback: 0, help: "least probability, relative to the most likely token" },
  repetitionPenalty: {
    name: "repetition_penalty",
    min: 0.01,
    max: 100,
    fallback: 1,
    help: "on seen tokens, 1 is none",
  },
  presencePenalty: { name: "presence_penalty", min: -2, max: 2, fallback: 0, help: "on generated tokens" },
  frequencyPenalty: { name: "frequency_penalty", min: -2, max: 2, fallback: 0, help: "per time a token was generated" },
} as const satisfies Record<string, NumberRange & { name: string; fallback: number; help: string }>;

export type SamplingParameter = keyof typeof SAMPLING_PARAMETERS;

/** Whole numbers that JSON can carry, with room to count on from one. */
export const SEED_RANGE: NumberRange = { min: 0, max: 2 ** 52, integer: true };

const BIAS_RANGE: NumberRange = { min: -100, max: 100 };
const MAX_BIASES = 1024;

/** How tokens are drawn. */
export type Sampling = Record<SamplingParameter, number> & {
  seed: number;
  /** Pairs token, bias: added to the logits before anything else. */
  logitBias: Float64Array;
};

/** Sampling as a request or command line gives it; what is missing comes from the model's defaults. */
export type SamplingOptions = { [P in SamplingParameter]?: unknown } & {
  seed?: unknown;
  logitBias?: unknown;
};

/**
 * Checks every given value. Without a seed one is drawn, so that equal requests differ.
 * @throws ParameterError naming the parameter as requests spell it
 */
export function resolveSampling(
  options: SamplingOptions,
  defaults: Partial<Record<SamplingParameter, number>>,
  vocabSize: number,
): Sampling {
  const values = {} as Record<SamplingParameter, number>;
  for (const [key, spec] of entries()) {
    const given = options[key];
    values[key] = given == null ? (defaults[key] ?? spec.fallback) : checkNumber(spec.name, given, spec);
  }
  return {
    ...values,
    seed: options.seed == null ? randomInt(2 ** 32) : checkNumber("seed", options.seed, SEED_RANGE),
    logitBias: biases(options.logitBias, vocabSize),
  };
}

function entries() {
  return Object.entries(SAMPLING_PARAMETERS) as [SamplingParameter, NumberRange & { name: string; fallback: number }][];
}

/** `{"token id": bias}` as OpenAI writes it, to pairs. */
function biases(value: unknown, vocabSize: number): Float64Array {
  if (value == null) return new Float64Array(0);
  if (typeof value !== "object" || Array.isArray(value)) {
    throw new ParameterError("logit_bias", `expected an object of token id to bias, got ${shown(value)}`);
  }
  const pairs = Object.entries(value);
  if (pairs.length > MAX_BIASES) {
    throw new ParameterError("logit_bias", `expected at most ${MAX_BIASES} tokens, got ${pairs.length}`);
  }
  return Float64Array.from(
    pairs.flatMap(([token, bias]) => [
      checkNumber("logit_bias", /^\d+$/.test(token) ? Number(token) : token, {
        min: 0,
        max: vocabSize - 1,
        integer: true,
      }),
      checkNumber("logit_bias", bias, BIAS_RANGE),
    ]),
  );
}

/** Sampling defaults of a checkpoint: the parameters that its `generation_config.json` sets. */
export function samplingDefaults(text: string | undefined, where: string): Partial<Record<SamplingParameter, number>> {
  if (text === undefined) return {};
  const config = parse(text, where);
  const defaults: Partial<Record<SamplingParameter, number>> = {};
  for (const [key, spec] of entries()) {
    const value = config[spec.name];
    if (value == null) continue;
    try {
      defaults[key] = checkNumber(spec.name, value, spec);
    } catch (error) {
      throw new PiError("E_GENERATION_CONFIG", `${where}: ${(error as Error).message}`);
    }
  }
  return defaults;
}

function parse(text: string, where: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new PiError("E_GENERATION_CONFIG", `${where}: expected JSON, ${(error as Error).message}`);
  }
  check(
    typeof value === "object" && value !== null && !Array.isArray(value),
    "E_GENERATION_CONFIG",
    `${where}: expected a JSON object, got ${shown(value)}`,
  );
  return value as Record<string, unknown>;
}

const NOTHING = new Int32Array(0);

/**
 * What the engine is told for one output row.
 * @param tokens prompt and output so far; the engine reads it while the step runs
 * @param outputStart index of the first generated token
 */
export function choiceOf(sampling: Sampling, tokens: Int32Array, outputStart: number, topLogprobs: number): Choice {
  const { repetitionPenalty, presencePenalty, frequencyPenalty } = sampling;
  const looksBack = repetitionPenalty !== 1 || presencePenalty !== 0 || frequencyPenalty !== 0;
  return {
    ...sampling,
    topP: Math.max(sampling.topP, 1e-6), // 0 leaves the most likely token, as OpenAI's does
    target: -1,
    history: looksBack ? tokens : NOTHING,
    outputStart: looksBack ? outputStart : 0,
    topLogprobs,
  };
}

/** Sampling that changes nothing: for rows whose token is given and only its probability is asked. */
export const NEUTRAL_SAMPLING: Sampling = {
  ...(Object.fromEntries(entries().map(([key, spec]) => [key, spec.fallback])) as Record<SamplingParameter, number>),
  seed: 0,
  logitBias: new Float64Array(0),
};
