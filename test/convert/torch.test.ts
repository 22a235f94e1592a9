/** Checkpoints that torch.save wrote become the same tensors as those that safetensors did. */
import { appendFile, cp, mkdir, mkdtemp, open, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { convert, type ConvertOptions } from "../../convert/convert.ts";
import { sha256File } from "../../io/hash.ts";
import { silentContext } from "../../io/progress.ts";
import { readTorchFile } from "../../io/torch-file.ts";
import { readModelFile, verifyTensors } from "../../model/model-file.ts";
import { native } from "../../native/index.ts";
import { torchFile, type TorchValue } from "../formats/torch-bytes.ts";
import { fixture, listeningContext, loadFixture, type SourceModel } from "./helpers.ts";

const OPT = fixture("torch/opt");
const SHARDS = [1, 2].map((i) => `pytorch_model-0000${i}-of-00002.bin`);
const INDEX = "pytorch_model.bin.index.json";
const quiet = { ...silentContext, warn: () => undefined };

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-convert-torch-"));
});
afterAll(() => rm(dir, { recursive: true }));
const fresh = (): Promise<string> => mkdtemp(join(dir, "x-"));

/** A folder with the config and some files of the fixture that real torch made. */
async function folderOf(names: readonly string[]): Promise<string> {
  const folder = await fresh();
  for (const name of ["config.json", ...names]) await cp(join(OPT, name), join(folder, name));
  return folder;
}

/** A checkpoint of ours, as one torch file or two. */
async function writeTorch(folder: string, { config, tensors }: SourceModel, shards = 1): Promise<string> {
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
  const entries = [...tensors] as [string, TorchValue][];
  if (shards === 1) {
    await writeFile(join(folder, "pytorch_model.bin"), torchFile(Object.fromEntries(entries)));
    return folder;
  }
  const half = entries.length >> 1;
  const parts = [entries.slice(0, half), entries.slice(half)];
  for (const [i, part] of parts.entries())
    await writeFile(join(folder, SHARDS[i]!), torchFile(Object.fromEntries(part)));
  const weightMap = parts.flatMap((part, i) => part.map(([name]) => [name, SHARDS[i]!]));
  await writeFile(join(folder, INDEX), JSON.stringify({ weight_map: Object.fromEntries(weightMap) }));
  return folder;
}

/** Bytes of the tensors that a conversion wrote, and the identity of its weights. */
async function result(source: string, options: Partial<ConvertOptions> = {}) {
  const output = await fresh();
  await convert({ source, output, dtype: "q8_0", ...options }, quiet);
  const file = await readModelFile(output);
  await verifyTensors(file);
  return { weights: file.weights, tensors: file.metadata["pi.tensors"], inputs: file.provenance.inputs };
}

describe("what torch.save wrote", () => {
  test.each(["f32", "f16", "q8_0", "q4_0"] as const)("gives the same tensors as safetensors, as %s", async (dtype) => {
    const expected = await result(await folderOf(["model.safetensors"]), { dtype });
    for (const names of [["pytorch_model.bin"], [INDEX, ...SHARDS]]) {
      const actual = await result(await folderOf(names), { dtype });
      expect(actual.weights).toBe(expected.weights);
      expect(actual.tensors).toBe(expected.tensors);
      const weightFiles = names.filter((name) => name !== INDEX);
      expect(Object.keys(actual.inputs).sort()).toEqual(
        ["source:config.json", ...weightFiles.map((n) => `source:${n}`)].sort(),
      );
      for (const name of weightFiles) expect(actual.inputs[`source:${name}`]).toBe(await sha256File(join(OPT, name)));
    }
  });

  test("does so for every architecture and type, also in shards", async () => {
    for (const name of ["opt", "llama-relu", "falcon-40b", "bamboo"]) {
      const model = await loadFixture(name);
      const expected = await result(fixture(name));
      expect((await result(await writeTorch(await fresh(), model))).weights, name).toBe(expected.weights);
      expect((await result(await writeTorch(await fresh(), model, 2))).weights, name).toBe(expected.weights);
    }
  });

  test("may be bf16", async () => {
    const model = await loadFixture("opt");
    const [name] = [...model.tensors].find(([, { shape }]) => shape.length === 2)!;
    const { shape, bytes } = model.tensors.get(name)!;
    const stored = await native().convertTensor(bytes, "f32", "bf16", shape[0]!, shape[1]!, false);
    model.tensors.set(name, { dtype: "bf16", shape, bytes: stored });
    const file = await readTorchFile(join(await writeTorch(await fresh(), model), "pytorch_model.bin"));
    expect(file.tensors.get(name)!.dtype).toBe("BF16");
    expect((await result(await writeTorch(await fresh(), model), { dtype: "f32" })).weights).toMatch(/^[0-9a-f]{64}$/);
  });

  test("is not looked at where there is safetensors", async () => {
    const folder = await folderOf(["model.safetensors"]);
    await writeFile(join(folder, "pytorch_model.bin"), "damaged");
    await result(folder);
  });

  test("is up to date the second time, and not after a change of bytes that no tensor has", async () => {
    const folder = await folderOf(["pytorch_model.bin"]);
    const output = await fresh();
    const run = async () => (await convert({ source: folder, output, dtype: "f16" }, quiet)).converted;
    expect([await run(), await run()]).toEqual([true, false]);
    const path = join(folder, "pytorch_model.bin");
    const bytes = await readFile(path);
    bytes[bytes.indexOf("ZZZZ")]! ^= 1; // padding
    await writeFile(path, bytes);
    expect([await run(), await run()]).toEqual([true, false]);
  });
});

