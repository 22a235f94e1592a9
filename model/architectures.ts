/**
 * The architecture table: one row per `model_type` of a Hugging Face checkpoint. A row says how config.json becomes a
 * `ModelConfig` and which source tensor each tensor of the split-weight layout is made from. Nothing else in the
 * project knows architectures by name.
 */
import { PiError } from "../formats/errors.ts";
import { checkConfig } from "./check-config.ts";
import type { Activation, ModelConfig, RopeScaling } from "./config.ts";
import { HfConfig } from "./hf-config.ts";
import { tensorSpecs, type TensorSpec } from "./tensors.ts";

interface Architecture {
  /** Sizes, switches and activation of a checkpoint, without what all architectures share. */
  config: (hf: HfConfig) => Omit<ModelConfig, "architecture" | "vocabSize" | "bosToken" | "eosTokens">;
  /** What the names of the decoder's tensors may begin with; it depends on the class that saved the checkpoint. */
  prefixes: readonly string[];
  /** By name without `.weight` or `.bias`; `L` is the layer. */
  tensors: Readonly<Record<string, Source>>;
}

/** Where a tensor of the split-weight layout comes from. */
interface Source {
  /** The first of these that the checkpoint has. */
  names: readonly string[];
  /** The checkpoint stores it [cols, rows]. */
  transpose?: true;
  /** Only some rows of the source, in this order; `of` is how many the source has. */
  rows?: (config: ModelConfig) => { of: number; ranges: [begin: number, end: number][] };
}

const from = (...names: string[]): Source => ({ names });
const transposed = (name: string): Source => ({ names: [name], transpose: true });

/** OPT's position p is row p + 2. */
const fromRow2 = (name: string): Source => ({
  names: [name],
  rows: ({ maxPositions }) => ({ of: maxPositions + 2, ranges: [[2, maxPositions + 2]] }),
});

/**
 * Falcon's fused projection holds, per KV head, its query heads, then the key, then the value. That is
 * [q … q k v] for 7B (one KV head), a block for each group in 40B, and q, k, v head by head in the oldest ones.
 */
const fused = (part: "q" | "k" | "v"): Source => ({
  names: ["h.L.self_attention.query_key_value"],
  rows: ({ nHeads, nKvHeads, headDim }) => {
    const queries = nHeads / nKvHeads;
    const group = (queries + 2) * headDim;
    const begin = { q: 0, k: queries, v: queries + 1 }[part] * headDim;
    const size = (part === "q" ? queries : 1) * headDim;
    const ranges = Array.from({ length: nKvHeads }, (_, g): [number, number] => [
      g * group + begin,
      g * group + begin + size,
    ]);
    return { of: nKvHeads * group, ranges };
  },
});

/** Hugging Face's names of the activations that the engine computes. */
const ACTIVATIONS: Readonly<Record<string, Activation>> = {
  relu: { kind: "relu" },
  relu2: { kind: "relu2" },
  silu: { kind: "silu" },
  swish: { kind: "silu" },
  gelu: { kind: "gelu" },
  gelu_new: { kind: "gelu_tanh" },
  gelu_fast: { kind: "gelu_tanh" },
  gelu_pytorch_tanh: { kind: "gelu_tanh" },
};

/** The rotary scalings that the engine has, by `rope_type`. */
const ROPE_SCALINGS: Readonly<Record<string, (hf: HfConfig) => RopeScaling | null>> = {
  default: () => null,
  linear: (hf) => ({ type: "linear", factor: hf.number("factor") }),
  llama3: (hf) => ({
    type: "llama3",
    factor: hf.number("factor"),
    lowFreqFactor: hf.number("low_freq_factor"),
    highFreqFactor: hf.number("high_freq_factor"),
    originalMaxPositions: hf.size("original_max_position_embeddings"),
  }),
};

/** Rotary base and scaling, as transformers 4 (`rope_theta`, `rope_scaling`) or 5 (`rope_parameters`) writes them. */
function rope(hf: HfConfig): Pick<ModelConfig, "position" | "ropeTheta" | "ropeScaling"> {
  const parameters = hf.object("rope_parameters") ?? hf.object("rope_scaling");
  for (const place of [hf, parameters]) place?.require("partial_rotary_factor", 1);
  const scaling = parameters?.choice(["rope_type", "type"], ROPE_SCALINGS, "default")(parameters) ?? null;
  const ropeTheta = parameters?.has("rope_theta") ? parameters.number("rope_theta") : hf.number("rope_theta", 10_000);
  return { position: "rope", ropeTheta, ropeScaling: scaling };
}

