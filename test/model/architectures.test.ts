import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { ARCHITECTURES, readHfConfig, tensorSources } from "../../model/architectures.ts";
import type { ModelConfig } from "../../model/config.ts";

const fixtures = join(dirname(fileURLToPath(import.meta.url)), "..", "fixtures");
type Json = Record<string, unknown>;
const fixture = (name: string): Json => JSON.parse(readFileSync(join(fixtures, name, "config.json"), "utf8")) as Json;

/** Config of a fixture with some keys changed (undefined: removed), and the warnings it gave. */
function read(name: string, changes: Json = {}, generation?: Json): { config: ModelConfig; warnings: string[] } {
  const warnings: string[] = [];
  const merged = Object.fromEntries(
    Object.entries({ ...fixture(name), ...changes }).filter(([, value]) => value !== undefined),
  );
  return { config: readHfConfig(merged, generation, "config.json", (w) => warnings.push(w)), warnings };
}

const failure = (name: string, changes: Json): string => {
  try {
    read(name, changes);
  } catch (error) {
    expect(error).toMatchObject({ code: "E_CONFIG" });
    return (error as Error).message;
  }
  return "accepted";
};

describe("configs of the fixtures", () => {
  test("llama: grouped queries, tied head", () => {
    expect(read("llama-relu").config).toEqual({
      architecture: "llama",
      vocabSize: 128,
      dim: 64,
      nLayers: 2,
      nHeads: 4,
      nKvHeads: 2,
      headDim: 16,
      nNeurons: 80,
      maxPositions: 128,
      norm: "rms",
      normEps: 1e-5,
      position: "rope",
      ropeTheta: 10000,
      ropeScaling: null,
      gated: true,
      activation: { kind: "relu" },
      bias: { qkv: false, attnOut: false, ffn: false, head: false },
      parallelResidual: false,
      sharedNorm: false,
      tiedHead: true,
      bosToken: 1,
      eosTokens: [2],
    });
  });

  test("llama 3: scaled frequencies, several end tokens, more of them in generation_config.json", () => {
    const { config } = read("llama-silu", {}, { eos_token_id: [3, 7] });
    expect(config.ropeScaling).toEqual({
      type: "llama3",
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositions: 32,
    });
    expect(config.activation).toEqual({ kind: "silu" });
    expect(config.eosTokens).toEqual([2, 3, 7]);
  });

  test("mistral as transformers 5 writes it: rope_parameters, heads of their own size", () => {
    const { config, warnings } = read("mistral");
    expect(config).toMatchObject({
      ropeTheta: 1e6,
      ropeScaling: null,
      headDim: 24,
      nKvHeads: 1,
      maxPositions: 128,
      tiedHead: false,
    });
    expect(warnings).toEqual([]);
  });

  test("bamboo: dReLU", () => {
    expect(read("bamboo").config).toMatchObject({ activation: { kind: "drelu" }, gated: true });
  });

  test("opt: learned positions, biases, layer norms, tied", () => {
    expect(read("opt").config).toMatchObject({
      position: "learned",
      ropeTheta: 0,
      norm: "layer",
      normEps: 1e-5,
      nNeurons: 96,
      maxPositions: 104,
      gated: false,
      bias: { qkv: true, attnOut: true, ffn: true, head: false },
      tiedHead: true,
    });
  });

  test("falcon 7B: one KV head, one norm for attention and FFN, tied unless told otherwise", () => {
    expect(read("falcon-7b").config).toMatchObject({
      nKvHeads: 1,
      sharedNorm: true,
      parallelResidual: true,
      tiedHead: true,
      nNeurons: 192,
    });
  });

  test("falcon 40B: KV groups, two norms; its variant with one", () => {
    expect(read("falcon-40b").config).toMatchObject({
      nKvHeads: 2,
      sharedNorm: false,
      parallelResidual: true,
      tiedHead: false,
      activation: { kind: "gelu" },
    });
    expect(read("falcon-40b", { num_ln_in_parallel_attn: 1 }).config.sharedNorm).toBe(true);
  });

  test("the first falcons: a KV head for each query, one after the other", () => {
    const changes = { multi_query: false, parallel_attn: false };
    expect(read("falcon-7b", changes).config).toMatchObject({
      nKvHeads: 3,
      parallelResidual: false,
      sharedNorm: false,
    });
  });

  test("sparsellama: ReLU with a threshold", () => {
    const changes = { model_type: "sparsellama", hidden_act: "fatrelu", hidden_act_param: 0.01 };
    expect(read("llama-relu", changes).config.activation).toEqual({ kind: "fatrelu", threshold: 0.01 });
    expect(failure("llama-relu", { ...changes, hidden_act_param: undefined })).toMatch(
      /hidden_act_param: expected a number, found nothing/,
    );
  });
});

