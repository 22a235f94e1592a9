/**
 * The canonical description of a decoder: the only thing the engine knows about an architecture. Every supported
 * checkpoint is a row of `model/architectures.ts` that fills this in. Sizes are element counts.
 */
export interface ModelConfig {
  /** Row of the architecture table this came from; informative, never branched on by the engine. */
  architecture: string;
  dim: number;
  nLayers: number;
  nHeads: number;
  nKvHeads: number;
  headDim: number;
  /** FFN width: neuron i is row i of gate and up with row i of down_t. */
  nNeurons: number;
  vocabSize: number;
  /** Longest context the checkpoint was made for, in tokens. */
  maxPositions: number;
  norm: "rms" | "layer";
  normEps: number;
  position: "rope" | "learned";
  /** 0 when `position` is `learned`. Half-split rotary embedding over the whole head. */
  ropeTheta: number;
  /** Frequency scaling of long-context Llama checkpoints. */
  ropeScaling: RopeScaling | null;
  /** Gated FFN: act = f(gate) * up. Otherwise act = f(up). */
  gated: boolean;
  activation: Activation;
  /** Which projections carry a bias. */
  bias: { qkv: boolean; attnOut: boolean; ffn: boolean; head: boolean };
  /** x + attn(norm(x)) + ffn(ffnNorm(x)) instead of one after the other (Falcon). */
  parallelResidual: boolean;
  /** The FFN reads the attention norm's output; there is no `ffn_norm` tensor (Falcon 7B). */
  sharedNorm: boolean;
  /** The output head is the embedding matrix; there is no `head.weight` tensor. */
  tiedHead: boolean;
  bosToken: number | null;
  eosTokens: number[];
}

export type RopeScaling =
  | { type: "linear"; factor: number }
  | { type: "llama3"; factor: number; lowFreqFactor: number; highFreqFactor: number; originalMaxPositions: number };

/**
 * f in act = f(gate) * up (gated) or f(up). `drelu` is gated only: relu(gate) * relu(up) (Bamboo, TurboSparse).
 * `fatrelu`: x if x >= threshold else 0 (ProSparse).
 */
export type Activation =
  { kind: "relu" | "relu2" | "drelu" | "silu" | "gelu" | "gelu_tanh" } | { kind: "fatrelu"; threshold: number };

/** True when idle neurons are exactly zero, so that skipping them is exact. */
export function isSparse(activation: Activation): boolean {
  return activation.kind !== "silu" && activation.kind !== "gelu" && activation.kind !== "gelu_tanh";
}
