/** Writing GGUF version 3: magic, counts, key-values, tensor table, padding, data. Little-endian; sizes are u64. */
import { tensorBytes, type DType } from "../formats/dtypes.ts";
import { check, PiError } from "../formats/errors.ts";
import { writeAtomic } from "../io/atomic-file.ts";

/** Metadata values, by the GGUF type they are written as: u32, bool, string, string[], f32[], i32[], f32. */
export type GgufValue = number | boolean | string | readonly string[] | Float32Array | Int32Array | { f32: number };

export interface GgufTensor {
  name: string;
  dtype: DType;
  /** Row-major, the row last; the file lists it the other way round. */
  shape: readonly number[];
  /** Reads or makes the stored bytes, when their turn comes. */
  bytes: () => Promise<Uint8Array>;
}

export interface GgufFile {
  /** `PWRI` is PowerInfer's mark of a model with predictors, in an otherwise ordinary file. */
  magic: "GGUF" | "PWRI";
  metadata: Readonly<Record<string, GgufValue>>;
  tensors: readonly GgufTensor[];
}

const VERSION = 3;
/** Data, and every tensor in it, starts on a multiple of this: the format's default. */
const ALIGN = 32;
/** GGUF's numbers of metadata types, and of ours among the tensor types. */
const TYPE = { u32: 4, i32: 5, f32: 6, bool: 7, string: 8, array: 9 } as const;
const TENSOR_TYPE: Partial<Record<DType, number>> = { f32: 0, f16: 1, q4_0: 2, q8_0: 8, bf16: 30 };

const padded = (bytes: number): number => Math.ceil(bytes / ALIGN) * ALIGN;

/** Everything before the data, padded to where that starts. */
export function encodeGgufHeader({ magic, metadata, tensors }: GgufFile): Buffer {
  const entries = Object.entries(metadata);
  const parts = [Buffer.from(magic), u32(VERSION), u64(tensors.length), u64(entries.length)];
  for (const [key, value] of entries) parts.push(string(key), ...encodeValue(value));
  let offset = 0;
  for (const { name, dtype, shape } of tensors) {
    parts.push(
      string(name),
      u32(shape.length),
      ...shape.toReversed().map(u64),
      u32(tensorType(name, dtype)),
      u64(offset),
    );
    offset += padded(tensorBytes(dtype, shape));
  }
  const header = Buffer.concat(parts);
  return Buffer.concat([header, Buffer.alloc(padded(header.length) - header.length)]);
}

/** Writes `path` all or nothing, one tensor at a time. Throws `E_TENSOR` when a tensor is not of the size it declares. */
export async function writeGguf(path: string, gguf: GgufFile): Promise<void> {
  await writeAtomic(path, async (file) => {
    await file.appendFile(encodeGgufHeader(gguf));
    for (const { name, dtype, shape, bytes } of gguf.tensors) {
      const expected = tensorBytes(dtype, shape);
      const data = await bytes();
      check(data.length === expected, "E_TENSOR", `${name}: expected ${expected} bytes, found ${data.length}`);
      await file.appendFile(data);
      await file.appendFile(new Uint8Array(padded(expected) - expected));
    }
  });
}

function tensorType(name: string, dtype: DType): number {
  const type = TENSOR_TYPE[dtype];
  if (type === undefined) throw new PiError("E_TENSOR", `${name}: ${dtype} is no tensor type of GGUF that pi writes`);
  return type;
}

function encodeValue(value: GgufValue): Buffer[] {
  if (typeof value === "number") return [u32(TYPE.u32), u32(value)];
  if (typeof value === "boolean") return [u32(TYPE.bool), Buffer.of(Number(value))];
  if (typeof value === "string") return [u32(TYPE.string), string(value)];
  if (value instanceof Float32Array) return [...arrayHead(TYPE.f32, value.length), bytesOf(value)];
  if (value instanceof Int32Array) return [...arrayHead(TYPE.i32, value.length), bytesOf(value)];
  if ("f32" in value) return [u32(TYPE.f32), bytesOf(Float32Array.of(value.f32))];
  return [...arrayHead(TYPE.string, value.length), ...value.map(string)];
}

const arrayHead = (type: number, length: number): Buffer[] => [u32(TYPE.array), u32(type), u64(length)];

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}

function string(value: string): Buffer {
  const text = Buffer.from(value);
  return Buffer.concat([u64(text.length), text]);
}

const bytesOf = (values: Float32Array | Int32Array): Buffer =>
  Buffer.from(values.buffer, values.byteOffset, values.byteLength);
