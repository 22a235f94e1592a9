/**
 * The part of the zip container that torch checkpoints use: stored entries, found through the central directory, with
 * zip64 sizes and data descriptors (PKWARE's APPNOTE.TXT 6.3.9, sections 4.3 and 4.5.3). Everything here is a pure function
 * on bytes; io/torch-file.ts does the reading. Files come from strangers: what torch never writes is refused, so that
 * there is one way only to read a file.
 */
import { check } from "./errors.ts";

/** Where the central directory lies. */
export interface ZipEnd {
  directoryOffset: number;
  directoryBytes: number;
  entries: number;
}

/** One stored file. */
export interface ZipEntry {
  name: string;
  flags: number;
  /** Bytes of its content, and where its local header begins. */
  size: number;
  localOffset: number;
  /** Where the next local header or the central directory begins: the content ends there at the latest. */
  limit: number;
}

/** A directory that claims to be larger is an attempt to exhaust memory: a model has some thousand tensors. */
export const MAX_DIRECTORY_BYTES = 64 << 20;
const MAX_ENTRIES = 500_000;
const MAX_NAME_BYTES = 1024;

const END_BYTES = 22;
const LOCATOR_BYTES = 20;
const END64_BYTES = 56;
const DIRECTORY_HEADER_BYTES = 46;
/** Fixed part of a local header. */
export const LOCAL_HEADER_BYTES = 30;
/** What {@link parseZipEnd} wants of the end of a file: fewer only when the file is shorter. */
export const ZIP_TAIL_BYTES = END64_BYTES + LOCATOR_BYTES + END_BYTES;

const SIGNATURE = { end: 0x06054b50, locator: 0x07064b50, end64: 0x06064b50, directory: 0x02014b50, local: 0x04034b50 };
/** A field of this value stands in the zip64 record or extra field instead. */
const IN_ZIP64_16 = 0xffff;
const IN_ZIP64_32 = 0xffffffff;
/** Flags that may be set: a data descriptor follows the content; the name is UTF-8. */
const HARMLESS_FLAGS = (1 << 3) | (1 << 11);
const ENCRYPTED_FLAGS = (1 << 0) | (1 << 6) | (1 << 13);
const ZIP64_EXTRA = 1;

/** Whether a file that begins with `head` is meant to be a zip file. */
export const looksLikeZip = (head: Uint8Array): boolean =>
  head.length >= 4 && view(head).getUint32(0, true) === SIGNATURE.local;

/**
 * Reads the end records from the last {@link ZIP_TAIL_BYTES} bytes of a file of `fileSize` bytes. The end record must be
 * the last thing in the file, a zip64 record directly before it. Throws `E_ZIP`.
 */
export function parseZipEnd(tail: Uint8Array, fileSize: number, path: string): ZipEnd {
  const expect: Assertion = failing(path);
  const at = tail.length - END_BYTES;
  expect(at >= 0, () => `expected a zip file of at least ${END_BYTES} bytes, found ${fileSize} (truncated?)`);
  const bytes = view(tail);
  expect(bytes.getUint32(at, true) === SIGNATURE.end && bytes.getUint16(at + 20, true) === 0, () => {
    return "expected a zip file that ends with its end record, found something else (truncated?)";
  });
  const disks = bytes.getUint16(at + 4, true) | bytes.getUint16(at + 6, true);
  const entries = bytes.getUint16(at + 10, true);
  const short = { directoryBytes: bytes.getUint32(at + 12, true), directoryOffset: bytes.getUint32(at + 16, true) };
  expect(
    (disks === 0 || disks === IN_ZIP64_16) && bytes.getUint16(at + 8, true) === entries,
    () => "spans several disks",
  );
  const end64 = readEnd64(tail, fileSize, path);
  const end = end64 ?? { entries, ...short, begin: fileSize - END_BYTES };
  const inZip64 =
    entries === IN_ZIP64_16 || short.directoryBytes === IN_ZIP64_32 || short.directoryOffset === IN_ZIP64_32;
  expect(end64 || !inZip64, () => "its end record refers to a zip64 record, and there is none");
  const agrees = (value: number, small: number, marker: number) => small === marker || small === value;
  const same =
    agrees(end.entries, entries, IN_ZIP64_16) &&
    agrees(end.directoryBytes, short.directoryBytes, IN_ZIP64_32) &&
    agrees(end.directoryOffset, short.directoryOffset, IN_ZIP64_32);
  expect(same, () => "its end record and its zip64 record contradict each other");
  expect(end.entries <= MAX_ENTRIES, () => `expected at most ${MAX_ENTRIES} entries, found ${end.entries}`);
  expect(end.directoryBytes <= MAX_DIRECTORY_BYTES, () => {
    return `expected a directory of at most ${MAX_DIRECTORY_BYTES} bytes, found ${end.directoryBytes}`;
  });
  expect(end.directoryOffset + end.directoryBytes === end.begin, () => {
    return `expected the directory to end at byte ${end.begin}, found ${end.directoryOffset} + ${end.directoryBytes}`;
  });
  return { directoryOffset: end.directoryOffset, directoryBytes: end.directoryBytes, entries: end.entries };
}

