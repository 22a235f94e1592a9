import { PiError } from "./errors.ts";

/**
 * Element types of weights. `q8_0` and `q4_0` are GGUF's block types, bit for bit: blocks of 32 values along a row,
 * an f16 scale followed by 32 int8 (q8_0) or 16 bytes of nibbles, value = scale * (nibble - 8) (q4_0, low nibbles are
 * elements 0-15, high nibbles 16-31). `bit` is the sign alone: bit j % 8 of byte j / 8 of a row is set where element j
 * is negative.
 */
export const DTYPES = {
  f32: { id: 0, blockSize: 1, blockBytes: 4, safetensors: "F32" },
  f16: { id: 1, blockSize: 1, blockBytes: 2, safetensors: "F16" },
  bf16: { id: 2, blockSize: 1, blockBytes: 2, safetensors: "BF16" },
  q8_0: { id: 3, blockSize: 32, blockBytes: 34, safetensors: "U8" },
  q4_0: { id: 4, blockSize: 32, blockBytes: 18, safetensors: "U8" },
  i32: { id: 5, blockSize: 1, blockBytes: 4, safetensors: "I32" },
  bit: { id: 6, blockSize: 8, blockBytes: 1, safetensors: "U8" },
} as const;

export type DType = keyof typeof DTYPES;

/** Types a weight matrix may be stored in (`pi convert --dtype`). */
export const WEIGHT_DTYPES = ["f32", "f16", "bf16", "q8_0", "q4_0"] as const satisfies readonly DType[];
export type WeightDType = (typeof WEIGHT_DTYPES)[number];

/** How a q4_0 block gets its scale: for the least squared error of its values, or by GGUF's reference rule (max / -8). */
export const SCALES = ["fitted", "plain"] as const;
export type Scales = (typeof SCALES)[number];

/** Bytes of one row of `cols` elements; throws `E_BLOCK` when a row is not a whole number of blocks. */
export function rowBytes(dtype: DType, cols: number): number {
  const { blockSize, blockBytes } = DTYPES[dtype];
  if (cols % blockSize !== 0) {
    throw new PiError("E_BLOCK", `row of ${cols} elements is not a multiple of ${dtype}'s block of ${blockSize}`);
  }
  return (cols / blockSize) * blockBytes;
}

/** Bytes of a tensor whose last dimension is the row. */
export function tensorBytes(dtype: DType, shape: readonly number[]): number {
  const cols = shape.at(-1) ?? 1;
  return rowBytes(dtype, cols) * shape.slice(0, -1).reduce((a, b) => a * b, 1);
}