describe("what may be said in several ways", () => {
  test.each<[string, Json, Partial<ModelConfig>]>([
    [
      "scaling in transformers 4 with type",
      { rope_scaling: { type: "linear", factor: 2 } },
      { ropeScaling: { type: "linear", factor: 2 } },
    ],
    [
      "scaling in transformers 5",
      { rope_theta: undefined, rope_parameters: { rope_type: "linear", factor: 4, rope_theta: 5e5 } },
      { ropeTheta: 5e5, ropeScaling: { type: "linear", factor: 4 } },
    ],
    [
      "rope_parameters without a base",
      { rope_theta: 2e4, rope_parameters: { rope_type: "default" } },
      { ropeTheta: 2e4, ropeScaling: null },
    ],
    ["no scaling", { rope_scaling: null }, { ropeScaling: null }],
    ["no grouped queries", { num_key_value_heads: undefined }, { nKvHeads: 4 }],
    ["dtype in either spelling", { torch_dtype: "float16", dtype: "float16" }, { dim: 64 }],
    ["no end token", { eos_token_id: null, bos_token_id: null }, { eosTokens: [], bosToken: null }],
    ["swish", { hidden_act: "swish" }, { activation: { kind: "silu" } }],
    [
      "biases",
      { attention_bias: true, mlp_bias: true },
      { bias: { qkv: true, attnOut: true, ffn: true, head: false } },
    ],
  ])("%s", (_name, changes, expected) => {
    expect(read("llama-relu", changes).config).toMatchObject(expected);
  });

  test("falcon's older key names", () => {
    const changes = {
      num_attention_heads: undefined,
      n_head: 3,
      num_hidden_layers: undefined,
      n_layer: 2,
      hidden_size: undefined,
      n_embed: 48,
    };
    expect(read("falcon-7b", changes).config).toMatchObject({ nHeads: 3, nLayers: 2, dim: 48 });
  });

  test("a window shorter than the context caps it, with a warning", () => {
    const { config, warnings } = read("mistral", { sliding_window: 100 });
    expect(config.maxPositions).toBe(100);
    expect(warnings).toEqual([expect.stringContaining("slides over 100 of 128")]);
    const byDefault = read("mistral", { sliding_window: undefined, max_position_embeddings: 32768 });
    expect(byDefault.config.maxPositions).toBe(4096);
  });

  test("end tokens outside of the vocabulary are left out, with a warning", () => {
    const { config, warnings } = read("llama-relu", { eos_token_id: [2, 50256] });
    expect(config.eosTokens).toEqual([2]);
    expect(warnings).toEqual([expect.stringContaining("50256")]);
  });
});