/** Longest context in which attention sees everything: a shorter sliding window caps it, since the engine has none. */
function maxPositionsWithin(hf: HfConfig, window: number | undefined): number {
  const maxPositions = hf.size("max_position_embeddings", 2048);
  if (window === undefined || window >= maxPositions) return maxPositions;
  hf.warn(
    `${hf.where}: attention slides over ${window} of ${maxPositions} positions; the context is capped at ${window}`,
  );
  return window;
}

/** Sizes and switches of Llama and its relatives: RMS norms, rotary positions, gated FFN. */
function llama(hf: HfConfig, activation: Activation, slidingWindow?: number): ReturnType<Architecture["config"]> {
  const dim = hf.size("hidden_size");
  const nHeads = hf.size("num_attention_heads");
  const attention = hf.flag("attention_bias", false);
  return {
    dim,
    nLayers: hf.size("num_hidden_layers"),
    nHeads,
    nKvHeads: hf.size("num_key_value_heads", nHeads),
    headDim: hf.size("head_dim", dim / nHeads),
    nNeurons: hf.size("intermediate_size"),
    maxPositions: maxPositionsWithin(hf, slidingWindow),
    norm: "rms",
    normEps: hf.number("rms_norm_eps", 1e-6),
    ...rope(hf),
    gated: true,
    activation,
    bias: { qkv: attention, attnOut: attention, ffn: hf.flag("mlp_bias", false), head: false },
    parallelResidual: false,
    sharedNorm: false,
    tiedHead: hf.flag("tie_word_embeddings", false),
  };
}

const LLAMA_SOURCES: Pick<Architecture, "prefixes" | "tensors"> = {
  prefixes: ["model.", ""],
  tensors: {
    embed: from("embed_tokens"),
    "layers.L.attn_norm": from("layers.L.input_layernorm"),
    "layers.L.attn.q": from("layers.L.self_attn.q_proj"),
    "layers.L.attn.k": from("layers.L.self_attn.k_proj"),
    "layers.L.attn.v": from("layers.L.self_attn.v_proj"),
    "layers.L.attn.o": from("layers.L.self_attn.o_proj"),
    "layers.L.ffn_norm": from("layers.L.post_attention_layernorm"),
    "layers.L.ffn.gate": from("layers.L.mlp.gate_proj"),
    "layers.L.ffn.up": from("layers.L.mlp.up_proj"),
    "layers.L.ffn.down_t": transposed("layers.L.mlp.down_proj"),
    "layers.L.ffn.down": from("layers.L.mlp.down_proj"),
    norm: from("norm"),
  },
};

/** A window of null is no window; where the key is missing altogether, Mistral's own default applies. */
const slidingWindow = (hf: HfConfig, fallback?: number): number | undefined =>
  hf.isNull("sliding_window") ? undefined : hf.has("sliding_window") ? hf.size("sliding_window") : fallback;

function opt(hf: HfConfig): ReturnType<Architecture["config"]> {
  const dim = hf.size("hidden_size");
  const nHeads = hf.size("num_attention_heads");
  const bias = hf.flag("enable_bias", true);
  hf.require("word_embed_proj_dim", dim);
  hf.require("do_layer_norm_before", true);
  hf.require("_remove_final_layer_norm", false);
  hf.require("layer_norm_elementwise_affine", true);
  return {
    dim,
    nLayers: hf.size("num_hidden_layers"),
    nHeads,
    nKvHeads: nHeads,
    headDim: dim / nHeads,
    nNeurons: hf.size("ffn_dim"),
    maxPositions: hf.size("max_position_embeddings", 2048),
    norm: "layer",
    normEps: 1e-5,
    position: "learned",
    ropeTheta: 0,
    ropeScaling: null,
    gated: false,
    activation: hf.choice("activation_function", ACTIVATIONS, "relu"),
    bias: { qkv: bias, attnOut: bias, ffn: bias, head: false },
    parallelResidual: false,
    sharedNorm: false,
    tiedHead: hf.flag("tie_word_embeddings", true),
  };
}

