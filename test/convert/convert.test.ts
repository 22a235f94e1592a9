import { mkdir, mkdtemp, readdir, readFile, rm, symlink, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { convert, type ConvertOptions } from "../../convert/convert.ts";
import { WEIGHT_DTYPES, type Scales } from "../../formats/dtypes.ts";
import { sha256File } from "../../io/hash.ts";
import { silentContext } from "../../io/progress.ts";
import { readModelFile, verifyTensors } from "../../model/model-file.ts";
import { native } from "../../native/index.ts";
import {
  fixture,
  listeningContext,
  loadFixture,
  sourceValues,
  storedValues,
  writeSource,
  writeWeights,
  type SourceModel,
} from "./helpers.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-convert-"));
});
afterAll(() => rm(dir, { recursive: true }));

const fresh = (): Promise<string> => mkdtemp(join(dir, "x-"));
const quiet = { ...silentContext, warn: () => undefined };

/** Converts a model in memory and opens the result. */
async function converted(source: SourceModel, dtype: ConvertOptions["dtype"] = "f32") {
  const folder = await fresh();
  await convert({ source: await writeSource(join(folder, "in"), source), output: join(folder, "out"), dtype }, quiet);
  return readModelFile(join(folder, "out"));
}

/** The code and message of a conversion that fails, and what is left in its output folder. */
async function failure(source: string, options: Partial<ConvertOptions> = {}) {
  const output = join(await fresh(), "out");
  const error = await convert({ source, output, dtype: "f32", ...options }, quiet).then(
    () => ({ code: "none", message: "converted" }),
    (e: { code: string; message: string }) => ({ code: e.code, message: e.message }),
  );
  return { ...error, left: await readdir(output).catch(() => []) };
}

const transpose = (values: number[], rows: number): number[] =>
  values.map((_, i) => values[(i % rows) * (values.length / rows) + Math.floor(i / rows)]!);

const ARCHITECTURES = ["opt", "llama-relu", "llama-silu", "mistral", "bamboo", "falcon-7b", "falcon-40b"];

describe("every architecture, every type", () => {
  test.each(ARCHITECTURES.flatMap((name) => WEIGHT_DTYPES.map((dtype) => [name, dtype] as const)))(
    "%s as %s",
    async (name, dtype) => {
      const output = await fresh();
      const context = listeningContext();
      const result = await convert({ source: fixture(name), output, dtype }, context);
      const file = await readModelFile(output);
      await verifyTensors(file);
      expect(result).toMatchObject({
        converted: true,
        dtype,
        tensors: file.tensors.size,
        weights: file.weights,
        architecture: file.config.architecture,
      });
      expect(context.seen.at(-1)).toMatchObject({ done: result.sourceBytes, total: result.sourceBytes, unit: "bytes" });
      expect((await readdir(output)).sort()).toEqual(["model.safetensors"]);
      for (const [tensor, stored] of file.tensors) {
        if (stored.shape.length === 1) expect(stored.dtype).toBe("f32");
        else if (name === "falcon-7b" && dtype.startsWith("q"))
          expect(stored.dtype, tensor).toBe(stored.shape[1]! % 32 ? "f16" : dtype);
        else expect(stored.dtype, tensor).toBe(dtype === "q4_0" && !tensor.startsWith("layers.") ? "q8_0" : dtype);
      }
    },
  );
});

