/** The kernels that placement prices are those that the engine launches, counted on an emulated device. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { hasRank, PREDICTOR_KINDS, type PredictorKind } from "../../formats/predictors.ts";
import { readSafetensors } from "../../io/safetensors-file.ts";
import { tokenKernels, type LayerOnGpu } from "../../model/gpu-kernels.ts";
import { readModelFile, storedTensors, type ModelFile } from "../../model/model-file.ts";
import { GREEDY_CHOICE } from "../../model/neutral-choice.ts";
import { tensorRefs } from "../../model/open.ts";
import type { ModelConfig } from "../../model/config.ts";
import { FFN_MODE, native, type GpuOptions } from "../../native/index.ts";
import { writeRandomPredictors } from "../model/random-predictors.ts";
import { CONFIG, writeWorkingDir } from "./working-dir.ts";

process.env["PI_DEVICE"] = "emulated";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-kernels-"));
});
afterAll(() => rm(dir, { recursive: true }));

interface Model {
  file: ModelFile;
  /** Predictors, and how many matrices each layer's has. */
  predictors: { path: string; scores: number[] } | undefined;
}

async function write(name: string, config: ModelConfig, kinds?: readonly PredictorKind[]): Promise<Model> {
  const at = join(dir, name);
  await writeWorkingDir(at, { config, predictors: false });
  const file = await readModelFile(at);
  if (!kinds) return { file, predictors: undefined };
  const path = await writeRandomPredictors(at, 32, kinds);
  const scores = kinds.map((kind) => (kind === "exact" ? 0 : hasRank(kind) ? 2 : 1));
  return { file, predictors: { path, scores } };
}

/** Kernels of a decoded token, by the engine: the second step is what it launches from then on. */
async function launched({ file, predictors }: Model, gpu: GpuOptions): Promise<number> {
  const stored = predictors && storedTensors(await readSafetensors(predictors.path));
  const engine = native().openEngine({
    files: [file.path, ...(predictors ? [predictors.path] : [])],
    tensors: [...tensorRefs(file.tensors, 0), ...(stored ? tensorRefs(stored, 1) : [])],
    config: JSON.stringify(file.config),
    thresholds: new Float32Array(predictors ? file.config.nLayers : 0),
    threads: 1,
    kvBlocks: 2,
    kvType: "f32",
    gpu,
  });
  try {
    for (let position = 0; position < 2; position++) {
      engine.resetStats();
      await engine.step({
        tokens: Int32Array.of(1 + position),
        positions: Int32Array.of(position),
        sequences: Int32Array.of(0),
        blockTables: Int32Array.of(0, 1),
        blocksPerSequence: 2,
        modes: Uint8Array.of(predictors ? FFN_MODE.predictor : FFN_MODE.exact),
        outputs: Int32Array.of(0),
        returnLogits: false,
        choose: [GREEDY_CHOICE],
      });
    }
    return engine.stats().gpu!.kernels;
  } finally {
    engine.close();
  }
}

/** Every layer with none, some or all of its neurons, with attention or not, by the digits of `seed`; and the head. */
function splitOf({ file: { config }, predictors }: Model, seed: number) {
  const neurons = ["none", "some", "all"] as const;
  const layers = Array.from({ length: config.nLayers }, (_, l): LayerOnGpu => {
    const digit = Math.floor(seed / 6 ** l) % 6;
    const has = neurons[digit % 3]!;
    // The predictor may be there alone.
    const there = has !== "none" || (seed + l) % 4 === 0;
    return { attention: digit >= 3, neurons: has, scores: there ? (predictors?.scores[l] ?? 0) : 0 };
  });
  const head = seed % 2 === 0;
  const gpu: GpuOptions = {
    layers: layers.map((layer) => ({
      neurons: { none: 0, some: 64, all: config.nNeurons }[layer.neurons],
      attention: layer.attention,
      predictor: layer.scores > 0,
    })),
    head,
    vramBytes: 2 ** 40,
    maxRows: 4,
  };
  return { layers, head, gpu };
}

const KINDS = PREDICTOR_KINDS.filter((kind) => kind !== "exact");
const parallel = { ...CONFIG, parallelResidual: true };

describe("the kernels of a token are those that placement prices", () => {
  it.each<[string, ModelConfig, readonly PredictorKind[] | undefined]>([
    ["without predictors", CONFIG, undefined],
    ["with predictors of two matrices and of one, and an exact layer", CONFIG, ["mlp", "sign", "exact"]],
    ["with the other kinds of predictors", CONFIG, ["svd", "lowbit", "mlp"]],
    ["with attention and FFN side by side, two norms", parallel, undefined],
    ["with attention and FFN side by side, one norm", { ...parallel, sharedNorm: true }, undefined],
  ])("%s", async (name, config, kinds) => {
    const model = await write(name, config, kinds);
    for (let seed = 0; seed < 6 ** 3 + 6; seed += 5) {
      const { layers, head, gpu } = splitOf(model, seed);
      const expected = tokenKernels(layers, head, config);
      if (expected === 0) continue;
      expect({ seed, layers, head, kernels: await launched(model, gpu) }).toEqual({
        seed,
        layers,
        head,
        kernels: expected,
      });
    }
  });

  it("is tested with every kind", () => {
    expect(KINDS.toSorted()).toEqual(["lowbit", "mlp", "sign", "svd"]);
  });
});
