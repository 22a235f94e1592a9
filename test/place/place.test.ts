import { mkdtemp, open, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { silentContext, type StageContext } from "../../io/progress.ts";
import { readSafetensors, readTensorBytes } from "../../io/safetensors-file.ts";
import { readArtifact } from "../../model/artifact.ts";
import { readModelFile, verifyTensors } from "../../model/model-file.ts";
import { openModel } from "../../model/open.ts";
import { FFN_MODE, KV_BLOCK, type FfnMode } from "../../native/index.ts";
import { place, type PlaceOptions } from "../../place/place.ts";
import { writeRandomPredictors } from "../model/random-predictors.ts";
import { budgetFor, CONFIG, countOf, FAST_GPU, writeWorkingDir } from "./working-dir.ts";

let dir: string;
let hardware: string;
const at = (name: string): string => join(dir, name);

beforeEach(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-place-"));
  hardware = at("hardware.json");
  await writeFile(hardware, JSON.stringify(FAST_GPU));
  await writeWorkingDir(at("model"));
});
afterEach(() => rm(dir, { recursive: true }));

/** Places the model of this test on the test machine. */
function run(options: Partial<PlaceOptions> = {}, context: StageContext = silentContext) {
  return place(at("model"), { out: at("x.pi"), vram: 1 << 28, hardware, solver: "greedy", ...options }, context);
}

/** Neurons of a layer by frequency, ties by index. */
const hotFirst = (layer: number): number[] =>
  Array.from({ length: CONFIG.nNeurons }, (_, i) => i).sort((a, b) => countOf(layer, b) - countOf(layer, a) || a - b);

async function logits(path: string, mode: FfnMode, predictors?: string): Promise<Float32Array> {
  const model = await openModel(path, { threads: 1, contextTokens: KV_BLOCK, ...(predictors && { predictors }) });
  try {
    const rows = 12;
    const result = await model.engine.step({
      tokens: Int32Array.from({ length: rows }, (_, i) => (i * 31) % CONFIG.vocabSize),
      positions: Int32Array.from({ length: rows }, (_, i) => i),
      sequences: new Int32Array(rows),
      blockTables: Int32Array.of(0),
      blocksPerSequence: 1,
      modes: new Uint8Array(rows).fill(FFN_MODE[mode]),
      outputs: Int32Array.from({ length: rows }, (_, i) => i),
      returnLogits: true,
    });
    return result.logits!;
  } finally {
    model.close();
  }
}

describe("predictors of several kinds", () => {
  const KINDS = ["sign", "lowbit", "svd"] as const;

  it("are packed with their neurons and predict the same, up to the order of sums", async () => {
    const predictors = await writeRandomPredictors(at("model"), 16, KINDS);
    await run();
    const [source, artifact] = [await readSafetensors(predictors), await readSafetensors(at("x.pi"))];
    for (const [name, { shape, begin, end }] of source.tensors) {
      if (name.startsWith("pad.")) continue;
      const [before, after] = [await readTensorBytes(source, name), await readTensorBytes(artifact, name)];
      const size = (end - begin) / shape[0]!;
      const order = name.endsWith("v.weight")
        ? Array.from({ length: shape[0]! }, (_, i) => i)
        : hotFirst(Number(name.split(".")[1]));
      const expected = Buffer.concat(order.map((row) => before.subarray(row * size, (row + 1) * size)));
      expect(expected.equals(after), name).toBe(true);
    }
    const packed = await logits(at("x.pi"), "predictor");
    const plain = await logits(at("model"), "predictor", predictors);
    const largest = plain.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    packed.forEach((value, i) => expect(Math.abs(value - plain[i]!)).toBeLessThan(1e-4 * largest));
    expect(readArtifact(await readModelFile(at("x.pi"))).predictors!.map(({ kind }) => kind)).toEqual([...KINDS]);
  });

  it("may leave all layers exact: predictor mode is then exact mode", async () => {
    await writeRandomPredictors(at("model"), 16, ["exact", "exact", "exact"]);
    await run();
    expect(await logits(at("x.pi"), "predictor")).toEqual(await logits(at("x.pi"), "exact"));
  });
});

