/** Converted fixtures as GGUF, read back by a small parser of its own. */
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, expect, test } from "vitest";
import { writeGguf, type GgufFile } from "../../bench/gguf-file.ts";
import { denseGguf, powerInferGguf } from "../../bench/gguf-model.ts";
import { interleaveRows } from "../../bench/gguf-tensors.ts";
import { convert } from "../../convert/convert.ts";
import { predictorsMetadata } from "../../formats/predictors.ts";
import { provenance } from "../../formats/provenance.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors, readTensorBytes, writeSafetensors } from "../../io/safetensors-file.ts";
import { readModelFile, type ModelFile } from "../../model/model-file.ts";
import { predictorSpecs } from "../../model/tensors.ts";
import { native } from "../../native/index.ts";

const fixtures = join(dirname(fileURLToPath(import.meta.url)), "..", "fixtures");
const RANK = 32;

let dir: string;
let model: ModelFile;
let opt: ModelFile;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-gguf-"));
  model = await converted("llama-relu");
  opt = await converted("opt");
});
afterAll(() => rm(dir, { recursive: true }));

async function converted(fixture: string): Promise<ModelFile> {
  const output = join(dir, fixture);
  await convert({ source: join(fixtures, fixture), output, dtype: "f16" }, silentContext);
  return readModelFile(output);
}

interface Parsed {
  magic: string;
  metadata: Map<string, unknown>;
  tensors: Map<string, { shape: number[]; type: number; bytes: (length: number) => Uint8Array }>;
}

async function parsed(gguf: GgufFile): Promise<Parsed> {
  const path = join(dir, "model.gguf");
  await writeGguf(path, gguf);
  const file = await readFile(path);
  let at = 0;
  const u32 = () => file.readUInt32LE((at += 4) - 4);
  const u64 = () => Number(file.readBigUInt64LE((at += 8) - 8));
  const text = () => {
    const length = u64();
    return file.toString("utf8", at, (at += length));
  };
  const value = (type: number): unknown => {
    if (type === 4 || type === 5) return u32();
    if (type === 6) return file.readFloatLE((at += 4) - 4);
    if (type === 7) return file.readUInt8((at += 1) - 1) === 1;
    if (type === 8) return text();
    expect(type).toBe(9);
    const [element, length] = [u32(), u64()];
    return Array.from({ length }, () => value(element));
  };
  const magic = file.toString("latin1", 0, (at += 4));
  expect(u32()).toBe(3);
  const [nTensors, nValues] = [u64(), u64()];
  const metadata = new Map(Array.from({ length: nValues }, () => [text(), value(u32())] as const));
  const infos = Array.from({ length: nTensors }, () => {
    const name = text();
    const shape = Array.from({ length: u32() }, u64).toReversed();
    return { name, shape, type: u32(), offset: u64() };
  });
  const start = Math.ceil(at / 32) * 32;
  const tensors = infos.map(({ name, shape, type, offset }) => {
    expect(offset % 32).toBe(0);
    const bytes = (length: number) => Uint8Array.from(file.subarray(start + offset, start + offset + length));
    return [name, { shape, type, bytes }] as const;
  });
  return { magic, metadata, tensors: new Map(tensors) };
}

const stored = async (name: string, { path } = model) =>
  Uint8Array.from(await readTensorBytes(await readSafetensors(path), name));
const floats = (bytes: Uint8Array, rows: number, cols: number) => native().dequantize(bytes, "f16", rows, cols);

test("a dense file says the model's sizes and holds its bytes, with a head of its own", async () => {
  const { magic, metadata, tensors } = await parsed(denseGguf(model));
  expect(magic).toBe("GGUF");
  expect(Object.fromEntries(metadata)).toMatchObject({
    "general.architecture": "llama",
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 80,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.rope.freq_base": 10000,
  });
  expect(metadata.get("tokenizer.ggml.tokens")).toHaveLength(128);
  expect(metadata.get("llama.attention.layer_norm_rms_epsilon")).toBeCloseTo(1e-5, 10);

  for (const [name, from, type, shape] of [
    ["token_embd.weight", "embed.weight", 1, [128, 64]],
    ["output.weight", "embed.weight", 1, [128, 64]],
    ["blk.1.ffn_up.weight", "layers.1.ffn.up.weight", 1, [80, 64]],
    ["blk.0.ffn_norm.weight", "layers.0.ffn_norm.weight", 0, [64]],
  ] as const) {
    const bytes = await stored(from);
    expect(tensors.get(name)).toMatchObject({ shape, type });
    expect(tensors.get(name)!.bytes(bytes.length)).toEqual(bytes);
  }
});

