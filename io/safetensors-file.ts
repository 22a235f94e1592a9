/** Safetensors on disk: checked reading by range, and streaming writing that never holds more than one tensor. */
import { createHash, type Hash } from "node:crypto";
import { open, stat, type FileHandle } from "node:fs/promises";
import { check } from "../formats/errors.ts";
import {
  encodeHeader,
  LENGTH_BYTES,
  parseHeader,
  parseHeaderLength,
  placeTensors,
  type OutputTensor,
  type PlacedTensor,
  type SafetensorsFile,
  type TensorFile,
} from "../formats/safetensors.ts";
import { writeAtomic } from "./atomic-file.ts";

export type { OutputTensor, SafetensorsFile, TensorFile } from "../formats/safetensors.ts";

/** Opens `path`, reads and checks its header, and closes it. Throws `E_FILE` or `E_SAFETENSORS`. */
export async function readSafetensors(path: string): Promise<SafetensorsFile> {
  const info = await stat(path).catch(() => undefined);
  check(info, "E_FILE", `${path}: no such file`);
  check(info.isFile(), "E_FILE", `${path}: expected a regular file`);
  const file = await open(path, "r");
  try {
    const prefix = await readRange(file, 0, Math.min(LENGTH_BYTES, info.size), path);
    const length = parseHeaderLength(prefix, info.size, path);
    return parseHeader(await readRange(file, LENGTH_BYTES, length, path), info.size, path);
  } finally {
    await file.close();
  }
}

/**
 * The stored bytes of one tensor, in the first bytes of `into` where that is given. Throws `E_TENSOR` when the file has
 * no such tensor.
 */
export async function readTensorBytes(source: TensorFile, name: string, into?: Buffer): Promise<Uint8Array> {
  const entry = source.tensors.get(name);
  check(entry, "E_TENSOR", `${source.path}: no tensor ${name}`);
  const file = await open(source.path, "r");
  try {
    return await readRange(file, entry.begin, entry.end - entry.begin, source.path, into);
  } finally {
    await file.close();
  }
}

/** One read or write of the system moves less than 2^31 bytes. */
const MAX_TRANSFER = 1 << 30;

/** Exactly `length` bytes from `offset`. Throws `E_FILE` when the file ends before (it shrank while it was read). */
export async function readRange(
  file: FileHandle,
  offset: number,
  length: number,
  path: string,
  into?: Buffer,
): Promise<Uint8Array> {
  const bytes = into?.subarray(0, length) ?? Buffer.allocUnsafeSlow(length);
  for (let done = 0; done < length;) {
    const { bytesRead } = await file.read(bytes, done, Math.min(length - done, MAX_TRANSFER), offset + done);
    check(bytesRead > 0, "E_FILE", `${path}: expected ${length} bytes at ${offset}, the file ends after ${done}`);
    done += bytesRead;
  }
  return bytes;
}

/** All of `bytes` at `offset`. */
async function writeRange(file: FileHandle, bytes: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const { bytesWritten } = await file.write(bytes, done, Math.min(bytes.length - done, MAX_TRANSFER), offset + done);
    done += bytesWritten;
  }
}

/** Bytes of a tensor: whole, or in chunks. */
export type TensorBytes = AsyncIterable<Uint8Array> | Promise<Uint8Array>;

/**
 * Metadata of a file, made from the sha256 of each tensor's stored bytes. Called twice: first with hashes of zeros, to
 * measure the header, and at the end with the real ones. The text must have the same length both times.
 */
export type MetadataOf = (hashes: Map<string, string>) => Record<string, string>;

/** What stands for a sha256 that is not known yet. */
export const NO_HASH = "0".repeat(64);

/**
 * Writes a safetensors file into an open `FileHandle`: tensors in any order, each at its own place, then the header into
 * the room that was reserved for it.
 */
export class SafetensorsWriter {
  readonly hashes: Map<string, string>;
  readonly #file: FileHandle;
  readonly #tensors: readonly OutputTensor[];
  readonly #placed: readonly PlacedTensor[];
  readonly #byName: ReadonlyMap<string, PlacedTensor>;
  readonly #align: number;
  readonly #metadata: MetadataOf;
  readonly #dataStart: number;

