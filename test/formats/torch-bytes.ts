/** Builds zip files, pickles and torch checkpoints byte by byte, right ones and wrong ones. */
import { crc32 } from "node:zlib";

export interface ZipContent {
  name: string;
  bytes: Uint8Array;
  /** Fields of the directory that lie. */
  lie?: { method?: number; flags?: number; size?: number; stored?: number; offset?: number };
  /** Sizes and offset stand in a zip64 extra field. */
  zip64?: boolean;
}

export interface ZipLies {
  /** A zip64 end record and its locator, as torch always writes them. */
  zip64?: boolean;
  comment?: string;
  entries?: number;
  directoryOffset?: number;
  directoryBytes?: number;
}

const u16 = (n: number): Buffer => le(n, 2);
const u32 = (n: number): Buffer => le(n, 4);
const u64 = (n: number): Buffer => le(n, 8);

function le(n: number, bytes: number): Buffer {
  const out = Buffer.alloc(8);
  out.writeBigUInt64LE(BigInt(n));
  return out.subarray(0, bytes);
}

/** A stored zip file whose contents start on multiples of 64, like torch's. */
export function zipFile(contents: readonly ZipContent[], lies: ZipLies = {}): Buffer {
  const parts: Buffer[] = [];
  const directory: Buffer[] = [];
  let at = 0;
  const push = (bytes: Uint8Array): void => {
    parts.push(Buffer.from(bytes));
    at += bytes.length;
  };
  for (const { name, bytes, lie = {}, zip64 } of contents) {
    const begin = at;
    const gap = (64 - ((begin + 34 + name.length) % 64)) % 64;
    const [flags, method] = [lie.flags ?? 0x800, lie.method ?? 0];
    const sums = [u32(crc32(bytes)), u32(lie.stored ?? bytes.length), u32(lie.size ?? bytes.length)];
    const extra = Buffer.concat([Buffer.from("FB"), u16(gap), Buffer.alloc(gap, "Z")]);
    push(Buffer.concat([u32(0x04034b50), u16(0), u16(flags), u16(method), u32(0), ...sums]));
    push(Buffer.concat([u16(name.length), u16(extra.length), Buffer.from(name), extra]));
    push(bytes);
    const [stored, size, offset] = [lie.stored ?? bytes.length, lie.size ?? bytes.length, lie.offset ?? begin];
    const wide = zip64 ? Buffer.concat([u16(1), u16(24), u64(size), u64(stored), u64(offset)]) : Buffer.alloc(0);
    const short = (n: number) => (zip64 ? u32(0xffffffff) : u32(n));
    directory.push(
      Buffer.concat([u32(0x02014b50), u16(0), u16(0), u16(flags), u16(method), u32(0), sums[0]!]),
      Buffer.concat([short(stored), short(size), u16(name.length), u16(wide.length), u16(0), u16(0), u16(0), u32(0)]),
      Buffer.concat([short(offset), Buffer.from(name), wide]),
    );
  }
  const entries = lies.entries ?? contents.length;
  const directoryOffset = lies.directoryOffset ?? at;
  const table = Buffer.concat(directory);
  const directoryBytes = lies.directoryBytes ?? table.length;
  push(table);
  if (lies.zip64) {
    const begin = at;
    push(Buffer.concat([u32(0x06064b50), u64(44), u16(0), u16(45), u32(0), u32(0), u64(entries), u64(entries)]));
    push(Buffer.concat([u64(directoryBytes), u64(directoryOffset), u32(0x07064b50), u32(0), u64(begin), u32(1)]));
  }
  const marker = (n: number, highest: number) => (lies.zip64 ? highest : n);
  push(Buffer.concat([u32(0x06054b50), u16(0), u16(0), u16(marker(entries, 0xffff)), u16(marker(entries, 0xffff))]));
  push(Buffer.concat([u32(marker(directoryBytes, 0xffffffff)), u32(marker(directoryOffset, 0xffffffff))]));
  push(Buffer.concat([u16(lies.comment?.length ?? 0), Buffer.from(lies.comment ?? "")]));
  return Buffer.concat(parts);
}