function falcon(hf: HfConfig): ReturnType<Architecture["config"]> {
  const dim = hf.size(["hidden_size", "n_embed"]);
  const nHeads = hf.size(["num_attention_heads", "n_head"]);
  const bias = hf.flag("bias", false);
  hf.require("alibi", false);
  // 40B: KV groups, attention and FFN side by side, a norm for each unless told otherwise. 7B: one KV head and one norm.
  const newDecoder = hf.flag("new_decoder_architecture", false);
  const parallelResidual = newDecoder || hf.flag("parallel_attn", true);
  const norms = hf.size("num_ln_in_parallel_attn", newDecoder ? 2 : 1);
  if (norms > (newDecoder ? 2 : 1)) hf.fail("num_ln_in_parallel_attn", newDecoder ? "1 or 2" : "1", norms);
  const multiQuery = !newDecoder && hf.flag("multi_query", true);
  return {
    dim,
    nLayers: hf.size(["num_hidden_layers", "n_layer"]),
    nHeads,
    nKvHeads: newDecoder ? hf.size(["num_kv_heads", "n_head_kv"], nHeads) : multiQuery ? 1 : nHeads,
    headDim: dim / nHeads,
    nNeurons: hf.size("ffn_hidden_size", 4 * dim),
    maxPositions: hf.size("max_position_embeddings", 2048),
    norm: "layer",
    normEps: hf.number("layer_norm_epsilon", 1e-5),
    ...rope(hf),
    gated: false,
    activation: hf.choice(["activation", "hidden_act"], ACTIVATIONS, "gelu"),
    bias: { qkv: bias, attnOut: bias, ffn: bias, head: false },
    parallelResidual,
    sharedNorm: parallelResidual && norms === 1,
    tiedHead: hf.flag("tie_word_embeddings", true),
  };
}

/** Supported values of `model_type`. */
export const ARCHITECTURES: Readonly<Record<string, Architecture>> = {
  llama: { ...LLAMA_SOURCES, config: (hf) => llama(hf, hf.choice("hidden_act", ACTIVATIONS, "silu")) },
  mistral: {
    ...LLAMA_SOURCES,
    config: (hf) => llama(hf, hf.choice("hidden_act", ACTIVATIONS, "silu"), slidingWindow(hf, 4096)),
  },
  // Mistral's shapes; FFN is down(relu(gate) * relu(up)).
  bamboo: {
    ...LLAMA_SOURCES,
    config: (hf) => llama(hf, hf.choice("hidden_act", { relu: { kind: "drelu" } }), slidingWindow(hf)),
  },
  // ProSparse Llama: ReLU whose threshold was raised after training.
  sparsellama: {
    ...LLAMA_SOURCES,
    config: (hf) =>
      llama(
        hf,
        hf.choice("hidden_act", {
          relu: () => ({ kind: "relu" }) as const,
          fatrelu: () => ({ kind: "fatrelu", threshold: hf.number("hidden_act_param") }) as const,
        })(),
      ),
  },
  opt: {
    config: opt,
    prefixes: ["model.decoder.", "decoder.", ""],
    tensors: {
      embed: from("embed_tokens"),
      pos_embed: fromRow2("embed_positions"),
      "layers.L.attn_norm": from("layers.L.self_attn_layer_norm"),
      "layers.L.attn.q": from("layers.L.self_attn.q_proj"),
      "layers.L.attn.k": from("layers.L.self_attn.k_proj"),
      "layers.L.attn.v": from("layers.L.self_attn.v_proj"),
      "layers.L.attn.o": from("layers.L.self_attn.out_proj"),
      "layers.L.ffn_norm": from("layers.L.final_layer_norm"),
      "layers.L.ffn.up": from("layers.L.fc1"),
      "layers.L.ffn.down_t": transposed("layers.L.fc2"),
      "layers.L.ffn.down": from("layers.L.fc2"),
      norm: from("final_layer_norm"),
    },
  },
  falcon: {
    config: falcon,
    prefixes: ["transformer.", ""],
    tensors: {
      embed: from("word_embeddings"),
      "layers.L.attn_norm": from("h.L.input_layernorm", "h.L.ln_attn"),
      "layers.L.attn.q": fused("q"),
      "layers.L.attn.k": fused("k"),
      "layers.L.attn.v": fused("v"),
      "layers.L.attn.o": from("h.L.self_attention.dense"),
      "layers.L.ffn_norm": from("h.L.post_attention_layernorm", "h.L.ln_mlp"),
      "layers.L.ffn.up": from("h.L.mlp.dense_h_to_4h"),
      "layers.L.ffn.down_t": transposed("h.L.mlp.dense_4h_to_h"),
      "layers.L.ffn.down": from("h.L.mlp.dense_4h_to_h"),
      norm: from("ln_f"),
    },
  },
};