  constructor(file: FileHandle, tensors: readonly OutputTensor[], metadata: MetadataOf, align = 64) {
    this.#file = file;
    this.#tensors = tensors;
    this.#metadata = metadata;
    this.#align = align;
    this.#placed = placeTensors(tensors);
    this.#byName = new Map(this.#placed.map((tensor) => [tensor.name, tensor]));
    this.hashes = new Map(tensors.map(({ name }) => [name, NO_HASH]));
    this.#dataStart = this.#header().length;
  }

  /** Writes one tensor and records its hash, computed while the bytes pass. Throws `E_TENSOR` unless they fill its place. */
  async write(name: string, bytes: TensorBytes): Promise<void> {
    const { begin, end } = this.#byName.get(name)!;
    const hash = createHash("sha256");
    let at = begin;
    for await (const chunk of bytes instanceof Promise ? [bytes] : bytes) {
      check(at + chunk.length <= end, "E_TENSOR", `${name}: expected ${end - begin} bytes, found more`);
      await writeHashed(this.#file, chunk, this.#dataStart + at, hash);
      at += chunk.length;
    }
    check(at === end, "E_TENSOR", `${name}: expected ${end - begin} bytes, found ${at - begin}`);
    this.hashes.set(name, hash.digest("hex"));
  }

  /** Writes padding and header; call it when every tensor is in place. */
  async finish(): Promise<void> {
    for (const { name, begin, end } of this.#placed) {
      if (!this.hashes.has(name)) await writeRange(this.#file, new Uint8Array(end - begin), this.#dataStart + begin);
    }
    const header = this.#header();
    check(
      header.length === this.#dataStart,
      "E_SAFETENSORS",
      `metadata changed its length between measuring and writing`,
    );
    await writeRange(this.#file, header, 0);
  }

  #header(): Uint8Array {
    const metadata = { ...this.#metadata(this.hashes), "pi.tensors": tensorTable(this.#tensors, this.hashes) };
    return encodeHeader(this.#placed, metadata, this.#align);
  }
}

/** `pi.tensors`: JSON `{name: {dtype, shape, sha256}}` with logical types and shapes. */
export function tensorTable(tensors: readonly OutputTensor[], hashes: ReadonlyMap<string, string>): string {
  const entries = tensors.map(({ name, dtype, shape }) => [name, { dtype, shape, sha256: hashes.get(name) }]);
  return JSON.stringify(Object.fromEntries(entries));
}

/** Writes and hashes at the same time: the write runs on a thread of the system's pool. */
async function writeHashed(file: FileHandle, bytes: Uint8Array, offset: number, hash: Hash): Promise<void> {
  const written = writeRange(file, bytes, offset);
  hash.update(bytes);
  await written;
}

export interface WriteOptions {
  /** The data starts on a multiple of this many bytes: 4096 for a file whose tensors are mapped page by page. */
  dataAlign?: 64 | 4096;
  metadata: MetadataOf;
  /** The stored bytes of a tensor. Called once for each, in order, after the one before was written. */
  produce: (tensor: OutputTensor) => TensorBytes;
  signal?: AbortSignal;
}

/**
 * Writes `path` all or nothing, one tensor at a time, and returns the sha256 of each tensor's stored bytes. Adds
 * metadata `pi.tensors` (JSON `{name: {dtype, shape, sha256}}`, logical types and shapes). Throws the signal's reason
 * when aborted.
 */
export async function writeSafetensors(
  path: string,
  tensors: OutputTensor[],
  options: WriteOptions,
): Promise<Map<string, string>> {
  return writeAtomic(path, async (file) => {
    const writer = new SafetensorsWriter(file, tensors, options.metadata, options.dataAlign);
    for (const tensor of tensors) {
      options.signal?.throwIfAborted();
      await writer.write(tensor.name, options.produce(tensor));
    }
    await writer.finish();
    return writer.hashes;
  });
}