describe("tensors come from where Hugging Face computes with them", () => {
  test("llama: projections as they are, down transposed, tied head left out", async () => {
    const source = await loadFixture("llama-relu");
    const file = await converted(source);
    const at = "model.layers.1";
    expect(await storedValues(file, "layers.1.attn.k.weight")).toEqual(
      sourceValues(source, `${at}.self_attn.k_proj.weight`),
    );
    expect(await storedValues(file, "layers.1.ffn.gate.weight")).toEqual(
      sourceValues(source, `${at}.mlp.gate_proj.weight`),
    );
    expect(await storedValues(file, "layers.1.ffn.down_t.weight")).toEqual(
      transpose(sourceValues(source, `${at}.mlp.down_proj.weight`), 64),
    );
    expect(await storedValues(file, "layers.1.ffn_norm.weight")).toEqual(
      sourceValues(source, `${at}.post_attention_layernorm.weight`),
    );
    expect(file.tensors.has("head.weight")).toBe(false);
  });

  test("opt: positions without the two first rows, biases", async () => {
    const source = await loadFixture("opt");
    const file = await converted(source);
    expect(await storedValues(file, "pos_embed.weight")).toEqual(
      sourceValues(source, "model.decoder.embed_positions.weight").slice(2 * 64),
    );
    expect(await storedValues(file, "layers.0.ffn.down.bias")).toEqual(
      sourceValues(source, "model.decoder.layers.0.fc2.bias"),
    );
    expect(await storedValues(file, "layers.0.ffn.down_t.weight")).toEqual(
      transpose(sourceValues(source, "model.decoder.layers.0.fc2.weight"), 64),
    );
    expect(await storedValues(file, "norm.bias")).toEqual(sourceValues(source, "model.decoder.final_layer_norm.bias"));
  });

  /** Rows of the fused projection as transformers' `_split_heads` views them: [group, member, headDim]. */
  const heads = (fused: number[], members: number, wanted: (member: number) => boolean, headSize: number): number[] =>
    fused.filter((_, i) => wanted(Math.floor(i / headSize) % members));

  test.each([
    ["falcon-7b", 5, 3], // 3 query heads, key, value
    ["falcon-40b", 4, 2], // 2 groups of 2 query heads, key, value
  ] as const)("%s: queries, keys and values out of the fused projection", async (name, members, queries) => {
    const source = await loadFixture(name);
    const file = await converted(source);
    const fused = sourceValues(source, "transformer.h.1.self_attention.query_key_value.weight");
    const head = file.config.headDim * file.config.dim;
    expect(await storedValues(file, "layers.1.attn.q.weight")).toEqual(heads(fused, members, (m) => m < queries, head));
    expect(await storedValues(file, "layers.1.attn.k.weight")).toEqual(
      heads(fused, members, (m) => m === queries, head),
    );
    expect(await storedValues(file, "layers.1.attn.v.weight")).toEqual(
      heads(fused, members, (m) => m === queries + 1, head),
    );
  });

  test("f16 and bf16 checkpoints give the same f32 as their values", async () => {
    const source = await loadFixture("llama-silu");
    for (const type of ["f16", "bf16"] as const) {
      const model: SourceModel = { config: source.config, tensors: new Map() };
      for (const [name, { shape, bytes }] of source.tensors) {
        const cols = shape.at(-1)!;
        const rows = bytes.length / 4 / cols;
        model.tensors.set(name, {
          dtype: type,
          shape,
          bytes: await native().convertTensor(bytes, "f32", type, rows, cols, false),
        });
      }
      const file = await converted(model);
      const up = model.tensors.get("model.layers.0.mlp.up_proj.weight")!;
      expect(await storedValues(file, "layers.0.ffn.up.weight")).toEqual([
        ...(await native().dequantize(up.bytes, type, 80, 64)),
      ]);
      const kept = await converted(model, type);
      expect(await storedValues(kept, "layers.0.ffn.up.weight")).toEqual(
        await storedValues(file, "layers.0.ffn.up.weight"),
      );
    }
  });
});

