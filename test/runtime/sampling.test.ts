import { expect, test } from "vitest";
import { choiceOf, resolveSampling, samplingDefaults } from "../../runtime/sampling.ts";

const VOCAB = 100;

test("what is not given comes from the model, then does nothing", () => {
  const { seed, ...values } = resolveSampling({ topK: 5 }, { temperature: 0.6, topK: 20 }, VOCAB);
  expect(values).toEqual({
    temperature: 0.6,
    topK: 5,
    topP: 1,
    minP: 0,
    repetitionPenalty: 1,
    presencePenalty: 0,
    frequencyPenalty: 0,
    logitBias: new Float64Array(0),
  });
  expect(Number.isInteger(seed)).toBe(true);
});

test("seeds differ unless given", () => {
  const seeds = Array.from({ length: 20 }, () => resolveSampling({}, {}, VOCAB).seed);
  expect(new Set(seeds).size).toBeGreaterThan(1);
  expect(resolveSampling({ seed: 7 }, {}, VOCAB).seed).toBe(7);
});

test.each([
  [{ temperature: 2.1 }, "temperature: expected a number from 0 to 2, got 2.1"],
  [{ temperature: NaN }, "temperature: expected a number from 0 to 2, got NaN"],
  [{ topP: "0.5" }, 'top_p: expected a number from 0 to 1, got "0.5"'],
  [{ topK: 1.5 }, "top_k: expected an integer from 0 to 1073741824, got 1.5"],
  [{ repetitionPenalty: 0 }, "repetition_penalty: expected a number from 0.01 to 100, got 0"],
  [{ seed: -1 }, "seed: expected an integer from 0 to 4503599627370496, got -1"],
  [{ logitBias: [1] }, "logit_bias: expected an object of token id to bias, got an array of 1"],
  [{ logitBias: { "100": 1 } }, "logit_bias: expected an integer from 0 to 99, got 100"],
  [{ logitBias: { __x: 1 } }, 'logit_bias: expected an integer from 0 to 99, got "__x"'],
  [{ logitBias: { "5": 101 } }, "logit_bias: expected a number from -100 to 100, got 101"],
])("refuses %j", (options, message) => {
  expect(() => resolveSampling(options, {}, VOCAB)).toThrow(message);
});

test("reads a checkpoint's generation_config.json", () => {
  const text = JSON.stringify({ do_sample: true, temperature: 0.7, top_p: 0.9, top_k: null, eos_token_id: 2 });
  expect(samplingDefaults(text, "x")).toEqual({ temperature: 0.7, topP: 0.9 });
  expect(samplingDefaults(undefined, "x")).toEqual({});
  expect(() => samplingDefaults('{"top_p": 7}', "DIR/generation_config.json")).toThrow(
    "DIR/generation_config.json: top_p: expected a number from 0 to 1, got 7",
  );
  expect(() => samplingDefaults("[]", "x")).toThrow("x: expected a JSON object, got an array of 0");
  expect(() => samplingDefaults("{", "x")).toThrow(/^x: expected JSON, /);
});

test("hands the engine the history only where a penalty looks at it", () => {
  const tokens = Int32Array.of(4, 5, 6);
  const plain = choiceOf(resolveSampling({ seed: 1 }, {}, VOCAB), tokens, 2, 3);
  expect(plain).toMatchObject({ target: -1, temperature: 1, topLogprobs: 3, outputStart: 0, seed: 1 });
  expect(plain.history.length).toBe(0);
  const looking = choiceOf(resolveSampling({ presencePenalty: 1 }, {}, VOCAB), tokens, 2, 0);
  expect([looking.history, looking.outputStart]).toEqual([tokens, 2]);
  expect(choiceOf(resolveSampling({ topP: 0 }, {}, VOCAB), tokens, 2, 0).topP).toBeGreaterThan(0);
});

test("a bias is pairs of token and value", () => {
  const { logitBias } = resolveSampling({ logitBias: { "7": -100, "3": 1.5 } }, {}, VOCAB);
  expect(Array.from(logitBias)).toEqual([3, 1.5, 7, -100]);
});
