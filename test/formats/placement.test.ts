import { describe, expect, it } from "vitest";
import { parseHardware } from "../../formats/hardware.ts";
import { parsePlacement, type Placement } from "../../formats/placement.ts";

const PLACEMENT: Placement = {
  vramBudget: 24 * 2 ** 30,
  hardware: {
    name: "a machine",
    cpu: { bandwidth: 5e10 },
    gpu: { name: "a GPU", vramBytes: 24 * 2 ** 30, bandwidth: 1e12, reservedBytes: 5e8 },
    link: { bandwidth: 2.5e10, syncSeconds: 2e-5 },
    source: "made up",
  },
  layers: [
    { gpuNeurons: 640, minimumNeurons: 600, impactShare: 0.8, attention: true, predictor: false },
    { gpuNeurons: 0, minimumNeurons: null, impactShare: 0, attention: false, predictor: false },
  ],
  head: true,
  memory: { weights: 10e9, predictors: 1, kv: 2, scratch: 3, context: 4, total: 10e9 + 10 },
  objective: 0.01,
  bound: 0.0100001,
  gap: 1e-5,
  solver: "search",
  referee: { objective: 0.01, bound: 0.01 },
  gpuShare: 0.4,
  predicted: { tokensPerSecond: 20, cpuOnlyTokensPerSecond: 8 },
};
const SHAPE = { nLayers: 2, nNeurons: 1000 };

const parse = (change: object): Placement => parsePlacement(JSON.stringify({ ...PLACEMENT, ...change }), "x.pi", SHAPE);

describe("pi.placement", () => {
  it("reads back what was written", () => {
    expect(parse({})).toEqual(PLACEMENT);
    expect(parse({ referee: null, hardware: { ...PLACEMENT.hardware, gpu: null } })).toMatchObject({ referee: null });
  });

  it.each<[string, object, RegExp]>([
    ["too few layers", { layers: [] }, /layers: expected a list of 2, got a list of 0/],
    [
      "more neurons than there are",
      { layers: PLACEMENT.layers.map((l) => ({ ...l, gpuNeurons: 1001 })) },
      /layers\[0\]\.gpuNeurons: expected a whole number from 0 to 1000, got 1001/,
    ],
    ["half a neuron", { layers: PLACEMENT.layers.map((l) => ({ ...l, gpuNeurons: 0.5 })) }, /gpuNeurons: .* got 0\.5/],
    ["an unknown solver", { solver: "guess" }, /solver: expected greedy, search or ilp, got guess/],
    [
      "memory that does not add up",
      { memory: { ...PLACEMENT.memory, kv: 3 } },
      /memory: expected a total of 10000000011 .* got 10000000010/,
    ],
    ["a negative budget", { vramBudget: -1 }, /vramBudget: expected a whole number from 0 .* got -1/],
    ["a missing member", { predicted: undefined }, /predicted: expected an object, got nothing/],
    ["a text for a truth", { head: "yes" }, /head: expected true or false, got "yes"/],
  ])("refuses %s", (_, change, message) => {
    expect(() => parse(change)).toThrow(expect.objectContaining({ code: "E_PLACEMENT" }));
    expect(() => parse(change)).toThrow(message);
    expect(() => parse(change)).toThrow(/^x\.pi: pi\.placement: /);
  });

  it("refuses what is not JSON", () => {
    expect(() => parsePlacement("", "x.pi", SHAPE)).toThrow(/x\.pi: pi\.placement: not JSON/);
  });
});

describe("a hardware file", () => {
  it("may describe a machine without a GPU", () => {
    const text = JSON.stringify({ ...PLACEMENT.hardware, gpu: null, comment: "ignored" });
    expect(parseHardware(text, "h.json")).toEqual({ ...PLACEMENT.hardware, gpu: null });
  });

  it.each<[object, RegExp]>([
    [{ cpu: { bandwidth: 0 } }, /h\.json: cpu\.bandwidth: expected a number of at least 1, got 0/],
    [{ gpu: { name: "a GPU" } }, /gpu\.vramBytes: expected a whole number/],
    [{ link: null }, /link: expected an object, got null/],
  ])("is refused with the member that is wrong: %j", (change, message) => {
    expect(() => parseHardware(JSON.stringify({ ...PLACEMENT.hardware, ...change }), "h.json")).toThrow(message);
  });
});