describe("the artifact", () => {
  it("holds every row of every neuron, hot first, and all else unchanged", async () => {
    await run();
    const artifact = await readSafetensors(at("x.pi"));
    const model = await readSafetensors(at("model/model.safetensors"));
    const predictors = await readSafetensors(at("model/predictors.safetensors"));
    expect(artifact.dataStart % 4096).toBe(0);
    for (const source of [model, predictors]) {
      for (const [name, { shape, begin, end }] of source.tensors) {
        if (name.startsWith("pad.")) continue;
        const [before, after] = [await readTensorBytes(source, name), await readTensorBytes(artifact, name)];
        const [, layer, part] = /^layers\.(\d)\.(.*)$/.exec(name) ?? [];
        const moves = part !== undefined && /^(ffn\.(gate|up|down_t)|predictor\.fc2)\./.test(part);
        const order = moves ? hotFirst(Number(layer)) : Array.from({ length: shape[0]! }, (_, i) => i);
        const size = (end - begin) / shape[0]!;
        const expected = Buffer.concat(order.map((row) => before.subarray(row * size, (row + 1) * size)));
        expect(expected.equals(after), name).toBe(true);
      }
    }
    for (let layer = 0; layer < CONFIG.nLayers; layer++) {
      const bytes = await readTensorBytes(artifact, `layers.${layer}.neurons`);
      const neurons = new Int32Array(bytes.buffer, bytes.byteOffset, CONFIG.nNeurons);
      expect([...neurons]).toEqual(hotFirst(layer));
    }
    await verifyTensors(await readModelFile(at("x.pi")));
  });

  it("carries tokenizer, predictors, quality, name and where it came from", async () => {
    await run({ name: "tiny" });
    const [file, model] = [await readModelFile(at("x.pi")), await readModelFile(at("model"))];
    const artifact = readArtifact(file);
    expect(artifact.name).toBe("tiny");
    expect(artifact.files["tokenizer.json"]).toBe(await readFile(at("model/tokenizer.json"), "utf8"));
    expect(artifact.predictors).toHaveLength(CONFIG.nLayers);
    expect(artifact.quality).toMatchObject({ perplexityRatio: 1.001 });
    expect(file.weights).toBe(model.weights);
    expect(Object.keys(file.provenance.inputs).sort()).toEqual(["activations", "files", "model", "predictors"]);
    expect(file.provenance).toMatchObject({ stage: "place", options: { vram: 1 << 28, name: "tiny" } });
  });

  it("gives the same logits bit for bit whatever the budget, and dense those of the model it was made from", async () => {
    const names = ["none", "half", "all"];
    const budgets = [0, await budgetFor(at("model"), 0.5), 1 << 30];
    for (const [i, name] of names.entries()) await run({ vram: budgets[i]!, out: at(`${name}.pi`) });
    const splits = await Promise.all(
      names.map(async (name) => readArtifact(await readModelFile(at(`${name}.pi`))).placement),
    );
    expect(splits.map(({ gpuShare }) => gpuShare)).toEqual([
      0,
      expect.toSatisfy((share: number) => share > 0.2 && share < 0.8),
      1,
    ]);
    for (const mode of ["dense", "exact", "predictor"] as const) {
      const [first, ...others] = await Promise.all(names.map((name) => logits(at(`${name}.pi`), mode)));
      for (const other of others) expect(Buffer.from(other.buffer).equals(Buffer.from(first!.buffer))).toBe(true);
    }
    // The sum over neurons runs in another order than before packing, so only nearly the same.
    const [packed, original] = [await logits(at("all.pi"), "dense"), await logits(at("model"), "dense")];
    const range = Math.max(...original) - Math.min(...original);
    const worst = original.reduce((most, x, i) => Math.max(most, Math.abs(x - packed[i]!)), 0);
    expect(worst).toBeLessThan(1e-5 * range);
  });

  it("is made without predictors too, with a warning", async () => {
    await rm(at("model/predictors.safetensors"));
    const warnings: string[] = [];
    const { predictors } = await run({}, { ...silentContext, warn: (text) => warnings.push(text) });
    expect(predictors).toBe(false);
    expect(warnings).toEqual([expect.stringContaining("predictors.safetensors: no such file")]);
    const artifact = readArtifact(await readModelFile(at("x.pi")));
    expect(artifact.predictors).toBeUndefined();
    expect(artifact.placement.memory.predictors).toBe(0);
  });
});