/**
 * The canonical config of a checkpoint. `configJson` is its config.json, `generationJson` its generation_config.json
 * where it has one: chat models name more end tokens there. Throws `E_CONFIG` for anything the engine does not have,
 * naming key, expected and actual value. `where` names config.json in messages.
 */
export function readHfConfig(
  configJson: unknown,
  generationJson: unknown,
  where: string,
  warn: (message: string) => void,
): ModelConfig {
  const hf = new HfConfig(configJson, where, warn);
  const { config } = hf.choice("model_type", ARCHITECTURES);
  const quantization = hf.object("quantization_config");
  if (quantization) hf.fail("quantization_config", "unquantised weights", quantization.get("quant_method") ?? {});
  const vocabSize = hf.size("vocab_size");
  const generation = new HfConfig(generationJson ?? {}, `${where} (generation_config.json)`, warn);
  const model: ModelConfig = {
    architecture: hf.text("model_type"),
    vocabSize,
    ...config(hf),
    bosToken: hf.tokens("bos_token_id", vocabSize)[0] ?? null,
    eosTokens: [...new Set([hf, generation].flatMap((source) => source.tokens("eos_token_id", vocabSize)))],
  };
  checkConfig(model, where);
  return model;
}

/** Which part of a checkpoint's tensor makes one tensor of the split-weight layout. */
export interface TensorSource {
  /** Name in the checkpoint, and the shape it must have there. */
  name: string;
  shape: number[];
  /** The checkpoint stores it [cols, rows]. */
  transpose: boolean;
  /** Row ranges to take, in this order; null: all. */
  ranges: [begin: number, end: number][] | null;
}

/**
 * The source of every tensor of `tensorSpecs(config)`, by its name there. `names` are all tensors of the checkpoint,
 * `where` it. Throws `E_TENSOR` naming the first one that is missing.
 */
export function tensorSources(
  config: ModelConfig,
  names: ReadonlySet<string>,
  where: string,
): Map<string, TensorSource> {
  const { prefixes, tensors } = ARCHITECTURES[config.architecture]!;
  const [embedding] = tensors["embed"]!.names;
  const prefix = prefixes.find((p) => names.has(`${p}${embedding}.weight`));
  if (prefix === undefined) {
    const tried = prefixes.map((p) => `${p}${embedding}.weight`).join(" or ");
    throw new PiError("E_TENSOR", `${where}: missing tensor ${tried}: not a ${config.architecture} decoder`);
  }
  const resolve = (spec: TensorSpec): TensorSource => {
    const [, stem, layer = "", kind] = /^((?:layers\.(\d+)\.)?.*)\.(weight|bias)$/.exec(spec.name)!;
    // The head is the one tensor outside of the decoder, and has the same name everywhere.
    const source = stem === "head" ? from("lm_head") : tensors[stem!.replace(/^layers\.\d+/, "layers.L")]!;
    const candidates = source.names.map(
      (name) => `${stem === "head" ? "" : prefix}${name.replace(".L.", `.${layer}.`)}.${kind}`,
    );
    const name = candidates.find((candidate) => names.has(candidate));
    if (name === undefined) throw new PiError("E_TENSOR", `${where}: missing tensor ${candidates.join(" or ")}`);
    const rows = source.rows?.(config);
    const shape = rows ? [rows.of, ...spec.shape.slice(1)] : source.transpose ? spec.shape.toReversed() : spec.shape;
    return { name, shape, transpose: source.transpose ?? false, ranges: rows?.ranges ?? null };
  };
  return new Map(tensorSpecs(config).map((spec) => [spec.name, resolve(spec)]));
}
