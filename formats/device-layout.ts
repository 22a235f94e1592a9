import { rowBytes, type DType } from "./dtypes.ts";

/** Rows of weights begin on multiples of so many bytes in a GPU's memory (native/cuda/layout.h). */
export const DEVICE_ROW_ALIGN = 16;

/** Bytes of a row of `cols` elements in a GPU's memory. */
export function deviceRowBytes(dtype: DType, cols: number): number {
  return Math.ceil(rowBytes(dtype, cols) / DEVICE_ROW_ALIGN) * DEVICE_ROW_ALIGN;
}

/** Bytes there of a tensor whose last dimension is the row; a vector is one row. */
export function deviceTensorBytes(dtype: DType, shape: readonly number[]): number {
  return deviceRowBytes(dtype, shape.at(-1) ?? 1) * shape.slice(0, -1).reduce((a, b) => a * b, 1);
}