describe("running again", () => {
  it("does nothing when nothing changed, and places again when something did or --force says so", async () => {
    expect(await run()).toMatchObject({ upToDate: false });
    const { mtimeMs } = await stat(at("x.pi"));
    const again = await run();
    expect(again).toMatchObject({ upToDate: true, predictors: true });
    expect((await stat(at("x.pi"))).mtimeMs).toBe(mtimeMs);
    expect(await run({ force: true })).toEqual({ ...again, upToDate: false });
    expect(await run({ vram: 1 << 27 })).toMatchObject({ upToDate: false });
    await writeFile(hardware, JSON.stringify({ ...FAST_GPU, name: "another" }));
    expect(await run({ vram: 1 << 27 })).toMatchObject({ upToDate: false });
    await writeFile(at("model/generation_config.json"), "{}");
    expect(await run({ vram: 1 << 27 })).toMatchObject({ upToDate: false });
  });

  it("makes the same bytes", async () => {
    await run();
    const first = await readFile(at("x.pi"));
    await run({ force: true });
    expect((await readFile(at("x.pi"))).equals(first)).toBe(true);
  });
});

describe("what does not fit", () => {
  /** Expects a failure that leaves no file behind. */
  async function fails(options: Partial<PlaceOptions>, code: string, message: RegExp): Promise<void> {
    await expect(run(options)).rejects.toMatchObject({ code, message: expect.stringMatching(message) as string });
    expect((await readdir(dir)).filter((name) => name.includes("x.pi"))).toEqual([]);
  }

  it("refuses a budget too small for anything, with what is needed and what was given", async () => {
    await fails({ vram: 1500 }, "E_BUDGET", /expected 0 \(CPU only\) or at least \d+ bytes \(.*\), got 1500$/);
  });

  it("refuses a budget above what the card has", async () => {
    await fails({ vram: 2 ** 31 }, "E_BUDGET", /test GPU: expected at most 1073741824 bytes, got 2147483648$/);
  });

  it("refuses activations and predictors of other weights, naming both sides", async () => {
    await writeWorkingDir(at("other"), { seed: 2 });
    const { weights: mine } = await readModelFile(at("model"));
    const { weights: others } = await readModelFile(at("other"));
    for (const name of ["predictors.safetensors", "activations.arrow"]) {
      await writeFile(at(`model/${name}`), await readFile(at(`other/${name}`)));
      const sides = new RegExp(
        `${name}: made for weights ${others.slice(0, 12)}, but this is weights ${mine.slice(0, 12)}`,
      );
      await fails({}, "E_MISMATCH", sides);
    }
  });

  it("refuses damaged weights and predictors while copying", async () => {
    for (const [name, tensor] of [
      ["predictors.safetensors", "layers.1.predictor.fc1.weight"],
      ["model.safetensors", "layers.2.ffn.up.weight"],
    ] as const) {
      await writeWorkingDir(at("model"));
      const path = at(`model/${name}`);
      const { begin } = (await readSafetensors(path)).tensors.get(tensor)!;
      const file = await open(path, "r+");
      await file.write(Buffer.of(0x7f), 0, 1, begin + 3);
      await file.close();
      await fails({}, "E_CHECKSUM", new RegExp(`tensor ${tensor}: expected sha256`));
    }
  });

  it("refuses an artifact, a missing profile and a broken hardware file", async () => {
    await fails({ hardware: at("none.json") }, "E_FILE", /none\.json: expected a hardware file/);
    await writeFile(hardware, JSON.stringify({ ...FAST_GPU, cpu: { bandwidth: "fast" } }));
    await fails({}, "E_HARDWARE", /cpu\.bandwidth: expected a number of at least 1, got "fast"/);
    await rm(at("model/activations.arrow"));
    await fails({}, "E_FILE", /activations\.arrow: expected the output of pi profile/);
    await writeWorkingDir(at("model"));
    await writeFile(hardware, JSON.stringify(FAST_GPU));
    await run({ out: at("a.pi") });
    await expect(place(at("a.pi"), { out: at("b.pi"), vram: 0 }, silentContext)).rejects.toMatchObject({
      code: "E_FORMAT",
    });
  });

  it("leaves an older artifact alone when it is interrupted", async () => {
    await run();
    const before = await readFile(at("x.pi"));
    const controller = new AbortController();
    const context = { ...silentContext, signal: controller.signal, progress: () => controller.abort() };
    await expect(run({ vram: 1 << 27 }, context)).rejects.toThrow();
    expect((await readFile(at("x.pi"))).equals(before)).toBe(true);
    expect((await readdir(dir)).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  });
});