/** The zip64 end record and where it begins, where a locator stands before the end record. */
function readEnd64(tail: Uint8Array, fileSize: number, path: string): (ZipEnd & { begin: number }) | undefined {
  const expect: Assertion = failing(path);
  const bytes = view(tail);
  const locator = tail.length - END_BYTES - LOCATOR_BYTES;
  if (locator < 0 || bytes.getUint32(locator, true) !== SIGNATURE.locator) return undefined;
  const at = locator - END64_BYTES;
  const begin = fileSize - END_BYTES - LOCATOR_BYTES - END64_BYTES;
  const adjacent =
    at >= 0 && uint64(bytes, locator + 8, path) === begin && bytes.getUint32(at, true) === SIGNATURE.end64;
  expect(adjacent && uint64(bytes, at + 4, path) === END64_BYTES - 12, () => {
    return "expected a zip64 record directly before its locator, found something else";
  });
  const entries = uint64(bytes, at + 32, path);
  const disks = bytes.getUint32(at + 16, true) | bytes.getUint32(at + 20, true);
  expect(disks === 0 && uint64(bytes, at + 24, path) === entries, () => "spans several disks");
  return {
    entries,
    directoryBytes: uint64(bytes, at + 40, path),
    directoryOffset: uint64(bytes, at + 48, path),
    begin,
  };
}

/**
 * Parses the central directory. Refuses what is compressed or encrypted, names that are no plain relative paths or
 * occur twice, and entries that overlap or lie outside of the file. Throws `E_ZIP`.
 * @returns the entries by name
 */
export function parseZipDirectory(directory: Uint8Array, end: ZipEnd, path: string): Map<string, ZipEntry> {
  const expect: Assertion = failing(path);
  const entries = new Map<string, ZipEntry>();
  const extents: { entry: ZipEntry; end: number }[] = [];
  let at = 0;
  for (let i = 0; i < end.entries; i++) {
    const { entry, nameBytes, next } = readDirectoryEntry(directory, at, i, path);
    expect(!entries.has(entry.name), () => `has two entries ${entry.name}`);
    entries.set(entry.name, entry);
    extents.push({ entry, end: entry.localOffset + LOCAL_HEADER_BYTES + nameBytes + entry.size });
    at = next;
  }
  expect(at === directory.length, () => `expected a directory of ${at} bytes, found ${directory.length}`);
  extents.sort((a, b) => a.entry.localOffset - b.entry.localOffset);
  extents.forEach(({ entry, end: least }, i) => {
    entry.limit = extents[i + 1]?.entry.localOffset ?? end.directoryOffset;
    expect(least <= entry.limit, () => {
      const what = i + 1 < extents.length ? `overlaps ${extents[i + 1]!.entry.name}` : "reaches into the directory";
      return `entry ${entry.name} ${what}: it ends at byte ${least} or later, expected ${entry.limit} at most`;
    });
  });
  return entries;
}

function readDirectoryEntry(directory: Uint8Array, at: number, index: number, path: string) {
  const expect: Assertion = failing(path);
  const bytes = view(directory);
  const whole = at + DIRECTORY_HEADER_BYTES <= directory.length;
  expect(
    whole && bytes.getUint32(at, true) === SIGNATURE.directory,
    () => `expected directory entry ${index} at ${at}`,
  );
  const [flags, method] = [bytes.getUint16(at + 8, true), bytes.getUint16(at + 10, true)];
  const [nameBytes, extraBytes, commentBytes] = [28, 30, 32].map((field) => bytes.getUint16(at + field, true)) as [
    number,
    number,
    number,
  ];
  const nameAt = at + DIRECTORY_HEADER_BYTES;
  const next = nameAt + nameBytes + extraBytes + commentBytes;
  expect(next <= directory.length, () => `directory entry ${index} ends at byte ${next} of ${directory.length}`);
  const name = readName(directory.subarray(nameAt, nameAt + nameBytes), path);
  expect((flags & ENCRYPTED_FLAGS) === 0, () => `entry ${name} is encrypted`);
  expect((flags & ~HARMLESS_FLAGS) === 0, () => `entry ${name}: unexpected flags 0x${flags.toString(16)}`);
  expect(method === 0, () => `entry ${name} is compressed (method ${method}), expected it to be stored`);

  const extra = directory.subarray(nameAt + nameBytes, nameAt + nameBytes + extraBytes);
  const sizes = readSizes(bytes, at, extra, name, path);
  expect(
    sizes.size === sizes.stored,
    () => `entry ${name}: expected ${sizes.size} stored bytes, found ${sizes.stored}`,
  );
  const entry: ZipEntry = { name, flags, size: sizes.size, localOffset: sizes.localOffset, limit: 0 };
  return { entry, nameBytes, next };
}

