/** Counts in PowerInfer's files become activations.arrow: in order of number, and no more is said than is known. */
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { activationsPath, readActivations } from "../../io/profile-files.ts";
import { silentContext } from "../../io/progress.ts";
import { importActivations, type ImportActivationsOptions } from "../../profile/import.ts";
import { profile } from "../../profile/profile.ts";
import { f32Value, torchFile, torchTensor, type TorchValue } from "../formats/torch-bytes.ts";
import { TINY, writeTinyModel } from "./tiny-model.ts";

const LAYERS = 12;
const N = TINY.nNeurons;
const FIXTURE = fileURLToPath(new URL("../fixtures/torch/activation", import.meta.url));

let dir: string;
let model: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-import-"));
  model = join(dir, "model");
  await writeTinyModel(model, { config: { ...TINY, nLayers: LAYERS } });
});
afterAll(() => rm(dir, { recursive: true }));

const i64 = (values: readonly number[]): TorchValue => {
  return { dtype: "i64", shape: [values.length], bytes: new Uint8Array(BigInt64Array.from(values, BigInt).buffer) };
};

/** Counts that say which layer and neuron they are of. */
const count = (layer: number, neuron: number): number => 1000 * layer + neuron;
const countsOf = (layer: number): number[] => Array.from({ length: N }, (_, neuron) => count(layer, neuron));

let folders = 0;
async function folderOf(files: Readonly<Record<string, Uint8Array>>): Promise<string> {
  const folder = join(dir, `folder-${folders++}`);
  await mkdir(folder);
  for (const [name, bytes] of Object.entries(files)) await writeFile(join(folder, name), bytes);
  return folder;
}
const filesOf = (layers: readonly number[]): Record<string, Uint8Array> =>
  Object.fromEntries(layers.map((layer) => [`activation_${layer}.pt`, torchTensor(i64(countsOf(layer)))]));
const all = Array.from({ length: LAYERS }, (_, layer) => layer);

/** Imports into a directory of its own. */
async function run(folder: string, options: Partial<ImportActivationsOptions> = {}, from = model) {
  const warnings: string[] = [];
  const out = join(dir, `out-${folders++}`);
  const context = { ...silentContext, warn: (message: string) => void warnings.push(message) };
  const result = await importActivations(from, { import: folder, out, ...options }, context);
  return { ...result, out, warnings };
}
const refusal = (folder: string, options: Partial<ImportActivationsOptions> = {}) =>
  run(folder, options).then(
    () => "imported",
    ({ code, message }: { code: string; message: string }) => `${code} ${message}`,
  );

describe("what is written", () => {
  test("has each layer's counts in its place: 10 comes after 9, not after 1", async () => {
    const { out } = await run(await folderOf(filesOf(all)), { tokens: 20_000 });
    const { layers } = await readActivations(activationsPath(out));
    expect(layers.map((layer) => Number(layer.count[3]))).toEqual(all.map((layer) => count(layer, 3)));
  });

  test("says what is known, and nothing else", async () => {
    const folder = await folderOf(filesOf(all));
    const { out, warnings } = await run(folder, { tokens: 20_000 });
    expect(warnings).toEqual([]);
    const activations = await readActivations(activationsPath(out));
    expect(activations).toMatchObject({ tokens: 20_000, heldoutTokens: 0, sampleRate: 0, corpora: [] });
    expect(activations.layers[5]!.magnitude.every((sum) => sum === 0n)).toBe(true);
    expect(activations.layers[5]!.contribution.every((sum) => sum === 0n)).toBe(true);
    const { options, inputs } = activations.provenance;
    expect(options).toEqual({ imported: true, tokens: 20_000 });
    expect(Object.keys(inputs)).toEqual(["model", ...all.map((layer) => `activation:${layer}`)]);
  });

  test("takes the highest count for the number of tokens, and says so", async () => {
    const { activations, warnings } = await run(await folderOf(filesOf(all)));
    expect(activations.tokens).toBe(count(LAYERS - 1, N - 1));
    expect(warnings).toEqual([expect.stringMatching(/tokens were counted is not said: at least 11074, .*--tokens/)]);
  });

  test("is the same for counts of any type", async () => {
    const counts = Array.from({ length: N }, (_, i) => 3 * i);
    const as = (dtype: TorchValue["dtype"], array: ArrayLike<number> & ArrayBufferView): TorchValue => {
      return { dtype, shape: [N], bytes: new Uint8Array(array.buffer) };
    };
    const files = filesOf(all);
    [
      i64(counts),
      as("i32", Int32Array.from(counts)),
      as("f64", Float64Array.from(counts)),
      f32Value([N], counts),
    ].forEach((value, layer) => (files[`activation_${layer}.pt`] = torchTensor(value)));
    const { activations } = await run(await folderOf(files));
    for (const layer of [0, 1, 2, 3]) expect([...activations.layers[layer]!.count].map(Number)).toEqual(counts);
  });

  test("is not made twice, but anew for other counts, another --tokens or --force", async () => {
    const folder = await folderOf(filesOf(all));
    const { out } = await run(folder);
    expect((await run(folder, { out })).upToDate).toBe(true);
    expect((await run(folder, { out, force: true })).upToDate).toBe(false);
    expect((await run(folder, { out, tokens: 30_000 })).upToDate).toBe(false);
    await writeFile(join(folder, "activation_4.pt"), torchTensor(i64(countsOf(7))));
    expect((await run(folder, { out, tokens: 30_000 })).upToDate).toBe(false);
  });

  test("takes the place of an earlier profile, samples included", async () => {
    const own = join(dir, "own");
    await writeTinyModel(own);
    const corpus = join(dir, "prose.txt");
    await writeFile(corpus, "The foxes jump over the dogs. ".repeat(100));
    await profile(own, { corpus: [corpus], window: 64, threads: 2 }, silentContext);
    expect((await readdir(join(own, "samples"))).length).toBe(3);
    await run(FIXTURE, { out: own }, own);
    expect(await readdir(join(own, "samples"))).toEqual([]);
  });

  test("comes from files of real torch, int64 and f32", async () => {
    const own = join(dir, "real");
    await writeTinyModel(own);
    const { activations } = await run(FIXTURE, {}, own);
    const bytes = await readFile(join(FIXTURE, "activation_0.pt"));
    const begin = 704; // where the storage lies, by Python's zipfile
    expect(Number(activations.layers[0]!.count[74])).toBe(Number(bytes.readBigInt64LE(begin + 74 * 8)));
    expect(activations.tokens).toBeGreaterThan(900);
  });
});

