/** Matrices as they come back from the type they are stored in. */
import type { DType } from "../../formats/dtypes.ts";
import { native } from "../../native/index.ts";

/** `values` as they come back from `dtype`, blocks along the row. */
export async function through(values: Float32Array, cols: number, dtype: DType): Promise<Float32Array> {
  const rows = values.length / cols;
  const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
  const stored = await native().convertTensor(bytes, "f32", dtype, rows, cols, false, undefined, "fitted");
  return native().dequantize(stored, dtype, rows, cols);
}

/** The same, blocks along the column. */
export async function throughColumns(
  values: Float32Array,
  rows: number,
  cols: number,
  dtype: DType,
): Promise<Float32Array> {
  const turned = Float32Array.from(values, (_, i) => values[(i % rows) * cols + Math.floor(i / rows)]!);
  const back = await through(turned, rows, dtype);
  return back.map((_, i) => back[(i % cols) * rows + Math.floor(i / cols)]!);
}
