/** Tensors of a GGUF file out of a converted model's: as they are, or their rows elsewhere. Read when their turn comes. */
import { open } from "node:fs/promises";
import { DTYPES, rowBytes, type WeightDType } from "../formats/dtypes.ts";
import { check } from "../formats/errors.ts";
import { readRange } from "../io/safetensors-file.ts";
import type { ModelFile, StoredTensor } from "../model/model-file.ts";
import { native } from "../native/index.ts";
import type { GgufTensor } from "./gguf-file.ts";

/** Makes a tensor called `name` of the model's, which are called `full(part)`; undefined where the model has none. */
export type Origin = (name: string, full: (part: string) => string, model: ModelFile) => GgufTensor | undefined;

/** As it is, the first of these that the model has. */
export const from =
  (...parts: readonly string[]): Origin =>
  (name, full, model) => {
    const tensor = parts.map((part) => model.tensors.get(full(part))).find((found) => found !== undefined);
    return tensor && copied(name, model, tensor);
  };

export const copied = (name: string, { path }: { path: string }, tensor: StoredTensor): GgufTensor => {
  const { dtype, shape } = tensor;
  return { name, dtype, shape, bytes: () => read(path, tensor) };
};

/** Rows of q or k, from half-split to interleaved rotary embedding. */
export const interleaved = (part: string, heads: "nHeads" | "nKvHeads"): Origin =>
  made([part], (name, { path, config }, tensor) => {
    const { dtype, shape } = tensor;
    const [size, headDim] = [rowBytes(dtype, shape[1]!), shape[0]! / config[heads]];
    return { name, dtype, shape, bytes: async () => interleaveRows(await read(path, tensor), size, headDim) };
  });

/** The rows, or elements, of one after those of the other. */
export const stacked = (...parts: readonly string[]): Origin =>
  made(parts, (name, { path }, ...tensors) => {
    const { dtype, shape } = tensors[0]!;
    const rows = tensors.reduce((sum, tensor) => sum + tensor.shape[0]!, 0);
    const bytes = async () => Buffer.concat(await Promise.all(tensors.map((tensor) => read(path, tensor))));
    return { name, dtype, shape: [rows, ...shape.slice(1)], bytes };
  });

/** `count` rows: the model's from row `first` on, and zeros around them. Throws `E_CONFIG` for more than fit. */
export const amongRows = (part: string, first: number, count: number): Origin =>
  made([part], (name, { path }, tensor) => {
    const { dtype, shape } = tensor;
    const [rows, cols] = shape as [number, number];
    check(first + rows <= count, "E_CONFIG", `${path}: ${name}: expected at most ${count - first} rows, found ${rows}`);
    const bytes = async () => {
      const all = new Uint8Array(count * rowBytes(dtype, cols)); // bytes of 0 are elements of 0 in every type
      all.set(await read(path, tensor), first * rowBytes(dtype, cols));
      return all;
    };
    return { name, dtype, shape: [count, cols], bytes };
  });

/** `ffn_down` [dim, nNeurons], from `down_t` [nNeurons, dim]. Throws `E_BLOCK`. */
export const transposed = (part: string): Origin =>
  made([part], (name, { path }, tensor) => {
    const dtype = tensor.dtype as WeightDType;
    const [nNeurons, dim] = tensor.shape as [number, number];
    const { blockSize } = DTYPES[dtype];
    check(
      nNeurons % blockSize === 0,
      "E_BLOCK",
      `${path}: expected nNeurons to be a multiple of ${dtype}'s block of ${blockSize}, found ${nNeurons}`,
    );
    const bytes = async () => {
      const values = await native().dequantize(await read(path, tensor), dtype, nNeurons, dim);
      return native().convertTensor(new Uint8Array(values.buffer), "f32", dtype, dim, nNeurons, true);
    };
    return { name, dtype, shape: [dim, nNeurons], bytes };
  });

type Make = (name: string, model: ModelFile, ...tensors: readonly StoredTensor[]) => GgufTensor;

/** What `make` makes of the `parts`, where the model has them. */
function made(parts: readonly string[], make: Make): Origin {
  return (name, full, model) => {
    const tensors = parts.map((part) => model.tensors.get(full(part))).filter((tensor) => tensor !== undefined);
    return tensors.length === parts.length ? make(name, model, ...tensors) : undefined;
  };
}

/** In every head of `headDim` rows, row i of the first half is followed by row i of the second. */
export function interleaveRows(rows: Uint8Array, rowSize: number, headDim: number): Uint8Array {
  const out = new Uint8Array(rows.length);
  const half = headDim / 2;
  for (let row = 0; row * rowSize < rows.length; row++) {
    const [head, i] = [Math.floor(row / headDim), row % headDim];
    const to = head * headDim + (i < half ? 2 * i : 2 * (i - half) + 1);
    out.set(rows.subarray(row * rowSize, (row + 1) * rowSize), to * rowSize);
  }
  return out;
}

/** The stored bytes of a tensor of file `path`. */
export async function read(path: string, { offset, bytes }: StoredTensor): Promise<Uint8Array> {
  const file = await open(path, "r");
  try {
    return await readRange(file, offset, bytes, path);
  } finally {
    await file.close();
  }
}