describe("refuses", () => {
  test.each<[string, () => Record<string, Uint8Array>, RegExp]>([
    [
      "a missing layer",
      () => filesOf(all.filter((layer) => layer !== 10)),
      /activation_0\.pt to activation_11\.pt.*found none for layer 10$/,
    ],
    ["missing layers", () => filesOf([0, 1]), /found none for layers 2, 3, 4, 5, 6, 7, 8, 9 and 2 more$/],
    ["layers that the model does not have", () => filesOf([...all, 12, 100]), /found more: layers 12, 100$/],
    [
      "a layer that is there twice",
      () => ({ ...filesOf(all), "activation_03.pt": torchTensor(i64(countsOf(3))) }),
      /layer 3 is in activation_03\.pt and in activation_3\.pt/,
    ],
    ["other files only", () => ({ "model_0.pt": new Uint8Array() }), /found none for layers 0/],
    [
      "another number of neurons",
      () => ({ ...filesOf(all), "activation_2.pt": torchTensor(i64([1, 2])) }),
      /activation_2\.pt: expected one tensor of counts \[75\], found I64 \[2\]/,
    ],
    ["a dictionary", () => ({ ...filesOf(all), "activation_2.pt": torchFile({ w: i64([1]) }) }), /found a dictionary/],
    [
      "frequencies",
      () => ({ ...filesOf(all), "activation_2.pt": torchTensor(f32Value([N], Array<number>(N).fill(0.5))) }),
      /neuron 0: expected a count of tokens, found 0\.5/,
    ],
    [
      "negative counts",
      () => ({ ...filesOf(all), "activation_2.pt": torchTensor(i64(Array<number>(N).fill(-1))) }),
      /found -1/,
    ],
    [
      "what is not a number",
      () => ({ ...filesOf(all), "activation_2.pt": torchTensor(f32Value([N], Array<number>(N).fill(NaN))) }),
      /found NaN/,
    ],
    [
      "nothing but zeros",
      () => Object.fromEntries(all.map((l) => [`activation_${l}.pt`, torchTensor(i64(Array<number>(N).fill(0)))])),
      /expected neurons that fired/,
    ],
  ])("%s", async (_name, files, message) => {
    expect(await refusal(await folderOf(files()))).toMatch(new RegExp(`^E_IMPORT .*${message.source}`));
  });

  test("fewer tokens than a neuron fired", async () => {
    expect(await refusal(await folderOf(filesOf(all)), { tokens: 11_000 })).toMatch(
      /E_IMPORT .*at most 11000 tokens, found 11074 in layer 11/,
    );
  });

  test("a damaged file, leaving what was there", async () => {
    const folder = await folderOf(filesOf(all));
    const { out } = await run(folder);
    const before = await readFile(activationsPath(out));
    await cp(join(folder, "activation_1.pt"), join(folder, "activation_2.pt"));
    await writeFile(join(folder, "activation_3.pt"), "damaged");
    await expect(run(folder, { out })).rejects.toMatchObject({ code: "E_TORCH" });
    expect(Buffer.compare(await readFile(activationsPath(out)), before)).toBe(0);
  });

  test("no folder", async () => {
    expect(await refusal(join(dir, "nowhere"))).toMatch(/E_IMPORT .*nowhere: cannot be read/);
  });
});
