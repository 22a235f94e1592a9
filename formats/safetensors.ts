/**
 * The safetensors container: u64 little-endian header length, JSON header, data. Everything here is a pure function on
 * bytes; io/safetensors-file.ts does the reading and writing. Files come from strangers: each limit names its threat.
 */
import { DTYPES, tensorBytes, rowBytes, type DType } from "./dtypes.ts";
import { check, PiError } from "./errors.ts";
import { parseStrictJson, type JsonObject, type JsonValue } from "./strict-json.ts";

/** One tensor's place; `begin` and `end` are absolute byte offsets in the file. */
export interface TensorEntry {
  dtype: string;
  shape: number[];
  begin: number;
  end: number;
}

export interface SafetensorsFile {
  path: string;
  /** Bytes of the whole file. */
  size: number;
  /** Offset of the first data byte. */
  dataStart: number;
  metadata: Record<string, string>;
  /** By name, in order of offset. */
  tensors: Map<string, TensorEntry>;
}

/** Tensors in a file, whatever its format. */
export type TensorFile = Pick<SafetensorsFile, "path" | "size" | "tensors">;

/** A header that claims to be larger is an attempt to exhaust memory; the format's own limit. */
export const MAX_HEADER_BYTES = 100_000_000;
/** Far above any model; a header full of tiny entries costs CPU. */
const MAX_TENSORS = 1_000_000;
/** Header object, tensor object, shape array: real headers nest three deep. */
const MAX_DEPTH = 4;

/** Bytes of the length field that precedes the header. */
export const LENGTH_BYTES = 8;

/** Bytes per element of every dtype the format defines in whole bytes. */
export const ELEMENT_BYTES: ReadonlyMap<string, number> = new Map([
  ...["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"].map((name) => [name, 1] as const),
  ...["U16", "I16", "F16", "BF16"].map((name) => [name, 2] as const),
  ...["U32", "I32", "F32"].map((name) => [name, 4] as const),
  ...["U64", "I64", "F64", "C64"].map((name) => [name, 8] as const),
]);

/** Reads the length field. Throws `E_SAFETENSORS` when it is too large or the file too short. */
export function parseHeaderLength(prefix: Uint8Array, fileSize: number, path: string): number {
  const expect: Assertion = failing(path);
  expect(prefix.length >= LENGTH_BYTES, () => `expected at least ${LENGTH_BYTES} bytes, found ${prefix.length}`);
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  expect(length <= MAX_HEADER_BYTES, () => `expected a header of at most ${MAX_HEADER_BYTES} bytes, found ${length}`);
  const end = LENGTH_BYTES + Number(length);
  expect(end <= fileSize, () => `header ends at byte ${end}, but the file has ${fileSize} (truncated?)`);
  return Number(length);
}

/**
 * Checks and parses a header (without its length field) of a file of `fileSize` bytes. Throws `E_SAFETENSORS` with a
 * one-line reason: docs/formats.md lists everything that is refused.
 */
export function parseHeader(header: Uint8Array, fileSize: number, path: string): SafetensorsFile {
  const expect: Assertion = failing(path);
  expect(header[0] === 0x7b, () => `expected the header to start with "{", found byte ${header[0] ?? "(none)"}`);
  const members = parseObject(header, path);
  const metadata = readMetadata(members.get("__metadata__"), path);
  members.delete("__metadata__");
  expect(members.size <= MAX_TENSORS, () => `expected at most ${MAX_TENSORS} tensors, found ${members.size}`);

  const dataStart = LENGTH_BYTES + header.length;
  const entries = [...members].map(([name, value]) => [name, readEntry(name, value, dataStart, path)] as const);
  entries.sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  let end = dataStart;
  for (const [name, entry] of entries) {
    expect(
      entry.begin >= end,
      () => `tensor ${name} begins at byte ${entry.begin}, inside the one before it (ends at ${end})`,
    );
    expect(
      entry.begin === end,
      () => `hole before tensor ${name}: expected it at byte ${end}, found it at ${entry.begin}`,
    );
    end = entry.end;
  }
  expect(end <= fileSize, () => `tensors end at byte ${end}, but the file has ${fileSize} (truncated?)`);
  expect(end === fileSize, () => `expected the file to end with its tensors at byte ${end}, found ${fileSize} bytes`);
  return { path, size: fileSize, dataStart, metadata, tensors: new Map(entries) };
}

/** Parses the header's JSON; anything wrong with it is `E_SAFETENSORS`. */
function parseObject(header: Uint8Array, path: string): JsonObject {
  try {
    const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(header);
    return parseStrictJson(text, "header", { depth: MAX_DEPTH, members: MAX_TENSORS + 1 }) as JsonObject;
  } catch (error) {
    const reason = error instanceof PiError ? error.message : "header is not UTF-8";
    throw new PiError("E_SAFETENSORS", `${path}: ${reason}`);
  }
}