/** Opcodes, each a few bytes; `pickle` puts them between the protocol and the stop. */
export const op = {
  mark: "(",
  none: "N",
  false: "\x89",
  dict: "}",
  list: "]",
  append: "a",
  setitem: "s",
  setitems: "u",
  tuple0: ")",
  tuple1: "\x85",
  tuple2: "\x86",
  tuple: "t",
  call: "R",
  build: "b",
  persistent: "Q",
  memoize: "\x94",
  global: (module: string, name: string) => `c${module}\n${name}\n`,
  text: (value: string) =>
    `X${u32(Buffer.byteLength(value)).toString("latin1")}${Buffer.from(value).toString("latin1")}`,
  /** A whole number, of any size that 8 bytes hold. */
  long: (value: number) => {
    const bytes = Buffer.alloc(8);
    bytes.writeBigInt64LE(BigInt(value));
    return `\x8a\x08${bytes.toString("latin1")}`;
  },
  put: (index: number) => `r${u32(index).toString("latin1")}`,
  get: (index: number) => `j${u32(index).toString("latin1")}`,
};

export const pickle = (...ops: string[]): Buffer => Buffer.from(`\x80\x02${ops.join("")}.`, "latin1");

const tupleOf = (numbers: readonly number[]): string => `(${numbers.map(op.long).join("")}t`;

export interface PickledTensor {
  /** torch's name, as in "FloatStorage". */
  storage?: string;
  key: string;
  elements: number;
  offset?: number;
  shape: readonly number[];
  strides?: readonly number[];
  /** Opcodes of a seventh argument. */
  marks?: string;
}

/** Opcodes of one tensor. */
export function tensorOps({
  storage = "FloatStorage",
  key,
  elements,
  offset = 0,
  shape,
  strides,
  marks = "",
}: PickledTensor): string {
  const rowMajor = shape.map((_, i) => shape.slice(i + 1).reduce((a, b) => a * b, 1));
  const id = `(${op.text("storage")}${op.global("torch", storage)}${op.text(key)}${op.text("cpu")}${op.long(elements)}t`;
  const hooks = `${op.global("collections", "OrderedDict")})R`;
  const sizes = `${op.long(offset)}${tupleOf(shape)}${tupleOf(strides ?? rowMajor)}`;
  return `${op.global("torch._utils", "_rebuild_tensor_v2")}(${id}Q${sizes}${op.false}${hooks}${marks}tR`;
}

export const dictOps = (entries: Readonly<Record<string, string>>): string =>
  `}(${Object.entries(entries)
    .map(([name, value]) => op.text(name) + value)
    .join("")}u`;

/** An archive of a pickle and its storages, "0", "1", …. */
export function torchArchive(
  data: Uint8Array,
  storages: readonly Uint8Array[],
  lies: ZipLies = { zip64: true },
): Buffer {
  const contents = [
    { name: "archive/data.pkl", bytes: data },
    { name: "archive/byteorder", bytes: Buffer.from("little") },
    ...storages.map((bytes, key) => ({ name: `archive/data/${key}`, bytes })),
    { name: "archive/version", bytes: Buffer.from("3\n") },
  ];
  return zipFile(contents, lies);
}

const STORAGE_OF = {
  f32: "FloatStorage",
  f16: "HalfStorage",
  bf16: "BFloat16Storage",
  f64: "DoubleStorage",
  i64: "LongStorage",
  i32: "IntStorage",
};
const ELEMENT = { f32: 4, f16: 2, bf16: 2, f64: 8, i64: 8, i32: 4 };

export interface TorchValue {
  dtype: keyof typeof STORAGE_OF;
  shape: readonly number[];
  bytes: Uint8Array;
}

const opsOf = ({ dtype, shape, bytes }: TorchValue, key: number): string =>
  tensorOps({ storage: STORAGE_OF[dtype], key: String(key), elements: bytes.length / ELEMENT[dtype], shape });

/** What torch.save makes of a state dict. */
export function torchFile(tensors: Readonly<Record<string, TorchValue>>): Buffer {
  const entries = Object.entries(tensors).map(([name, value], key) => [name, opsOf(value, key)]);
  const data = pickle(dictOps(Object.fromEntries(entries) as Record<string, string>));
  return torchArchive(
    data,
    Object.values(tensors).map(({ bytes }) => bytes),
  );
}

/** What torch.save makes of one tensor. */
export const torchTensor = (value: TorchValue): Buffer => torchArchive(pickle(opsOf(value, 0)), [value.bytes]);

/** A tensor of f32 values. */
export const f32Value = (shape: readonly number[], values: ArrayLike<number>): TorchValue => {
  return { dtype: "f32", shape, bytes: new Uint8Array(Float32Array.from(values).buffer) };
};