/** Sizes and offset of a directory entry; those that say so come from its zip64 extra field, in this order. */
function readSizes(bytes: DataView, at: number, extra: Uint8Array, name: string, path: string) {
  const expect: Assertion = failing(path);
  const wide = zip64Fields(extra, name, path);
  let used = 0;
  const field = (offset: number): number => {
    const value = bytes.getUint32(at + offset, true);
    if (value !== IN_ZIP64_32) return value;
    expect(used + 8 <= wide.byteLength, () => `entry ${name}: a size is missing from its zip64 field`);
    used += 8;
    return uint64(wide, used - 8, path);
  };
  const sizes = { size: field(24), stored: field(20), localOffset: field(42) };
  const disk = bytes.getUint16(at + 34, true);
  expect(disk === 0 || disk === IN_ZIP64_16, () => `entry ${name} lies on disk ${disk}`);
  return sizes;
}

/** Content of the zip64 extra field; empty where there is none. */
function zip64Fields(extra: Uint8Array, name: string, path: string): DataView {
  const expect: Assertion = failing(path);
  const bytes = view(extra);
  for (let at = 0; at < extra.length;) {
    const size = at + 4 <= extra.length ? bytes.getUint16(at + 2, true) : Infinity;
    expect(at + 4 + size <= extra.length, () => `entry ${name}: its extra field is cut short`);
    if (bytes.getUint16(at, true) === ZIP64_EXTRA) return view(extra.subarray(at + 4, at + 4 + size));
    at += 4 + size;
  }
  return new DataView(new ArrayBuffer(0));
}

/** A plain relative path; nothing is ever written under it, but it is shown and compared. */
function readName(bytes: Uint8Array, path: string): string {
  const expect: Assertion = failing(path);
  expect(bytes.length > 0 && bytes.length <= MAX_NAME_BYTES, () => `has an entry whose name is ${bytes.length} bytes`);
  const name = Buffer.from(bytes).toString("utf8");
  const parts = name.split("/");
  const plain = !/[\\\p{Cc}\uFFFD]/u.test(name) && !parts.some((part) => part === "" || part === "." || part === "..");
  expect(plain, () => `has an entry of the name ${JSON.stringify(name.slice(0, 80))}`);
  return name;
}

/**
 * Where the content of `entry` begins, from the first bytes of its local header. Its size is the directory's; with a
 * data descriptor the local header has none. Throws `E_ZIP` unless the content fits before the next entry.
 */
export function zipDataStart(header: Uint8Array, entry: ZipEntry, path: string): number {
  const expect: Assertion = failing(path);
  const bytes = view(header);
  const valid = header.length >= LOCAL_HEADER_BYTES && bytes.getUint32(0, true) === SIGNATURE.local;
  expect(valid, () => `entry ${entry.name}: expected a local header at byte ${entry.localOffset}`);
  const [flags, method] = [bytes.getUint16(6, true), bytes.getUint16(8, true)];
  const same = flags === entry.flags && method === 0;
  expect(same, () => `entry ${entry.name}: its local header and the directory contradict each other`);
  const begin = entry.localOffset + LOCAL_HEADER_BYTES + bytes.getUint16(26, true) + bytes.getUint16(28, true);
  const end = begin + entry.size;
  expect(end <= entry.limit, () => `entry ${entry.name} ends at byte ${end}, expected ${entry.limit} at most`);
  return begin;
}

const view = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** A u64 that a double holds exactly. */
function uint64(bytes: DataView, at: number, path: string): number {
  const value = bytes.getBigUint64(at, true);
  check(value <= Number.MAX_SAFE_INTEGER, "E_ZIP", () => `${path}: a size or offset of ${value} is beyond 2^53`);
  return Number(value);
}

type Assertion = (condition: unknown, message: () => string) => asserts condition;

function failing(path: string): Assertion {
  return (condition, message) => check(condition, "E_ZIP", () => `${path}: ${message()}`);
}
