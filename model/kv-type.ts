import { DTYPES, type DType } from "../formats/dtypes.ts";
import type { KvType } from "../native/index.ts";
import type { ModelConfig } from "./config.ts";

/**
 * How keys and values are kept unless told otherwise: about as finely as the weights. Eight bits cost a sixth of the
 * divergence that weights in q8_0 cost (bench/kv-types.ts, docs/log.md).
 */
export function defaultKvType(weights: DType): KvType {
  if (weights === "f32") return "f32";
  return DTYPES[weights].blockSize > 1 ? "q8" : "f16";
}

/** Bytes that one position takes of one layer, as the engine lays it out (native/kernels/kernels.h). */
export function kvPositionBytes(
  type: KvType,
  { nKvHeads, headDim }: Pick<ModelConfig, "nKvHeads" | "headDim">,
): number {
  const head = { f32: 4 * headDim, f16: 2 * headDim, q8: headDim + Float32Array.BYTES_PER_ELEMENT }[type];
  return 2 * nKvHeads * head;
}