describe("sources in several files", () => {
  test("give the same weights as in one", async () => {
    const [one, two] = [await fresh(), await fresh()];
    const single = await convert({ source: fixture("llama-relu"), output: one, dtype: "q8_0" }, quiet);
    const sharded = await convert({ source: fixture("llama-relu-sharded"), output: two, dtype: "q8_0" }, quiet);
    expect(sharded.weights).toBe(single.weights);
    const { provenance } = await readModelFile(two);
    const names = (await readdir(fixture("llama-relu-sharded"))).filter((name) => !name.endsWith("index.json"));
    expect(Object.keys(provenance.inputs).sort()).toEqual(names.map((name) => `source:${name}`).sort());
    for (const name of names)
      expect(provenance.inputs[`source:${name}`]).toBe(await sha256File(join(fixture("llama-relu-sharded"), name)));
  });

  const withIndex = async (weightMap: unknown, shards: Record<string, string[]>): Promise<string> => {
    const source = await loadFixture("llama-relu");
    const folder = await fresh();
    await writeFile(join(folder, "config.json"), JSON.stringify(source.config));
    await writeFile(join(folder, "model.safetensors.index.json"), JSON.stringify({ weight_map: weightMap }));
    for (const [file, names] of Object.entries(shards)) {
      await writeWeights(join(folder, file), new Map(names.map((name) => [name, source.tensors.get(name)!])));
    }
    return folder;
  };
  const NORM = "model.norm.weight";

  test.each<[string, unknown, Record<string, string[]>, string, RegExp]>([
    [
      "a shard outside of the folder",
      { [NORM]: "../model.safetensors" },
      {},
      "E_SOURCE",
      /expected a .safetensors file of this folder, found "..\/model.safetensors"/,
    ],
    ["an absolute shard", { [NORM]: "/etc/passwd" }, {}, "E_SOURCE", /expected a .safetensors file of this folder/],
    ["a shard that is no text", { [NORM]: 7 }, {}, "E_SOURCE", /found 7/],
    ["a missing shard", { [NORM]: "b.safetensors" }, {}, "E_SOURCE", /shard b.safetensors is missing/],
    [
      "a tensor that its shard lacks",
      { [NORM]: "a.safetensors", "lm_head.weight": "a.safetensors" },
      { "a.safetensors": [NORM] },
      "E_TENSOR",
      /tensor lm_head.weight: expected in a.safetensors .*found nowhere/,
    ],
    [
      "a tensor in another shard",
      { [NORM]: "a.safetensors", x: "b.safetensors" },
      { "a.safetensors": [], "b.safetensors": [NORM] },
      "E_TENSOR",
      /tensor model.norm.weight: expected in a.safetensors .*found in b.safetensors/,
    ],
    [
      "a tensor in two shards",
      { [NORM]: "a.safetensors", x: "b.safetensors" },
      { "a.safetensors": [NORM], "b.safetensors": [NORM] },
      "E_TENSOR",
      /model.norm.weight is in a.safetensors and in b.safetensors/,
    ],
    ["an index without tensors", {}, {}, "E_SOURCE", /names no tensor/],
    ["an index of something else", 5, {}, "E_SOURCE", /weight_map to be an object/],
  ])("refuses %s", async (_name, weightMap, shards, code, message) => {
    expect(await failure(await withIndex(weightMap, shards))).toEqual({
      code,
      message: expect.stringMatching(message) as string,
      left: [],
    });
  });
});