test("the down projection is transposed back, and q's rows are interleaved inside a head", async () => {
  const { tensors } = await parsed(denseGguf(model));
  const down = tensors.get("blk.1.ffn_down.weight")!;
  expect(down.shape).toEqual([64, 80]);
  const [ours, theirs] = await Promise.all([
    stored("layers.1.ffn.down_t.weight").then((bytes) => floats(bytes, 80, 64)),
    floats(down.bytes(2 * 64 * 80), 64, 80),
  ]);
  expect(theirs).toEqual(Float32Array.from(theirs, (_, i) => ours[(i % 80) * 64 + Math.floor(i / 80)]!));

  // Of head 1, rows 0, 1, 2 and 3 there are rows 0, 8, 1 and 9 here.
  const [q, permuted] = [await stored("layers.0.attn.q.weight"), tensors.get("blk.0.attn_q.weight")!.bytes(64 * 128)];
  for (const [to, from] of [0, 8, 1, 9].entries()) {
    const row = (bytes: Uint8Array, i: number) => Uint8Array.from(bytes.subarray((16 + i) * 128, (17 + i) * 128));
    expect(row(permuted, to)).toEqual(row(q, from));
  }
  expect(interleaveRows(Uint8Array.of(0, 1, 2, 3, 4, 5, 6, 7), 1, 4)).toEqual(Uint8Array.of(0, 2, 1, 3, 4, 6, 5, 7));
});

/** Predictors of zeros but for `fc2.weight` of threes and `layers.1.predictor.fc2.bias` of `bias`; a threshold a layer. */
async function predictors(thresholds: readonly number[], bias: number, of = model): Promise<string> {
  const path = join(dir, "predictors.safetensors");
  const specs = thresholds.flatMap((_, layer) => predictorSpecs(of.config, layer, RANK));
  const tensors = specs.map(({ name, shape }) => ({ name, dtype: "f32" as const, shape }));
  const shares = { recall: 1, weightedRecall: 1, precision: 1, trueSparsity: 0.5, predictedSparsity: 0.5 };
  const quality = { perplexityDense: 1, perplexity: 1, perplexityRatio: 1, meanKl: 0, p99Kl: 0, top1Agreement: 1 };
  await writeSafetensors(path, tensors, {
    metadata: () =>
      predictorsMetadata({
        metrics: thresholds.map((threshold) => ({ rank: RANK, threshold, bytes: 1, ...shares })),
        quality: { corpus: { sha256: "0".repeat(64), tokens: 1 }, weightedRecall: 1, ...quality },
        provenance: provenance("train-predictor", {}, { model: of.weights }),
      }),
    produce: ({ name, shape }) => {
      const value = name.endsWith("fc2.weight") ? 3 : name === "layers.1.predictor.fc2.bias" ? bias : 0;
      return Promise.resolve(new Uint8Array(new Float32Array(shape.reduce((a, b) => a * b)).fill(value).buffer));
    },
  });
  return path;
}

test("PowerInfer's file keeps down_t, and has the predictors and their threshold", async () => {
  const { magic, metadata, tensors } = await parsed(await powerInferGguf(model, await predictors([-0.5, -0.5], 0)));
  expect(magic).toBe("PWRI");
  expect(metadata.get("powerinfer.sparse_threshold")).toBe(-0.5);
  const down = await stored("layers.0.ffn.down_t.weight");
  expect(tensors.get("blk.0.ffn_down_t.weight")).toMatchObject({ shape: [80, 64], type: 1 });
  expect(tensors.get("blk.0.ffn_down_t.weight")!.bytes(down.length)).toEqual(down);
  expect(tensors.get("blk.1.fc1.weight")).toMatchObject({ shape: [RANK, 64], type: 0 });
  expect(tensors.get("blk.1.fc2.weight")).toMatchObject({ shape: [80, RANK], type: 0 });
  expect(tensors.get("blk.1.fc2.weight")!.bytes(4)).toEqual(new Uint8Array(Float32Array.of(3).buffer));
});

/** What a layer of either engine's OPT has besides q, k, v and the down projection. */
const OPT_LAYER = ["attn_norm", "attn_output", "ffn_norm", "ffn_up"];
const namesOf = (layer: readonly string[], outer: readonly string[]): string[] =>
  [0, 1]
    .flatMap((i) => layer.flatMap((part) => [`blk.${i}.${part}.weight`, `blk.${i}.${part}.bias`]))
    .concat(outer, "token_embd.weight", "output_norm.weight", "output_norm.bias");

