import { mkdtemp, rm, truncate } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { writeSafetensors } from "../../io/safetensors-file.ts";
import { CONFIG, HALF, TOKENS, writePlaced } from "../place/working-dir.ts";
import { inProcess } from "./in-process.ts";
import { pi, piJson } from "./pi.ts";

let dir: string;
const at = (name: string): string => join(dir, name);

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-cli-inspect-"));
  await writePlaced(dir);
});
afterAll(() => rm(dir, { recursive: true }));

/** Weights of the test model: embedding (tied), attention, norms and neurons. */
function parameters(): number {
  const { dim, nHeads, nKvHeads, headDim, nNeurons, nLayers, vocabSize } = CONFIG;
  const layer = 2 * dim * headDim * (nHeads + nKvHeads) + 3 * dim * nNeurons + 2 * dim;
  return vocabSize * dim + nLayers * layer + dim;
}

describe("pi inspect", () => {
  test("shows an artifact: config, parts, placement, predictors, quality, provenance", async () => {
    const report = await piJson<Record<string, unknown>>(["inspect", at("x.pi")]);
    expect(report).toMatchObject({ format: "artifact", config: CONFIG, parameters: parameters(), name: "x" });
    expect(report["placement"]).toMatchObject({ vramBudget: HALF });
    expect(report["predictors"]).toHaveLength(CONFIG.nLayers);
    expect(report["quality"]).toMatchObject({ perplexityRatio: 1.001 });
    expect(report["provenance"]).toMatchObject({ model: { stage: "place" } });
    expect(report["tensors"]).toBeUndefined();
    const { stdout } = await pi(["inspect", at("x.pi")]);
    for (const text of ["neurons", "neuron order", "GPU neurons", "weighted recall", "made by"])
      expect(stdout).toContain(text);
  });

  test("shows a directory with all that the stages left in it, and how sparse each layer is", async () => {
    const report = await piJson<{ activations: { tokens: number; layers: { idle: number }[] }; provenance: object }>([
      "inspect",
      at("model"),
    ]);
    expect(report).toMatchObject({ format: "model", parameters: parameters() });
    expect(report.activations.tokens).toBe(TOKENS);
    for (const { idle } of report.activations.layers) expect(idle).toBeGreaterThan(0.5);
    expect(Object.keys(report.provenance)).toEqual(["model", "activations", "predictors"]);
  });

  test("shows each file alone", async () => {
    expect(await piJson(["inspect", at("model/model.safetensors")])).toMatchObject({ format: "model" });
    expect(await piJson(["inspect", at("model/activations.arrow")])).toMatchObject({ activations: { tokens: TOKENS } });
    expect(await piJson(["inspect", at("model/predictors.safetensors")])).toHaveProperty(
      "predictors.length",
      CONFIG.nLayers,
    );
  });

  test("lists every tensor when asked", async () => {
    const { tensors } = await piJson<{ tensors: { name: string; shape: number[] }[] }>([
      "inspect",
      at("x.pi"),
      "--tensors",
    ]);
    expect(tensors).toContainEqual(expect.objectContaining({ name: "layers.2.neurons", dtype: "i32", shape: [200] }));
    const { stdout } = await pi(["inspect", at("x.pi"), "--tensors"]);
    expect(stdout).toMatch(/^layers\.1\.ffn\.down_t\.weight +f32 +200 × 64 +50 KiB +[0-9a-f]{12}$/m);
  });

  test("refuses what it does not know, in one line", async () => {
    await writeSafetensors(at("other.safetensors"), [], {
      metadata: () => ({}),
      produce: () => Promise.resolve(new Uint8Array()),
    });
    expect(await inProcess(["inspect", at("other.safetensors")])).toEqual({
      code: 1,
      stderr: `pi: ${at("other.safetensors")}: expected a model, an artifact, activations or predictors, found another file [E_FORMAT]\n`,
    });
    expect(await inProcess(["inspect", at("none")])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("ENOENT [E_FILE]") as string,
    });
    await truncate(at("x.pi"), 1000);
    expect(await inProcess(["inspect", at("x.pi")])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining("E_SAFETENSORS") as string,
    });
  });
});
