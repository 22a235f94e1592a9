import { createHash, type Hash } from "node:crypto";
import { createReadStream } from "node:fs";

/** Lowercase hex sha256 of bytes or of a text's UTF-8. */
export function sha256(data: Uint8Array | string): string {
  return createHash("sha256").update(data).digest("hex");
}

/** Bytes per read: large enough to stream at the hash's speed, small enough to be resident at no cost. */
const CHUNK = 4 << 20;

/** Lowercase hex sha256 of a file, read once front to back; `onBytes` hears of every chunk. */
export async function sha256File(path: string, onBytes?: (bytes: number) => void): Promise<string> {
  const hash = createHash("sha256");
  await hashRange(hash, path, 0, Infinity, onBytes);
  return hash.digest("hex");
}

/** Adds bytes [begin, end) of a file, or as many of them as it has, to `hash`. */
export async function hashRange(
  hash: Hash,
  path: string,
  begin: number,
  end: number,
  onBytes?: (bytes: number) => void,
): Promise<void> {
  if (end <= begin) return;
  const stream = createReadStream(path, { start: begin, end: end - 1, highWaterMark: CHUNK });
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    hash.update(chunk);
    onBytes?.(chunk.length);
  }
}
