import { describe, expect, test } from "vitest";
import {
  parsePredictorMetrics,
  parsePredictors,
  parseQuality,
  predictorsMetadata,
  type PredictorsMetadata,
} from "../../formats/predictors.ts";
import { provenance } from "../../formats/provenance.ts";
import { DEFAULT_WORK } from "../../model/default-work.ts";

const example: PredictorsMetadata = {
  metrics: [
    {
      rank: 64,
      threshold: -1.25,
      recall: 0.97,
      weightedRecall: 0.995,
      precision: 0.5,
      trueSparsity: 0.9,
      predictedSparsity: 0.8,
      bytes: 12345,
    },
  ],
  quality: {
    corpus: { sha256: "ab".repeat(32), tokens: 1000 },
    perplexityDense: 20,
    perplexity: 20.01,
    perplexityRatio: 1.0005,
    meanKl: 0.001,
    p99Kl: 0.01,
    top1Agreement: 0.99,
    weightedRecall: 0.995,
  },
  provenance: provenance("train-predictor", { seed: 1 }, { model: "m", activations: "a" }),
};

test("what was written is read back", () => {
  expect(parsePredictors(predictorsMetadata(example), "p", 1)).toEqual(example);
});

test("a curve and a report on other text are read back; both may be absent", () => {
  const curve = [
    { weightedRecall: 0.9, predictedSparsity: 0.85, threshold: 0.5 },
    { weightedRecall: 0.99, predictedSparsity: 0.8, threshold: -1 },
  ];
  const full: PredictorsMetadata = {
    ...example,
    metrics: [{ ...example.metrics[0]!, curve }],
    quality: { ...example.quality, crossCorpus: { ...example.quality, meanKl: 0.002 } },
  };
  expect(parsePredictors(predictorsMetadata(full), "p", 1)).toEqual(full);
});

test("kinds and what else was considered are read back; without them it is an mlp", () => {
  const curve = [{ weightedRecall: 0.9, predictedSparsity: 0.85, threshold: 1, secondsPerToken: 2e-5 }];
  const layer = { ...example.metrics[0]!, kind: "sign" as const, rank: 0, secondsPerToken: 1e-5, curve };
  const point = { weightedRecall: 0.9, predictedSparsity: 0.85, bytesPerToken: 1000 };
  const timed = { ...point, secondsPerToken: 3e-5 };
  const considered = [
    [
      { kind: "exact" as const, rank: 0, bytes: 0, curve: [point, timed] },
      { kind: "mlp" as const, rank: 64, bytes: 10, curve: [] },
    ],
  ];
  const cpu = { bandwidth: 5e10, work: DEFAULT_WORK };
  const full: PredictorsMetadata = { ...example, metrics: [layer], considered, cpu };
  expect(parsePredictors(predictorsMetadata(full), "p", 1)).toEqual(full);
  expect(parsePredictors(predictorsMetadata(example), "p", 1).metrics[0]!.kind).toBeUndefined();
});

describe("refused with file, expected and actual", () => {
  const metadata = predictorsMetadata(example);
  const without = (key: string) => ({ ...example.metrics[0], [key]: undefined });
  test.each([
    ["another format", { "pi.format": "model" }, "p: expected pi.format predictors, found model"],
    ["another version", { "pi.version": "2" }, "p: expected pi.version 1, found 2"],
    ["no metrics", { "pi.predictors": "" }, "p: pi.predictors: layers: expected a list of 1, got null"],
    ["too many layers", { "pi.predictors": "[{},{}]" }, "expected a list of 1, got a list of 2"],
    [
      "no threshold",
      { "pi.predictors": JSON.stringify([without("threshold")]) },
      "layers[0].threshold: expected a number",
    ],
    [
      "an unknown kind",
      { "pi.predictors": JSON.stringify([{ ...example.metrics[0], kind: "oracle" }]) },
      'layers[0].kind: expected one of exact, sign, lowbit, svd, mlp, got "oracle"',
    ],
    [
      "an svd without a rank",
      { "pi.predictors": JSON.stringify([{ ...example.metrics[0], kind: "svd", rank: 0 }]) },
      "layers[0].rank: expected a whole number from 1",
    ],
    [
      "considered predictors that are no lists of lists",
      { "pi.considered": JSON.stringify([{}]) },
      "pi.considered: layers[0]: expected a list of at most 64",
    ],
    [
      "a considered predictor without its cost",
      {
        "pi.considered": JSON.stringify([
          [{ kind: "svd", rank: 1, bytes: 1, curve: [{ weightedRecall: 1, predictedSparsity: 0 }] }],
        ]),
      },
      "curve[0].bytesPerToken: expected a number",
    ],
    [
      "a time below 0",
      { "pi.predictors": JSON.stringify([{ ...example.metrics[0], secondsPerToken: -1 }]) },
      "layers[0].secondsPerToken: expected a number of at least 0, got -1",
    ],
    [
      "a CPU without a bandwidth",
      { "pi.cpu": "{}" },
      "p: pi.cpu: bandwidth: expected a number of at least 1, got nothing",
    ],
    [
      "a curve that is no list",
      { "pi.predictors": JSON.stringify([{ ...example.metrics[0], curve: "steep" }]) },
      'layers[0].curve: expected a list of at most 1024, got "steep"',
    ],
    [
      "a curve with a hole",
      { "pi.predictors": JSON.stringify([{ ...example.metrics[0], curve: [{ weightedRecall: 1 }] }]) },
      "layers[0].curve[0].predictedSparsity: expected a number",
    ],
    [
      "another text without a corpus",
      { "pi.quality": JSON.stringify({ ...example.quality, crossCorpus: {} }) },
      "pi.quality: crossCorpus.corpus: expected an object",
    ],
    ["no quality", { "pi.quality": "" }, "p: pi.quality: not JSON"],
    ["a recall above 1", { "pi.quality": metadata["pi.quality"]!.replace("0.995", "1.5") }, "weightedRecall: expected"],
    ["no provenance", { "pi.provenance": "{}" }, "p: pi.provenance: inputs: expected an object, got nothing"],
  ])("%s", (_, change, message) => {
    const read = () => parsePredictors({ ...metadata, ...change }, "p", 1);
    expect(read).toThrow(message);
    expect(read).toThrow(expect.objectContaining({ code: "E_FORMAT" }));
  });

  test("an artifact's entries by themselves", () => {
    expect(() => parsePredictorMetrics("{", "x.pi", 1)).toThrow("x.pi: pi.predictors: not JSON");
    expect(() => parseQuality("[]", "x.pi")).toThrow("x.pi: pi.quality: expected an object");
  });
});