function readMetadata(value: JsonValue | undefined, path: string): Record<string, string> {
  const expect: Assertion = failing(path);
  if (value === undefined) return {};
  expect(value instanceof Map, () => "expected __metadata__ to be an object of strings");
  for (const [key, text] of value) {
    expect(
      typeof text === "string",
      () => `expected metadata ${JSON.stringify(key)} to be a string, found ${typeof text}`,
    );
  }
  return Object.fromEntries(value) as Record<string, string>;
}

function readEntry(name: string, value: JsonValue, dataStart: number, path: string): TensorEntry {
  const expect: Assertion = failing(path);
  expect(value instanceof Map, () => `expected tensor ${name} to be an object`);
  const dtype = value.get("dtype");
  const elementBytes = typeof dtype === "string" ? ELEMENT_BYTES.get(dtype) : undefined;
  expect(elementBytes !== undefined, () => `tensor ${name}: unknown dtype ${String(dtype)}`);
  const shape = sizes(value.get("shape"));
  expect(shape, () => `tensor ${name}: expected shape to be a list of sizes`);
  const offsets = sizes(value.get("data_offsets"));
  expect(offsets?.length === 2, () => `tensor ${name}: expected data_offsets to be two offsets`);

  const bytes = product(shape) * elementBytes;
  expect(Number.isSafeInteger(bytes), () => `tensor ${name}: shape [${shape}] has more bytes than 2^53`);
  const [begin, end] = offsets as [number, number];
  expect(
    end - begin === bytes,
    () =>
      `tensor ${name}: ${String(dtype)} [${shape}] is ${bytes} bytes, its range [${begin}, ${end}] is ${end - begin}`,
  );
  return { dtype: dtype as string, shape, begin: dataStart + begin, end: dataStart + end };
}

/** A list of whole numbers >= 0, or undefined. */
function sizes(value: JsonValue | undefined): number[] | undefined {
  const valid = Array.isArray(value) && value.every((n) => Number.isSafeInteger(n) && (n as number) >= 0);
  return valid ? (value as number[]) : undefined;
}

/** Product of sizes, NaN as soon as it passes 2^53 (even when a later 0 would hide it). */
function product(shape: readonly number[]): number {
  return shape.reduce((a, b) => (Number.isSafeInteger(a * b) ? a * b : NaN), 1);
}

type Assertion = (condition: unknown, message: () => string) => asserts condition;

function failing(path: string): Assertion {
  return (condition, message) => check(condition, "E_SAFETENSORS", () => `${path}: ${message()}`);
}

/** A tensor to be written. `shape` is logical; block types are stored as U8 [..., bytesPerRow]. */
export interface OutputTensor {
  name: string;
  dtype: DType;
  shape: number[];
}

/** A tensor's header entry with its name; `begin` and `end` count from the start of the data, as in the header. */
export type PlacedTensor = TensorEntry & { name: string };

/** Every tensor starts on a multiple of this, so that kernels may use aligned loads on a mapped file. */
const TENSOR_ALIGN = 64;

/**
 * Places tensors one after the other, each on a multiple of 64. The format allows no holes: a gap is a U8 tensor of
 * its own, `pad.N`.
 */
export function placeTensors(tensors: readonly OutputTensor[]): PlacedTensor[] {
  const placed: PlacedTensor[] = [];
  let end = 0;
  let pads = 0;
  const place = (name: string, dtype: string, shape: number[], bytes: number): void => {
    placed.push({ name, dtype, shape, begin: end, end: end + bytes });
    end += bytes;
  };
  for (const { name, dtype, shape } of tensors) {
    const gap = alignUp(end, TENSOR_ALIGN) - end;
    if (gap > 0) place(`pad.${pads++}`, "U8", [gap], gap);
    place(name, DTYPES[dtype].safetensors, storedShape(dtype, shape), tensorBytes(dtype, shape));
  }
  return placed;
}

/** The shape a tensor has in the file: rows of block types are counted in bytes. */
export function storedShape(dtype: DType, shape: readonly number[]): number[] {
  if (DTYPES[dtype].blockSize === 1) return [...shape];
  return [...shape.slice(0, -1), rowBytes(dtype, shape.at(-1) ?? 1)];
}

/**
 * Length field and header, padded with spaces so that the data starts on a multiple of `align` bytes.
 * `metadata` values of fixed length make a header of fixed length: it can be measured before they are known.
 */
export function encodeHeader(
  placed: readonly PlacedTensor[],
  metadata: Record<string, string>,
  align: number,
): Uint8Array {
  const entries = placed.map(({ name, dtype, shape, begin, end }) => [
    name,
    { dtype, shape, data_offsets: [begin, end] },
  ]);
  const json = new TextEncoder().encode(JSON.stringify({ __metadata__: metadata, ...Object.fromEntries(entries) }));
  const header = new Uint8Array(alignUp(LENGTH_BYTES + json.length, align)).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(header.length - LENGTH_BYTES), true);
  header.set(json, LENGTH_BYTES);
  return header;
}

const alignUp = (n: number, align: number): number => Math.ceil(n / align) * align;
