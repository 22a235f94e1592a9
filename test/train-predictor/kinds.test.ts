/** Every kind of predictor end to end: made from a profile, measured by the engine, packed into an artifact. */
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { WEIGHT_DTYPES } from "../../formats/dtypes.ts";
import type { ReadCosts } from "../../formats/hardware.ts";
import { PREDICTOR_KINDS, type PredictorKind } from "../../formats/predictors.ts";
import { heldoutPath, readHeldout } from "../../io/profile-files.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors } from "../../io/safetensors-file.ts";
import type { ModelConfig } from "../../model/config.ts";
import { openModel } from "../../model/open.ts";
import { measureQuality, qualityTokens } from "../../model/quality.ts";
import { predictorSpecs } from "../../model/tensors.ts";
import { profile } from "../../profile/profile.ts";
import { predictorsPath, trainPredictors, type TrainPredictorOptions } from "../../train-predictor/train-predictor.ts";
import { impossible } from "../../train-predictor/training-free.ts";
import { BANDWIDTH_ONLY, costsOfShare } from "../place/ideal-work.ts";
import { TINY, writeTinyModel } from "../profile/tiny-model.ts";
import { HARDWARE } from "./hardware.ts";

/** Random weights: low rank finds little in them, and the perplexity may go either way. */
const OPTIONS: TrainPredictorOptions = {
  recall: 0.9,
  maxPerplexityRatio: 1.1,
  epochs: 3,
  threads: 2,
  maxSize: 1,
  hardware: HARDWARE,
};

const MODELS: Record<string, ModelConfig> = {
  gated: TINY,
  "without a gate, with biases": {
    ...TINY,
    gated: false,
    norm: "layer",
    bias: { qkv: false, attnOut: false, ffn: true, head: false },
  },
};

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-kinds-"));
  const text = Array.from({ length: 300 }, (_, i) => `The ${i % 13} foxes of ${i * i} hills jump over dogs. `);
  await writeFile(join(dir, "prose.txt"), text.join(""));
  for (const [name, config] of Object.entries(MODELS)) {
    await writeTinyModel(join(dir, name), { config });
    await profile(join(dir, name), { corpus: [join(dir, "prose.txt")], window: 64, threads: 2 }, silentContext);
  }
});
afterAll(() => rm(dir, { recursive: true }));

let copies = 0;
async function copy(of: string): Promise<string> {
  const to = join(dir, `copy-${copies++}`);
  await cp(join(dir, of), to, { recursive: true });
  return to;
}

describe.each(Object.entries(MODELS))("%s", (name, config) => {
  test.each(PREDICTOR_KINDS)("%s is calibrated, measured and stored as what it is", async (kind) => {
    const where = await copy(name);
    const result = await trainPredictors(where, { ...OPTIONS, kind }, silentContext);
    const file = await readSafetensors(result.path);
    result.metrics.forEach((layer, index) => {
      expect(layer.kind).toBe(kind);
      const names = predictorSpecs(config, index, layer.rank, kind).map(({ name: tensor }) => tensor);
      const stored = [...file.tensors].filter(([tensor]) => tensor.startsWith(`layers.${index}.`));
      expect(stored.map(([tensor]) => tensor)).toEqual(names);
      expect(layer.bytes).toBe(stored.reduce((sum, [, { begin, end }]) => sum + end - begin, 0));
      const [considered] = result.considered[index]!;
      expect(considered).toMatchObject({ kind, rank: layer.rank, bytes: layer.bytes });
    });

    const { windows } = await readHeldout(heldoutPath(where));
    const opened = await openModel(where, { predictors: result.path, contextTokens: qualityTokens(64, 1), threads: 1 });
    try {
      const again = await measureQuality(opened, windows, "predictor", silentContext);
      expect(again).toMatchObject(result.quality);
      // Calibrated on held-out samples of the same text; the gate may ask for more.
      expect(again.weightedRecall).toBeGreaterThan(0.88);
      if (kind === "exact") expect(again).toMatchObject({ weightedRecall: 1, meanKl: 0, perplexityRatio: 1 });
    } finally {
      opened.close();
    }
  });
});

test.each(["sign", "lowbit", "svd"] as const)("%s is the same bytes again, whatever the threads", async (kind) => {
  const [a, b] = [await copy("gated"), await copy("gated")];
  await trainPredictors(a, { ...OPTIONS, kind, threads: 1 }, silentContext);
  await trainPredictors(b, { ...OPTIONS, kind, threads: 3 }, silentContext);
  const bytes = (where: string) => readFile(predictorsPath(where));
  expect((await bytes(a)).equals(await bytes(b))).toBe(true);
});

