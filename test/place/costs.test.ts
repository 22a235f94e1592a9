import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { silentContext } from "../../io/progress.ts";
import type { PredictorMetrics } from "../../formats/predictors.ts";
import type { ModelConfig } from "../../model/config.ts";
import { hotFirst, modelCosts, type ModelCosts } from "../../place/costs.ts";
import { readInputs, type Inputs } from "../../place/inputs.ts";
import { CONFIG, countOf, TOKENS, writeWorkingDir } from "./working-dir.ts";

let dir: string;
beforeAll(async () => void (dir = await mkdtemp(join(tmpdir(), "pi-costs-"))));
afterAll(() => rm(dir, { recursive: true }));

/** Costs of a model in a directory of its own, and what it was read from. */
async function costsOf(
  name: string,
  config: Partial<ModelConfig> = {},
  predictors = true,
): Promise<{ costs: ModelCosts; inputs: Inputs }> {
  const path = join(dir, name);
  await writeWorkingDir(path, { config: { ...CONFIG, ...config }, predictors });
  const inputs = await readInputs(path, silentContext);
  const { model, activations, predictors: trained } = inputs;
  const activity = activations.layers.map((_, layer) => hotFirst(activations, layer));
  const tensors = new Map([...model.tensors, ...(trained?.tensors ?? [])]);
  return { inputs, costs: modelCosts({ ...model, tensors }, activity, trained?.metrics, { contextTokens: 100 }) };
}

const NEURON = 3 * CONFIG.dim * 4;
const frequencies = (layer: number): number[] =>
  Array.from({ length: CONFIG.nNeurons }, (_, i) => countOf(layer, i) / TOKENS).sort((a, b) => b - a);

describe("modelCosts", () => {
  it.each([
    ["tied head", {}],
    [
      "own head, biases, no gate, layer norms",
      {
        tiedHead: false,
        gated: false,
        norm: "layer",
        position: "learned",
        ropeTheta: 0,
        bias: { qkv: true, attnOut: true, ffn: true, head: true },
      },
    ],
  ] satisfies [string, Partial<ModelConfig>][])("counts every stored byte once: %s", async (name, config) => {
    const { costs, inputs } = await costsOf(name, config);
    const all = [...inputs.model.tensors.values(), ...inputs.predictors!.tensors.values()];
    const stored = all.reduce((sum, { bytes }) => sum + bytes, 0);
    const bytes = (tensor: string): number => inputs.model.tensors.get(tensor)?.bytes ?? 0;
    const lookups = bytes("pos_embed.weight") + (inputs.model.config.tiedHead ? 0 : bytes("embed.weight"));
    const counted = costs.layers.reduce(
      (sum, l) => sum + l.attention + l.neuron * l.order.length + l.predictor,
      costs.head.bytes,
    );
    expect(counted + lookups).toBe(stored);
  });

  it("expects a token to read the gate of every neuron in an exact layer", async () => {
    const { inputs } = await costsOf("exact layer");
    const metrics = inputs.predictors!.metrics.slice();
    metrics[1] = { ...metrics[1]!, kind: "exact" };
    const activity = inputs.activations.layers.map((_, layer) => hotFirst(inputs.activations, layer));
    const tensors = new Map([...inputs.model.tensors, ...inputs.predictors!.tensors]);
    const { mode, layers } = modelCosts({ ...inputs.model, tensors }, activity, metrics, { contextTokens: 100 });
    expect(mode).toBe("predictor");
    expect(layers[1]!.asked.every((share) => share === 1)).toBe(true);
    expect([...layers[1]!.used]).toEqual(frequencies(1));
    expect(layers[1]!.predictorRows).toEqual([]);
    expect(layers[0]!.asked[199]).toBeLessThan(1);
  });

  it("expects a token to read each neuron's first row as often as the predictor calls for it, the others if it fires", async () => {
    const { costs, inputs } = await costsOf("predictor");
    expect(costs.mode).toBe("predictor");
    const { recall, trueSparsity, predictedSparsity } = inputs.predictors!.metrics[1]!;
    const { asked, used, neuronRows, predictorRows } = costs.layers[1]!;
    const falseRate = (1 - predictedSparsity - recall * (1 - trueSparsity)) / trueSparsity;
    frequencies(1).forEach((f, i) => {
      expect(used[i]).toBeCloseTo(f * recall, 12);
      expect(asked[i]).toBeCloseTo(f * recall + (1 - f) * falseRate, 12);
    });
    expect(neuronRows).toEqual(neuronRows.map(() => ({ type: "f32", rows: 1, bytes: NEURON / 3 })));
    expect(neuronRows).toHaveLength(3);
    expect(predictorRows.map(({ rows }) => rows)).toEqual([32, CONFIG.nNeurons]);
  });

  it("predicts as many neurons in all as the predictor was measured to, where they fire as often as on the samples", async () => {
    const metrics: PredictorMetrics[] = Array.from({ length: CONFIG.nLayers }, () => ({
      rank: 8,
      threshold: 0,
      recall: 0.9,
      weightedRecall: 0.9,
      precision: 0.5,
      bytes: 100,
      trueSparsity: 0.75,
      predictedSparsity: 0.6,
    }));
    const { inputs } = await costsOf("shares");
    const order = Int32Array.from({ length: CONFIG.nNeurons }, (_, i) => i);
    const frequency = Float64Array.from(order, (i) => (i < CONFIG.nNeurons / 2 ? 0.45 : 0.05));
    const activity = Array.from({ length: CONFIG.nLayers }, () => ({ order, frequency }));
    const { layers } = modelCosts(inputs.model, activity, metrics, { contextTokens: 100 });
    const mean = (x: Float64Array) => x.reduce((a, b) => a + b, 0) / x.length;
    expect(mean(layers[0]!.asked)).toBeCloseTo(0.4, 12);
    expect(mean(layers[0]!.used)).toBeCloseTo(0.25 * 0.9, 12);
  });

  it("without predictors expects the gate row of every neuron and the rest of active ones", async () => {
    const { costs } = await costsOf("exact", {}, false);
    expect(costs.mode).toBe("exact");
    const { asked, used, predictor, predictorRows } = costs.layers[2]!;
    expect([...asked]).toEqual(Array(CONFIG.nNeurons).fill(1));
    frequencies(2).forEach((f, i) => expect(used[i]).toBeCloseTo(f, 12));
    expect([predictor, predictorRows]).toEqual([0, []]);
  });

  it("expects all of every neuron where none is ever idle", async () => {
    const { costs } = await costsOf("dense", { activation: { kind: "silu" } }, false);
    expect(costs.mode).toBe("dense");
    expect([...costs.layers[0]!.used]).toEqual(Array(CONFIG.nNeurons).fill(1));
  });

  it("rounds the context up to KV blocks, of which a token reads half on average", async () => {
    const { costs } = await costsOf("kv");
    const token = 2 * CONFIG.nKvHeads * CONFIG.headDim * 4;
    expect(costs.layers[0]).toMatchObject({ kv: 128 * token, kvRead: 64 * token });
  });
});
