import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { convert } from "../../convert/convert.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors, readTensorBytes, writeSafetensors, type OutputTensor } from "../../io/safetensors-file.ts";
import { readModelFile, verifyTensors, type ModelFile } from "../../model/model-file.ts";

const source = join(dirname(fileURLToPath(import.meta.url)), "..", "fixtures", "llama-relu");
let dir: string;
let model: ModelFile;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-model-file-"));
  await convert({ source, output: dir, dtype: "q8_0" }, silentContext);
  model = await readModelFile(dir);
});
afterAll(() => rm(dir, { recursive: true }));

test("opens a folder or its file, with logical types and shapes", async () => {
  expect(await readModelFile(join(dir, "model.safetensors"))).toEqual(model);
  expect(model).toMatchObject({ format: "model", dtype: "q8_0", config: { dim: 64 } });
  const gate = model.tensors.get("layers.0.ffn.gate.weight")!;
  expect(gate).toMatchObject({ dtype: "q8_0", shape: [80, 64], bytes: 80 * 68 });
  expect(gate.offset % 64).toBe(0);
  expect(model.provenance).toMatchObject({ stage: "convert", options: { dtype: "q8_0" } });
});

test("verifies every tensor, and names the one with a flipped bit", async () => {
  const file = await open(model.path, "r+");
  const byte = new Uint8Array(1);
  for (const [name, { offset, bytes }] of model.tensors) {
    for (const at of [offset, offset + bytes - 1]) {
      await file.read(byte, 0, 1, at);
      await file.write(Uint8Array.of(byte[0]! ^ 4), 0, 1, at);
      await expect(verifyTensors(model)).rejects.toMatchObject({
        code: "E_CHECKSUM",
        message: expect.stringContaining(`tensor ${name}: expected sha256`) as string,
      });
      await file.write(byte, 0, 1, at);
    }
  }
  await file.close();
  await verifyTensors(model);
});

type Table = Record<string, { dtype: string; shape: number[]; sha256: string }>;

/** The model again, with other metadata or without some tensors; returns why it is refused. */
async function refusal(
  metadata: Record<string, string>,
  drop = "",
): Promise<{ code: string; message: string } | string> {
  const path = join(dir, "changed.safetensors");
  const original = await readSafetensors(model.path);
  const tensors = [...model.tensors]
    .filter(([name]) => name !== drop)
    .map(([name, { dtype, shape }]): OutputTensor => ({ name, dtype, shape }));
  const { "pi.tensors": table, ...others } = { ...original.metadata, ...metadata };
  await writeSafetensors(path, tensors, {
    metadata: () => others,
    produce: ({ name }) => readTensorBytes(original, name),
  });
  if (table !== original.metadata["pi.tensors"]) await replaceTable(path, table!);
  return readModelFile(path).then(
    () => "accepted",
    (error: { code: string; message: string }) => ({ code: error.code, message: error.message }),
  );
}

/** Puts another `pi.tensors` of the same length into a file. */
async function replaceTable(path: string, table: string): Promise<void> {
  const file = await open(path, "r+");
  const bytes = await file.readFile();
  const old = JSON.stringify((await readSafetensors(path)).metadata["pi.tensors"]);
  const at = bytes.indexOf(old);
  await file.write(JSON.stringify(table).padEnd(old.length), at);
  await file.close();
}

describe("refuses", () => {
  const change = (edit: (table: Table) => void): Record<string, string> => {
    const table = JSON.parse(model.metadata["pi.tensors"]!) as Table;
    edit(table);
    return { "pi.tensors": JSON.stringify(table) };
  };
  const config = (changes: object) => ({ "pi.config": JSON.stringify({ ...model.config, ...changes }) });

  test.each<[string, () => Record<string, string>, string, RegExp, string?]>([
    [
      "another format",
      () => ({ "pi.format": "predictors" }),
      "E_FORMAT",
      /expected a converted model or an artifact, found a predictors file/,
    ],
    ["another version", () => ({ "pi.version": "9" }), "E_VERSION", /expected format version 1, found 9/],
    ["an unknown type of weights", () => ({ "pi.dtype": "q9" }), "E_FORMAT", /unknown pi.dtype q9/],
    ["a config that is no JSON", () => ({ "pi.config": "{" }), "E_FORMAT", /pi.config to be JSON/],
    ["a config that is no object", () => ({ "pi.config": "null" }), "E_FORMAT", /pi.config to be JSON of an object/],
    ["no provenance", () => ({ "pi.provenance": "" }), "E_FORMAT", /pi.provenance/],
    ["a config without biases", () => config({ bias: undefined }), "E_CONFIG", /bias: expected an object, got nothing/],
    ["a config of absurd size", () => config({ nLayers: 1e9 }), "E_CONFIG", /nLayers/],
    [
      "a config of a gated dReLU that is not gated",
      () => config({ gated: false, activation: { kind: "drelu" } }),
      "E_CONFIG",
      /gated FFN with drelu/,
    ],
    [
      "a config with an unknown activation",
      () => config({ activation: { kind: "mish" } }),
      "E_CONFIG",
      /activation: kind: expected relu/,
    ],
    [
      "a threshold below zero",
      () => config({ activation: { kind: "fatrelu", threshold: -1 } }),
      "E_CONFIG",
      /activation.threshold/,
    ],
    [
      "a config that needs more tensors",
      () => config({ nLayers: 3 }),
      "E_TENSOR",
      /missing tensor layers.2.attn_norm.weight, expected with shape \[64\]/,
    ],
    [
      "a config of other shapes",
      () => config({ nNeurons: 81 }),
      "E_TENSOR",
      /layers.0.ffn.gate.weight: expected shape \[81,64\], found \[80,64\]/,
    ],
    [
      "a table that names absent tensors",
      () => ({}),
      "E_TENSOR",
      /missing tensor layers.0.attn.q.weight/,
      "layers.0.attn.q.weight",
    ],
    [
      "weights of another identity",
      () => ({ "pi.weights": "0".repeat(64) }),
      "E_FORMAT",
      /expected pi.weights [0-9a-f]{64}, found 0+/,
    ],
    ["an identity that is no hash", () => ({ "pi.format": "artifact", "pi.weights": "x" }), "E_FORMAT", /pi.weights/],
    [
      "an unknown type in the table",
      () => change((t) => (t["norm.weight"]!.dtype = "f99")),
      "E_TENSOR",
      /norm.weight: unknown dtype f99/,
    ],
    [
      "a type that does not fit the bytes",
      () => change((t) => (t["norm.weight"]!.dtype = "f16")),
      "E_TENSOR",
      /stored as F16 \[64\], found F32 \[64\]/,
    ],
    [
      "a shape that does not fit the bytes",
      () => change((t) => (t["norm.weight"]!.shape = [32])),
      "E_TENSOR",
      /found F32 \[64\]/,
    ],
    ["a shape that is none", () => change((t) => (t["norm.weight"]!.shape = [-4])), "E_TENSOR", /bad shape/],
    ["a hash that is none", () => change((t) => (t["norm.weight"]!.sha256 = "x")), "E_TENSOR", /bad sha256/],
  ])("%s", async (_name, metadata, code, message, drop) => {
    expect(await refusal(metadata(), drop)).toEqual({ code, message: expect.stringMatching(message) as string });
  });

  test("a checkpoint that was not converted, and what is not there", async () => {
    await expect(readModelFile(join(source, "model.safetensors"))).rejects.toThrow(
      /found a safetensors file that pi did not write/,
    );
    await expect(readModelFile(join(dir, "absent"))).rejects.toMatchObject({ code: "E_FILE" });
  });
});