describe("refuses, in one line and leaving nothing", () => {
  const changed = async (edit: (source: SourceModel) => void): Promise<string> => {
    const source = await loadFixture("llama-relu");
    edit(source);
    return writeSource(await fresh(), source);
  };
  const UP = "model.layers.1.mlp.up_proj.weight";

  test.each<[string, (source: SourceModel) => void, string, RegExp]>([
    [
      "a missing tensor",
      ({ tensors }) => void tensors.delete(UP),
      "E_TENSOR",
      /missing tensor model.layers.1.mlp.up_proj.weight/,
    ],
    [
      "a tensor of another shape",
      ({ tensors }) => void (tensors.get(UP)!.shape = [64, 80]),
      "E_TENSOR",
      /up_proj.weight: expected shape \[80,64\], found \[64,80\]/,
    ],
    [
      "a tensor of integers",
      ({ tensors }) => void (tensors.get(UP)!.dtype = "i32"),
      "E_TENSOR",
      /up_proj.weight: expected F32, F16, BF16, found I32/,
    ],
    [
      "a bias that the config does not know",
      ({ tensors }) => void tensors.set("model.layers.0.self_attn.q_proj.bias", tensors.get("model.norm.weight")!),
      "E_TENSOR",
      /q_proj.bias: expected no such bias/,
    ],
    [
      "an untied model without a head",
      ({ config }) => void (config["tie_word_embeddings"] = false),
      "E_TENSOR",
      /missing tensor lm_head.weight/,
    ],
    ["another architecture", ({ config }) => void (config["model_type"] = "bert"), "E_CONFIG", /model_type/],
  ])("%s", async (_name, edit, code, message) => {
    const found = await failure(await changed(edit));
    expect(found).toEqual({ code, message: expect.stringMatching(message) as string, left: [] });
    expect(found.message).not.toContain("\n");
  });

  test("values that the type cannot hold", async () => {
    const source = await changed(({ tensors }) =>
      new DataView(tensors.get(UP)!.bytes.buffer).setFloat32(4 * 64 * 3, NaN, true),
    );
    expect(await failure(source, { dtype: "f16" })).toEqual({
      code: "E_VALUE",
      message: expect.stringMatching(/up_proj.weight: cannot be stored as f16: row 3 holds a value/) as string,
      left: [],
    });
  });

  test("a file that is cut short, a flipped header bit, a folder without config, broken JSON", async () => {
    const cut = await changed(() => undefined);
    await truncate(join(cut, "model.safetensors"), 100_000);
    expect(await failure(cut)).toMatchObject({
      code: "E_SAFETENSORS",
      message: expect.stringContaining("truncated") as string,
      left: [],
    });
    await writeFile(join(cut, "config.json"), "{");
    expect(await failure(cut)).toMatchObject({
      code: "E_SOURCE",
      message: expect.stringContaining("not JSON") as string,
    });
    await rm(join(cut, "config.json"));
    expect(await failure(cut)).toMatchObject({
      code: "E_SOURCE",
      message: expect.stringContaining("config.json") as string,
    });
  });

  test("weights in other formats, saying what to do", async () => {
    const folder = await changed(() => undefined);
    await rm(join(folder, "model.safetensors"));
    expect((await failure(folder)).message).toMatch(
      /expected model.safetensors or .*pytorch_model.bin or .*found none of them/,
    );
    await writeFile(join(folder, "model.gguf"), "");
    expect((await failure(folder)).message).toMatch(/found model.gguf/);
    await writeFile(join(folder, "consolidated.00.pth"), "");
    expect((await failure(folder)).message).toMatch(/found consolidated.00.pth/);
  });

  test("a file, a folder that is not there, the source as its own output", async () => {
    expect((await failure(join(fixture("opt"), "config.json"))).message).toMatch(
      /expected a Hugging Face folder, found a file/,
    );
    expect((await failure(join(dir, "nowhere at all"))).message).toMatch(/no such folder, and not a hub id/);
    const folder = await changed(() => undefined);
    const before = await readFile(join(folder, "model.safetensors"));
    await symlink(folder, join(dir, "alias"));
    for (const output of [folder, join(folder, ".", ""), join(dir, "alias")]) {
      expect(await failure(folder, { output })).toMatchObject({
        code: "E_SOURCE",
        message: expect.stringMatching(/other than the source/) as string,
      });
    }
    expect(Buffer.compare(await readFile(join(folder, "model.safetensors")), before)).toBe(0);
  });
});