describe("refuses, naming key, expected and actual value", () => {
  test.each<[string, string, Json, RegExp]>([
    ["an unknown architecture", "opt", { model_type: "gpt2" }, /model_type: expected llama, .*falcon, found "gpt2"/],
    ["an architecture from the prototype", "opt", { model_type: "constructor" }, /model_type: expected llama/],
    ["no architecture", "opt", { model_type: undefined }, /model_type: expected a string, found nothing/],
    [
      "quantised weights",
      "llama-relu",
      { quantization_config: { quant_method: "gptq" } },
      /quantization_config: expected unquantised weights, found "gptq"/,
    ],
    ["OPT-350m's norms", "opt", { do_layer_norm_before: false }, /do_layer_norm_before: expected true, found false/],
    ["OPT-350m's projection", "opt", { word_embed_proj_dim: 512 }, /word_embed_proj_dim: expected 64, found 512/],
    ["norms without weights", "opt", { layer_norm_elementwise_affine: false }, /layer_norm_elementwise_affine/],
    [
      "an unknown activation",
      "opt",
      { activation_function: "mish" },
      /activation_function: expected relu, .*found "mish"/,
    ],
    ["alibi", "falcon-7b", { alibi: true }, /alibi: expected false, found true/],
    [
      "two norms in the old falcon",
      "falcon-7b",
      { num_ln_in_parallel_attn: 2 },
      /num_ln_in_parallel_attn: expected 1, found 2/,
    ],
    [
      "unknown scaling",
      "llama-relu",
      { rope_scaling: { type: "yarn", factor: 2 } },
      /rope_scaling: rope_type or type: expected default, linear, llama3, found "yarn"/,
    ],
    [
      "half scaling",
      "llama-silu",
      { rope_scaling: { rope_type: "llama3", factor: 8 } },
      /low_freq_factor: expected a number, found nothing/,
    ],
    ["partial rotation", "llama-relu", { partial_rotary_factor: 0.5 }, /partial_rotary_factor: expected 1, found 0.5/],
    ["bamboo with another activation", "bamboo", { hidden_act: "silu" }, /hidden_act: expected relu, found "silu"/],
    [
      "a size that is none",
      "llama-relu",
      { hidden_size: "64" },
      /hidden_size: expected a whole number of at least 1, found "64"/,
    ],
    [
      "a missing size",
      "llama-relu",
      { intermediate_size: undefined },
      /intermediate_size: expected a whole number.*found nothing/,
    ],
    [
      "heads that do not divide the width",
      "llama-relu",
      { num_attention_heads: 3, num_key_value_heads: 3 },
      /head_dim: expected a whole number/,
    ],
    ["the same in falcon", "falcon-7b", { num_attention_heads: 5 }, /headDim: expected a whole number/],
    [
      "KV heads that do not divide the heads",
      "llama-relu",
      { num_key_value_heads: 3 },
      /nKvHeads: expected a divisor of nHeads 4, got 3/,
    ],
    ["an odd head", "llama-relu", { head_dim: 15 }, /headDim: expected an even number, got 15/],
    ["absurd depth", "llama-relu", { num_hidden_layers: 1e9 }, /nLayers: expected a whole number from 1 to 10000/],
    ["an end token that is none", "llama-relu", { eos_token_id: "2" }, /eos_token_id: expected a token id or a list/],
  ])("%s", (_name, from, changes, message) => {
    expect(failure(from, changes)).toMatch(message);
  });

  test("a config that is no object", () => {
    for (const value of [null, [], 3, "x"])
      expect(() => readHfConfig(value, undefined, "c", () => undefined)).toThrow(/c: expected a JSON object/);
  });
});

