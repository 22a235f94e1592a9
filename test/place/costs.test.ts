import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { silentContext } from "../../io/progress.ts";
import type { ModelConfig } from "../../model/config.ts";
import { modelCosts, type ModelCosts } from "../../place/costs.ts";
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
  return { inputs, costs: modelCosts(inputs.model, inputs.activations, inputs.predictors?.metrics, 100) };
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
      costs.head,
    );
    expect(counted + lookups).toBe(stored);
  });

  it("expects a token to read each neuron as often as the predictor will call it", async () => {
    const { costs, inputs } = await costsOf("predictor");
    expect(costs.mode).toBe("predictor");
    const { trueSparsity, predictedSparsity } = inputs.predictors!.metrics[1]!;
    const excess = (1 - predictedSparsity) / (1 - trueSparsity);
    frequencies(1).forEach((f, i) => expect(costs.layers[1]!.read[i]).toBeCloseTo(NEURON * Math.min(1, f * excess), 6));
  });

  it("without predictors expects the gate row of every neuron and the rest of active ones", async () => {
    const { costs } = await costsOf("exact", {}, false);
    expect(costs.mode).toBe("exact");
    frequencies(2).forEach((f, i) => expect(costs.layers[2]!.read[i]).toBeCloseTo((NEURON / 3) * (1 + 2 * f), 6));
  });

  it("expects all of every neuron where none is ever idle", async () => {
    const { costs } = await costsOf("dense", { activation: { kind: "silu" } }, false);
    expect(costs.mode).toBe("dense");
    expect([...costs.layers[0]!.read]).toEqual(Array(CONFIG.nNeurons).fill(NEURON));
  });

  it("rounds the context up to KV blocks, of which a token reads half on average", async () => {
    const { costs } = await costsOf("kv");
    const token = 2 * CONFIG.nKvHeads * CONFIG.headDim * 4;
    expect(costs.layers[0]).toMatchObject({ kv: 128 * token, kvRead: 64 * token });
  });
});