test("OPT is GPT-NeoX to dense engines: one matrix and one bias for q, k and v, norms one after the other", async () => {
  const { magic, metadata, tensors } = await parsed(denseGguf(opt));
  expect(magic).toBe("GGUF");
  expect(Object.fromEntries(metadata)).toMatchObject({
    "general.architecture": "gptneox",
    "gptneox.context_length": 104,
    "gptneox.embedding_length": 64,
    "gptneox.feed_forward_length": 96,
    "gptneox.attention.head_count": 4,
    "gptneox.use_parallel_residual": false,
    "gptneox.rope.dimension_count": 2,
  });
  expect(metadata.get("gptneox.attention.layer_norm_epsilon")).toBeCloseTo(1e-5, 10);
  expect([...tensors.keys()].toSorted()).toEqual(
    namesOf([...OPT_LAYER, "attn_qkv", "ffn_down"], ["output.weight"]).toSorted(),
  );

  for (const [suffix, type, shape, bytes] of [
    ["weight", 1, [192, 64], 64 * 64 * 2],
    ["bias", 0, [192], 64 * 4],
  ] as const) {
    const tensor = tensors.get(`blk.1.attn_qkv.${suffix}`)!;
    expect(tensor).toMatchObject({ type, shape });
    for (const [i, part] of ["q", "k", "v"].entries()) {
      const ours = await stored(`layers.1.attn.${part}.${suffix}`, opt);
      expect(tensor.bytes(3 * bytes).subarray(i * bytes, (i + 1) * bytes)).toEqual(ours);
    }
  }
  for (const [name, from] of [
    ["blk.0.ffn_norm.bias", "layers.0.ffn_norm.bias"],
    ["blk.0.ffn_up.bias", "layers.0.ffn.up.bias"],
    ["blk.1.ffn_down.bias", "layers.1.ffn.down.bias"],
  ] as const) {
    const bytes = await stored(from, opt);
    expect(tensors.get(name)!.bytes(bytes.length)).toEqual(bytes);
  }
});

test("PowerInfer's OPT has no head, neurons row by row, and positions from row 2 of 2,050 on", async () => {
  const { metadata, tensors } = await parsed(await powerInferGguf(opt, await predictors([0, 0], 0, opt)));
  expect(metadata.get("general.architecture")).toBe("opt");
  const layer = [...OPT_LAYER, "attn_q", "attn_k", "attn_v", "ffn_down_t"];
  const others = [0, 1].flatMap((i) => [`blk.${i}.fc1.weight`, `blk.${i}.fc2.weight`]).concat("position_embd.weight");
  expect([...tensors.keys()].toSorted()).toEqual(namesOf(layer, others).toSorted());

  const row = 64 * 2;
  const positions = tensors.get("position_embd.weight")!;
  expect(positions).toMatchObject({ shape: [2050, 64], type: 1 });
  const bytes = positions.bytes(2050 * row);
  expect(bytes.subarray(2 * row, 106 * row)).toEqual(await stored("pos_embed.weight", opt));
  expect([...bytes.subarray(0, 2 * row), ...bytes.subarray(106 * row)].every((byte) => byte === 0)).toBe(true);

  for (const [name, from, shape] of [
    ["blk.1.attn_q.weight", "layers.1.attn.q.weight", [64, 64]],
    ["blk.1.ffn_down_t.weight", "layers.1.ffn.down_t.weight", [96, 64]],
    ["blk.1.ffn_down_t.bias", "layers.1.ffn.down.bias", [64]],
  ] as const) {
    const ours = await stored(from, opt);
    expect(tensors.get(name)).toMatchObject({ shape });
    expect(tensors.get(name)!.bytes(ours.length)).toEqual(ours);
  }
});

test("what the formats cannot say is refused", async () => {
  const refused = (message: string) => expect.objectContaining({ message: expect.stringContaining(message) as string });
  await expect(powerInferGguf(model, await predictors([0, 0], 0.25))).rejects.toEqual(
    refused("layers.1.predictor.fc2.bias: expected zeros"),
  );
  await expect(powerInferGguf(model, await predictors([0, 1], 0))).rejects.toEqual(refused("one threshold"));
  const unlike = { ...model, config: { ...model.config, position: "learned" as const, architecture: "other" } };
  expect(() => denseGguf(unlike)).toThrow(refused("found other"));
  const bias = { ...opt.config.bias, ffn: false };
  expect(() => denseGguf({ ...opt, config: { ...opt.config, bias } })).toThrow(refused("OPT's with biases, found opt"));
  const positions = { ...opt.tensors.get("pos_embed.weight")!, shape: [2049, 64] };
  const long = { ...opt, tensors: new Map([...opt.tensors, ["pos_embed.weight", positions]]) };
  await expect(powerInferGguf(long, await predictors([0, 0], 0, opt))).rejects.toEqual(
    refused("expected at most 2048 rows, found 2049"),
  );
  const blocks = new Map([...model.tensors].map(([name, tensor]) => [name, { ...tensor, dtype: "q8_0" as const }]));
  expect(() => denseGguf({ ...model, tensors: blocks })).toThrow(refused("nNeurons"));
});