test("auto takes per layer what costs least at the recall it runs at, and reports all", async () => {
  const where = await copy("gated");
  const { metrics, considered, ffn } = await trainPredictors(where, OPTIONS, silentContext);
  metrics.forEach(({ kind, weightedRecall }, layer) => {
    expect(considered[layer]!.map((predictor) => predictor.kind)).toEqual([...PREDICTOR_KINDS]);
    const own = considered[layer]!.find((predictor) => predictor.kind === kind)!;
    for (const { curve } of considered[layer]!) {
      // Points that reach this recall; curves are reported at fewer points than are chosen from.
      const others = curve.filter((point) => point.weightedRecall >= weightedRecall);
      for (const { secondsPerToken } of others) {
        expect(ffn[layer]!.predictor.seconds).toBeLessThanOrEqual(1.001 * secondsPerToken!);
      }
    }
    expect(own.curve.length).toBeGreaterThan(0);
  });
  // An mlp that knows the random weights' signs less well than they do is not worth its bytes.
  expect(new Set(metrics.map(({ kind }) => kind)).has("mlp")).toBe(false);
});

test("auto chooses for the machine that is described", async () => {
  const where = await copy("gated");
  const cost = { seconds: 0, share: 1 };
  const dear = { ...costsOfShare(1), signs: { seconds: 0, share: 1e6 } };
  // Signs are free, and so is nothing else that could tell.
  for (const type of WEIGHT_DTYPES) dear.rows[type] = { ...dear.rows[type], project: { seconds: 1, share: 1 } };
  const kindsOn = async (name: string, memory: ReadCosts) => {
    const work = { ...BANDWIDTH_ONLY, memory };
    const machine = {
      name,
      cpu: { bandwidth: 1e9, work },
      gpu: null,
      link: { bandwidth: 1, syncSeconds: 0 },
      source: "",
    };
    const hardware = join(dir, `${name}.json`);
    await writeFile(hardware, JSON.stringify(machine));
    const { metrics, upToDate } = await trainPredictors(where, { ...OPTIONS, hardware }, silentContext);
    expect(upToDate).toBe(false);
    return new Set(metrics.map(({ kind }) => kind));
  };
  expect(await kindsOn("signs", dear)).toEqual(new Set(["sign"]));
  const picked = { ...costsOfShare(1), rows: { ...costsOfShare(1).rows } };
  // Picked rows are no faster than all rows, so that knowing which ones are needed saves nothing.
  for (const type of WEIGHT_DTYPES)
    picked.rows[type] = { project: cost, dense: cost, sparse: { seconds: 1, share: 1 } };
  expect(await kindsOn("streams", picked)).toEqual(new Set(["exact"]));
});

test("auto leaves out what would be too large, and the report does not", async () => {
  const where = await copy("gated");
  const { metrics, considered, sizeShare } = await trainPredictors(where, { ...OPTIONS, maxSize: 0.02 }, silentContext);
  expect(sizeShare).toBeLessThanOrEqual(0.02);
  expect(metrics.map(({ kind }) => kind)).not.toContain("lowbit");
  for (const layer of considered) expect(layer.map(({ kind }) => kind)).toContain("lowbit");
});

test("kinds that cannot be had", () => {
  const problem = (kind: PredictorKind, dim: number, gate: Parameters<typeof impossible>[2]) =>
    impossible(kind, { dim, nNeurons: 10 }, gate);
  expect(problem("sign", 12, "f16")).toBe("rows of 12 signs are no whole number of bytes");
  expect(problem("lowbit", 48, "f16")).toBe("rows of 48 weights are no whole number of q4_0's blocks");
  expect(problem("lowbit", 64, "q4_0")).toBe("the gate is q4_0: a copy in q4_0 is no smaller");
  expect(problem("lowbit", 64, "q8_0")).toBeUndefined();
  for (const kind of ["exact", "svd", "mlp"] as const) expect(problem(kind, 12, "q4_0")).toBeUndefined();
});

test("the one that is asked for and cannot be had is an error", async () => {
  const odd = join(dir, "odd");
  await writeTinyModel(odd, { config: { ...TINY, dim: 36, headDim: 18 } });
  await profile(odd, { corpus: [join(dir, "prose.txt")], window: 64, threads: 2 }, silentContext);
  const call = trainPredictors(odd, { ...OPTIONS, kind: "sign" }, silentContext);
  await expect(call).rejects.toThrow(/no predictors of kind sign: rows of 36 signs/);
  await expect(call).rejects.toThrow(expect.objectContaining({ code: "E_PREDICTOR" }));
});
