/** How other engines lay out the architectures that they share with pi: what they call them, and each of the tensors. */
import { isDeepStrictEqual } from "node:util";
import { PiError } from "../formats/errors.ts";
import type { ModelConfig } from "../model/config.ts";
import type { ModelFile } from "../model/model-file.ts";
import type { GgufValue } from "./gguf-file.ts";
import { amongRows, from, interleaved, stacked, transposed, type Origin } from "./gguf-tensors.ts";

/** GGUF's name without `.weight` and `.bias`, of which the model's are taken, and where they come from. */
type Row = readonly [name: string, origin: Origin];

export interface GgufLayout {
  /** What `general.architecture` says, and what the keys of the sizes begin with. */
  architecture: string;
  /** Keys besides those of the sizes. */
  keys?: Readonly<Record<string, GgufValue>>;
  outer: readonly Row[];
  /** Names follow `blk.N.`, parts of the model `layers.N.`. */
  layer: readonly Row[];
}

/** An architecture of ours, and what the two kinds of engines run it as. */
interface Family {
  needs: Partial<ModelConfig>;
  dense: GgufLayout;
  powerInfer: GgufLayout;
}

/** What all layers have; q, k, v and the rest of the FFN differ. */
const LAYER: readonly Row[] = [
  ["attn_norm", from("attn_norm")],
  ["attn_output", from("attn.o")],
  ["ffn_norm", from("ffn_norm")],
  ["ffn_up", from("ffn.up")],
];
/** The second row is the bias of the first, which is the same either way round. */
const DOWN: readonly Row[] = [
  ["ffn_down", transposed("ffn.down_t")],
  ["ffn_down", from("ffn.down")],
];
const DOWN_T: readonly Row[] = [
  ["ffn_down_t", from("ffn.down_t")],
  ["ffn_down_t", from("ffn.down")],
];
const EMBEDDING: readonly Row[] = [
  ["token_embd", from("embed")],
  ["output_norm", from("norm")],
];
/** A tied head is written out, which PowerInfer's Llama needs and costs no speed. */
const HEAD: readonly Row[] = [["output", from("head", "embed")]];

const LLAMA_LAYER: readonly Row[] = [
  ...LAYER,
  ["attn_q", interleaved("attn.q", "nHeads")],
  ["attn_k", interleaved("attn.k", "nKvHeads")],
  ["attn_v", from("attn.v")],
  ["ffn_gate", from("ffn.gate")],
];
const LLAMA = { architecture: "llama", outer: [...EMBEDDING, ...HEAD] };

/**
 * OPT. llama.cpp's family has no such architecture. GPT-NeoX has its matrices, biases and norms, with q, k and v in one
 * matrix; GELU stands for ReLU, and turning two elements of a head for adding a position. (GPT-2 is nearer, but
 * ik_llama.cpp ends in an assertion: it norms GPT-2's FFN by RMS.)
 */
const GPT_NEOX: GgufLayout = {
  architecture: "gptneox",
  keys: { use_parallel_residual: false, "rope.dimension_count": 2 },
  outer: [...EMBEDDING, ...HEAD],
  layer: [...LAYER, ["attn_qkv", stacked("attn.q", "attn.k", "attn.v")], ...DOWN],
};
/** Its head is the embedding; the loader insists on 2,050 positions, whose first two OPT does not use. */
const POWERINFER_OPT: GgufLayout = {
  architecture: "opt",
  outer: [...EMBEDDING, ["position_embd", amongRows("pos_embed", 2, 2050)]],
  layer: [...LAYER, ["attn_q", from("attn.q")], ["attn_k", from("attn.k")], ["attn_v", from("attn.v")], ...DOWN_T],
};

const FAMILIES: readonly Family[] = [
  {
    needs: {
      norm: "rms",
      position: "rope",
      ropeScaling: null,
      gated: true,
      parallelResidual: false,
      bias: { qkv: false, attnOut: false, ffn: false, head: false },
    },
    dense: { ...LLAMA, layer: [...LLAMA_LAYER, ...DOWN] },
    powerInfer: { ...LLAMA, layer: [...LLAMA_LAYER, ...DOWN_T] },
  },
  {
    needs: {
      norm: "layer",
      position: "learned",
      gated: false,
      parallelResidual: false,
      bias: { qkv: true, attnOut: true, ffn: true, head: false },
    },
    dense: GPT_NEOX,
    powerInfer: POWERINFER_OPT,
  },
];

/** Throws `E_CONFIG` for an architecture that is in none of the families. */
export function layoutOf({ path, config }: ModelFile, engine: "dense" | "powerInfer"): GgufLayout {
  const family = FAMILIES.find(({ needs }) =>
    Object.entries(needs).every(([key, value]) => isDeepStrictEqual(config[key as keyof ModelConfig], value)),
  );
  if (family) return family[engine];
  const expected = "Llama's architecture without biases and rope scaling, or OPT's with biases";
  throw new PiError("E_CONFIG", `${path}: expected ${expected}, found ${config.architecture}`);
}