describe("an interrupted conversion of torch files", () => {
  test("goes on to the same bytes, wherever it was interrupted", async () => {
    const source = await writeTorch(await fresh(), await loadFixture("llama-relu"), 2);
    const whole = await fresh();
    const context = listeningContext();
    await convert({ source, output: whole, dtype: "q8_0" }, context);
    const { total } = context.seen[0]!;
    expect(context.seen.at(-1)!.done).toBe(total);
    const expected = await readFile(join(whole, "model.safetensors"));
    for (let after = 0; after < total; after += 30_000) {
      const output = await fresh();
      const controller = new AbortController();
      const progress = ({ done }: { done: number }) => done >= after && controller.abort();
      const interrupted = { ...quiet, signal: controller.signal, progress: (p: { done: number }) => void progress(p) };
      await expect(convert({ source, output, dtype: "q8_0" }, interrupted)).rejects.toMatchObject({
        name: "AbortError",
      });
      expect((await readdir(output)).length).toBe(2);
      await convert({ source, output, dtype: "q8_0" }, quiet);
      expect(Buffer.compare(await readFile(join(output, "model.safetensors")), expected)).toBe(0);
    }
  });

  test("notices a first shard that changed meanwhile", async () => {
    const source = await writeTorch(await fresh(), await loadFixture("llama-relu"), 2);
    const output = await fresh();
    const first = await readTorchFile(join(source, SHARDS[0]!));
    const controller = new AbortController();
    const progress = ({ done }: { done: number }) => void (done > first.size && controller.abort());
    await expect(
      convert({ source, output, dtype: "q8_0" }, { ...quiet, signal: controller.signal, progress }),
    ).rejects.toMatchObject({ name: "AbortError" });
    const file = await open(first.path, "r+");
    await file.write(Uint8Array.of(77), 0, 1, [...first.tensors.values()].at(-1)!.end - 2);
    await file.close();
    await expect(convert({ source, output, dtype: "q8_0" }, quiet)).rejects.toMatchObject({
      code: "E_SOURCE",
      message: expect.stringContaining("changed since") as string,
    });
  });
});

describe("refuses, leaving nothing", () => {
  test.each<[string, (folder: string) => Promise<void>, string, RegExp]>([
    [
      "a damaged file",
      (f) => appendFile(join(f, "pytorch_model.bin"), "x"),
      "E_ZIP",
      /pytorch_model\.bin: expected a zip file/,
    ],
    [
      "a tensor without a name",
      (f) => cp(fixture("torch/activation/activation_0.pt"), join(f, "pytorch_model.bin")),
      "E_TORCH",
      /expected a state dict, found a tensor without a name/,
    ],
    [
      "weights in the old format",
      (f) => cp(fixture("torch/legacy.pt"), join(f, "pytorch_model.bin")),
      "E_TORCH",
      /torch before 1\.6/,
    ],
    [
      "other weights",
      (f) => cp(fixture("torch/linear.pt"), join(f, "pytorch_model.bin")),
      "E_TENSOR",
      /missing tensor/,
    ],
  ])("%s", async (_name, damage, code, message) => {
    const folder = await folderOf(["pytorch_model.bin"]);
    await damage(folder);
    const output = join(await fresh(), "out");
    await expect(convert({ source: folder, output, dtype: "f32" }, quiet)).rejects.toMatchObject({
      code,
      message: expect.stringMatching(message) as string,
    });
    expect(await readdir(output).catch(() => [])).toEqual([]);
  });

  test("an index that leads elsewhere", async () => {
    for (const shard of ["../pytorch_model.bin", "model.safetensors"]) {
      const folder = await folderOf([INDEX, ...SHARDS]);
      await writeFile(join(folder, INDEX), JSON.stringify({ weight_map: { x: shard } }));
      await expect(convert({ source: folder, output: join(folder, "out"), dtype: "f32" }, quiet)).rejects.toMatchObject(
        {
          code: "E_SOURCE",
          message: expect.stringMatching(/x: expected a \.bin file of this folder, found/) as string,
        },
      );
    }
  });
});