describe("tensor sources", () => {
  const names = (prefix: string, list: string[]) => new Set([...list.map((name) => prefix + name), "lm_head.weight"]);
  const LLAMA = [
    "embed_tokens",
    "norm",
    ...[0, 1].flatMap((l) =>
      [
        "input_layernorm",
        "post_attention_layernorm",
        ...["q", "k", "v", "o"].map((p) => `self_attn.${p}_proj`),
        ...["gate", "up", "down"].map((p) => `mlp.${p}_proj`),
      ].map((n) => `layers.${l}.${n}`),
    ),
  ].map((n) => `${n}.weight`);

  test.each(["model.", ""])('finds them with the prefix "%s"', (prefix) => {
    const sources = tensorSources(read("llama-silu").config, names(prefix, LLAMA), "here");
    expect(sources.get("layers.1.ffn.down_t.weight")).toEqual({
      name: `${prefix}layers.1.mlp.down_proj.weight`,
      shape: [64, 80],
      transpose: true,
      ranges: null,
    });
    expect(sources.get("layers.0.attn.k.weight")).toEqual({
      name: `${prefix}layers.0.self_attn.k_proj.weight`,
      shape: [32, 64],
      transpose: false,
      ranges: null,
    });
    expect(sources.get("head.weight")?.name).toBe("lm_head.weight");
  });

  test("a tied head has no source, even where the checkpoint holds one", () => {
    expect(tensorSources(read("llama-relu").config, names("model.", LLAMA), "here").has("head.weight")).toBe(false);
  });

  test("a missing head of an untied model is an error, and so is any other tensor", () => {
    const missing = (name: string) => {
      const all = names("model.", LLAMA);
      all.delete(name);
      return () => tensorSources(read("llama-silu").config, all, "here");
    };
    expect(missing("lm_head.weight")).toThrow("here: missing tensor lm_head.weight");
    expect(missing("model.layers.1.mlp.up_proj.weight")).toThrow(
      "here: missing tensor model.layers.1.mlp.up_proj.weight",
    );
    expect(missing("model.embed_tokens.weight")).toThrow(
      /model.embed_tokens.weight or embed_tokens.weight: not a llama decoder/,
    );
  });

  test("fused projections: rows of queries, keys and values by KV head", () => {
    const fused = new Set([
      "transformer.word_embeddings.weight",
      "transformer.ln_f.weight",
      "transformer.ln_f.bias",
      "lm_head.weight",
    ]);
    for (const l of [0, 1]) {
      for (const part of [
        "self_attention.query_key_value.weight",
        "self_attention.dense.weight",
        "mlp.dense_h_to_4h.weight",
        "mlp.dense_4h_to_h.weight",
        "ln_attn.weight",
        "ln_attn.bias",
        "ln_mlp.weight",
        "ln_mlp.bias",
        "input_layernorm.weight",
        "input_layernorm.bias",
        "post_attention_layernorm.weight",
        "post_attention_layernorm.bias",
      ])
        fused.add(`transformer.h.${l}.${part}`);
    }
    const ranges = (config: ModelConfig) => {
      const sources = tensorSources(config, fused, "here");
      return ["q", "k", "v"]
        .map((part) => sources.get(`layers.0.attn.${part}.weight`)!)
        .map(({ shape, ranges: r }) => ({ of: shape[0], r }));
    };
    // 40B: 4 heads of 16 in 2 groups of (2 q, k, v).
    expect(ranges(read("falcon-40b").config)).toEqual([
      {
        of: 128,
        r: [
          [0, 32],
          [64, 96],
        ],
      },
      {
        of: 128,
        r: [
          [32, 48],
          [96, 112],
        ],
      },
      {
        of: 128,
        r: [
          [48, 64],
          [112, 128],
        ],
      },
    ]);
    // 7B: 3 query heads of 16, then one key and one value.
    expect(ranges(read("falcon-7b").config)).toEqual([
      { of: 80, r: [[0, 48]] },
      { of: 80, r: [[48, 64]] },
      { of: 80, r: [[64, 80]] },
    ]);
    // The oldest: q, k, v head by head.
    expect(ranges(read("falcon-7b", { multi_query: false }).config)[1]).toEqual({
      of: 144,
      r: [
        [16, 32],
        [64, 80],
        [112, 128],
      ],
    });
  });

  test("every row of the table names the sources of every tensor it may need", () => {
    for (const { tensors } of Object.values(ARCHITECTURES)) {
      expect(Object.keys(tensors)).toEqual(
        expect.arrayContaining([
          "embed",
          "norm",
          "layers.L.attn.q",
          "layers.L.ffn.up",
          "layers.L.ffn.down_t",
          "layers.L.ffn.down",
        ]),
      );
    }
  });
});
