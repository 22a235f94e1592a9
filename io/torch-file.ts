/** Torch checkpoints on disk (`torch.save` since torch 1.6): a zip file of a pickle and the storages it refers to. */
import { open, stat, type FileHandle } from "node:fs/promises";
import { check, PiError } from "../formats/errors.ts";
import { MAX_PICKLE_BYTES } from "../formats/pickle.ts";
import type { TensorEntry } from "../formats/safetensors.ts";
import { readTorchPickle, torchEntry, type TorchTensor } from "../formats/torch-checkpoint.ts";
import {
  LOCAL_HEADER_BYTES,
  looksLikeZip,
  parseZipDirectory,
  parseZipEnd,
  ZIP_TAIL_BYTES,
  zipDataStart,
  type ZipEntry,
} from "../formats/zip.ts";
import { readRange, type TensorFile } from "./safetensors-file.ts";

export { ONLY_TENSOR } from "../formats/torch-checkpoint.ts";

/** Begins every file of torch before 1.6: protocol 2, and a number of 10 bytes (torch/serialization.py, MAGIC_NUMBER). */
const LEGACY_MAGIC = Buffer.from("80028a0a6cfc9c46f9206aa850192e", "hex");

/** Tensors may share storages (tied weights), but a file whose tensors have this many times its bytes is an attack. */
const MAX_SHARING = 8;

/**
 * Reads what `path` says of its tensors, in order of offset; the only tensor of a file without names is `ONLY_TENSOR`.
 * Nothing in the file is executed. Throws `E_FILE`, `E_ZIP`, `E_PICKLE` and `E_TORCH`.
 */
export async function readTorchFile(path: string): Promise<TensorFile> {
  const info = await stat(path).catch(() => undefined);
  check(info, "E_FILE", `${path}: no such file`);
  check(info.isFile(), "E_FILE", `${path}: expected a regular file`);
  const file = await open(path, "r");
  try {
    const archive = await Archive.open(file, info.size, path);
    const tensors = readTorchPickle(await archive.read("data.pkl", MAX_PICKLE_BYTES), path);
    return { path, size: info.size, tensors: await place(tensors, archive, info.size, path) };
  } finally {
    await file.close();
  }
}

async function place(
  tensors: ReadonlyMap<string, TorchTensor>,
  archive: Archive,
  size: number,
  path: string,
): Promise<Map<string, TensorEntry>> {
  const contents = new Map<string, { begin: number; size: number }>();
  const entries: [string, TensorEntry][] = [];
  let bytes = 0;
  for (const [name, tensor] of tensors) {
    const { key } = tensor.storage;
    const content = contents.get(key) ?? (await archive.find(`data/${key}`));
    contents.set(key, content);
    const entry = torchEntry(tensor, content, name === "" ? path : `${path}: tensor ${name}`);
    entries.push([name, entry]);
    bytes += entry.end - entry.begin;
  }
  check(bytes <= MAX_SHARING * size, "E_TORCH", `${path}: its tensors have ${bytes} bytes, the file has ${size}`);
  entries.sort(([, a], [, b]) => a.begin - b.begin || a.end - b.end);
  return new Map(entries);
}

/** The zip file of a checkpoint: all of its entries lie in one folder, whose name means nothing. */
class Archive {
  readonly #file: FileHandle;
  readonly #path: string;
  readonly #entries: ReadonlyMap<string, ZipEntry>;
  readonly #folder: string;

  private constructor(file: FileHandle, path: string, entries: ReadonlyMap<string, ZipEntry>) {
    this.#file = file;
    this.#path = path;
    this.#entries = entries;
    const pickles = [...entries.keys()].filter((name) => /^[^/]+\/data\.pkl$/.test(name));
    check(pickles.length === 1, "E_TORCH", `${path}: expected one data.pkl of torch.save, found ${pickles.length}`);
    this.#folder = pickles[0]!.replace(/data\.pkl$/, "");
  }

  static async open(file: FileHandle, size: number, path: string): Promise<Archive> {
    const head = await readRange(file, 0, Math.min(size, LEGACY_MAGIC.length), path);
    if (LEGACY_MAGIC.equals(head)) {
      const advice = "load it with torch 1.6 or later and torch.save it again";
      throw new PiError("E_TORCH", `${path}: expected a zip file, found the format of torch before 1.6; ${advice}`);
    }
    check(looksLikeZip(head), "E_TORCH", `${path}: expected a file of torch.save, which begins with a zip entry`);
    const tailBytes = Math.min(size, ZIP_TAIL_BYTES);
    const end = parseZipEnd(await readRange(file, size - tailBytes, tailBytes, path), size, path);
    const directory = await readRange(file, end.directoryOffset, end.directoryBytes, path);
    const archive = new Archive(file, path, parseZipDirectory(directory, end, path));
    await archive.#checkByteOrder();
    return archive;
  }

  async #checkByteOrder(): Promise<void> {
    if (!this.#entries.has(`${this.#folder}byteorder`)) return; // absent before torch 2.1: little
    const order = Buffer.from(await this.read("byteorder", 16)).toString("latin1");
    check(order === "little", "E_TORCH", `${this.#path}: expected byteorder little, found ${JSON.stringify(order)}`);
  }

  /** Where the content of an entry lies in the file. */
  async find(name: string): Promise<{ begin: number; size: number }> {
    const entry = this.#entries.get(this.#folder + name);
    check(entry, "E_TORCH", () => `${this.#path}: no entry ${(this.#folder + name).slice(0, 200)}`);
    const header = await readRange(this.#file, entry.localOffset, LOCAL_HEADER_BYTES, this.#path);
    return { begin: zipDataStart(header, entry, this.#path), size: entry.size };
  }

  /** The content of an entry of at most `limit` bytes. */
  async read(name: string, limit: number): Promise<Uint8Array> {
    const { begin, size } = await this.find(name);
    check(size <= limit, "E_TORCH", `${this.#path}: expected at most ${limit} bytes in ${name}, found ${size}`);
    return readRange(this.#file, begin, size, this.#path);
  }
}