describe("warns", () => {
  test("of tensors that nothing is made from, but not of tables that are computed anew", async () => {
    const source = await loadFixture("llama-relu");
    const norm = source.tensors.get("model.norm.weight")!;
    source.tensors.set("model.layers.0.self_attn.rotary_emb.inv_freq", norm);
    source.tensors.set("lm_head.weight", source.tensors.get("model.embed_tokens.weight")!);
    source.tensors.set("model.layers.0.mlp.predictor.fc1", norm);
    const context = listeningContext();
    const folder = await fresh();
    await convert(
      { source: await writeSource(join(folder, "in"), source), output: join(folder, "out"), dtype: "f32" },
      context,
    );
    expect(context.warnings).toEqual([
      expect.stringMatching(/1 tensors are not used: model.layers.0.mlp.predictor.fc1$/),
      expect.stringMatching(/no tokenizer.json/),
    ]);
  });

  test("of rows that are no whole number of blocks", async () => {
    const context = listeningContext();
    await convert({ source: fixture("falcon-7b"), output: await fresh(), dtype: "q4_0" }, context);
    expect(context.warnings[0]).toMatch(
      /matrices are kept in f16 instead of q4_0: .*48 elements of embed.weight.* blocks of 32/,
    );
  });
});

describe("up to date", () => {
  test("does nothing when source, type and tool are the same, and converts when one changes", async () => {
    const source = await writeSource(await fresh(), await loadFixture("opt"));
    const output = await fresh();
    const run = async (options: Partial<ConvertOptions> = {}) =>
      (await convert({ source, output, dtype: "f16", ...options }, quiet)).converted;
    expect(await run()).toBe(true);
    expect(await run()).toBe(false);
    expect(await run({ force: true })).toBe(true);
    expect(await run({ dtype: "q8_0" })).toBe(true);
    expect(await run({ dtype: "q8_0" })).toBe(false);
    expect(await run({ dtype: "q8_0", scales: "plain" })).toBe(false); // only q4_0 has a choice
    const model = await loadFixture("opt");
    model.tensors.get("model.decoder.layers.0.fc1.bias")!.bytes[3]! ^= 1;
    await writeSource(source, model);
    expect(await run({ dtype: "q8_0" })).toBe(true);
    await writeFile(join(output, "model.safetensors"), "damaged");
    expect(await run({ dtype: "q8_0" })).toBe(true);
    expect(await run({ dtype: "q8_0" })).toBe(false);
  });

  test("tells q4_0 by one rule for scales from q4_0 by the other; fitted is the default", async () => {
    const [source, output] = [fixture("llama-relu"), await fresh()];
    const run = (scales?: Scales) => convert({ source, output, dtype: "q4_0", ...(scales && { scales }) }, quiet);
    const fitted = await run();
    expect((await run("fitted")).converted).toBe(false);
    const plain = await run("plain");
    expect(plain.converted).toBe(true);
    expect(plain.weights).not.toBe(fitted.weights);
    expect((await run()).weights).toBe(fitted.weights);
  });

  test("copies tokenizer files, and removes those of an earlier source", async () => {
    const source = await writeSource(await fresh(), await loadFixture("opt"));
    const output = await fresh();
    await writeFile(join(source, "tokenizer.json"), "{}");
    await writeFile(join(source, "generation_config.json"), '{"eos_token_id": [2, 5]}');
    await writeFile(join(source, "README.md"), "not copied");
    await convert({ source, output, dtype: "f16" }, quiet);
    expect((await readdir(output)).sort()).toEqual(["generation_config.json", "model.safetensors", "tokenizer.json"]);
    expect((await readModelFile(output)).config.eosTokens).toEqual([2, 5]);
    await rm(join(source, "tokenizer.json"));
    await convert({ source, output, dtype: "f16" }, quiet);
    expect((await readdir(output)).sort()).toEqual(["generation_config.json", "model.safetensors"]);
  });

  test("creates folders as needed", async () => {
    const output = join(await fresh(), "a", "b");
    await convert({ source: fixture("opt"), output, dtype: "f16" }, quiet);
    await mkdir(output, { recursive: true });
    expect(await readdir(output)).toEqual(["model.safetensors"]);
  });
});
