import type { Choice } from "../native/index.ts";

/** A choice that takes the model's distribution as it is: no cut, penalty or bias; sampled at temperature 1. */
export const NEUTRAL_CHOICE: Choice = {
  target: -1,
  temperature: 1,
  topK: 0,
  topP: 1,
  minP: 0,
  repetitionPenalty: 1,
  presencePenalty: 0,
  frequencyPenalty: 0,
  history: new Int32Array(),
  outputStart: 0,
  logitBias: new Float64Array(),
  seed: 1,
  topLogprobs: 0,
};

/** The most likely token. */
export const GREEDY_CHOICE: Choice = { ...NEUTRAL_CHOICE, temperature: 0 };
