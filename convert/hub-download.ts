import { createHash, type Hash } from "node:crypto";
import { open, rename, rm, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { check, PiError } from "../formats/errors.ts";
import { hashRange } from "../io/hash.ts";

/** A file to download. */
export interface RemoteFile {
  path: string;
  size: number;
  /** sha256 of the content (files in LFS), or git's sha1 of it: the name of its blob in the cache. */
  hash: string;
}

/** Opens a file of the repository at an offset; undefined when it is not there. */
export type OpenRemote = (path: string, offset: number) => Promise<AsyncIterable<Uint8Array> | undefined>;

/** Tries in a row that bring no new byte before giving up, and the pause before the second, which doubles each time. */
const TRIES = 4;
const PAUSE_MS = 250;

/**
 * Downloads a file to `blob` unless it is there. What an earlier try left in `blob.incomplete` is kept and continued.
 * Throws `E_CHECKSUM` when size or hash is not the one announced, and the last error of the network after some tries.
 */
export async function downloadBlob(
  file: RemoteFile,
  blob: string,
  openRemote: OpenRemote,
  onBytes: (bytes: number) => void,
  signal: AbortSignal,
): Promise<void> {
  if ((await stat(blob).catch(() => undefined))?.size === file.size) return onBytes(file.size);
  const incomplete = `${blob}.incomplete`;
  let reported = 0;
  const report = (bytes: number) => {
    onBytes(bytes - reported);
    reported = bytes;
  };
  for (let failures = 0, before = -1; ;) {
    try {
      await verify(file, incomplete, await append(file, incomplete, openRemote, report));
      return await rename(incomplete, blob);
    } catch (error) {
      const have = (await stat(incomplete).catch(() => undefined))?.size ?? 0;
      failures = have > before ? 1 : failures + 1;
      before = have;
      if (signal.aborted || !isTransient(error) || failures === TRIES) throw error;
      await delay(PAUSE_MS * 2 ** (failures - 1), undefined, { signal });
    }
  }
}

/** Fetches what `path` lacks and returns the hash of the whole. `report` hears how many bytes there are. */
async function append(
  { path: name, size, hash: expected }: RemoteFile,
  path: string,
  openRemote: OpenRemote,
  report: (bytes: number) => void,
): Promise<Hash> {
  const file = await open(path, "a");
  try {
    let have = (await file.stat()).size;
    if (have > size) await file.truncate((have = 0));
    const hash = blobHash(expected, size);
    await hashRange(hash, path, 0, have);
    report(have);
    const stream = have < size ? await openRemote(name, have) : [];
    check(stream, "E_HUB", `${name}: listed, but not there`);
    for await (const chunk of stream) {
      have += chunk.length;
      check(have <= size, "E_CHECKSUM", `${name}: expected ${size} bytes, more arrived`);
      await file.writeFile(chunk);
      hash.update(chunk);
      report(have);
    }
    if (have < size) throw new Error(`connection closed after ${have} of ${size} bytes`);
    await file.sync();
    return hash;
  } finally {
    await file.close();
  }
}

/** The hash that names a blob: plain sha256 (64 digits), or sha1 with git's header (40). */
function blobHash(expected: string, size: number): Hash {
  return expected.length === 64 ? createHash("sha256") : createHash("sha1").update(`blob ${size}\0`);
}

async function verify({ path: name, hash: expected }: RemoteFile, path: string, hash: Hash): Promise<void> {
  const actual = hash.digest("hex");
  if (actual === expected) return;
  await rm(path, { force: true });
  throw new PiError(
    "E_CHECKSUM",
    `${name}: expected ${expected.length === 64 ? "sha256" : "git hash"} ${expected}, found ${actual}; run again to download it afresh`,
  );
}

/** Broken connections and a busy server are worth another try; refusals, wrong content and a full disk are not. */
function isTransient(error: unknown): boolean {
  const { statusCode, syscall } = error as { statusCode?: number; syscall?: string };
  if (error instanceof PiError || syscall !== undefined) return false;
  return statusCode === undefined || statusCode === 429 || statusCode >= 500;
}
