import { createHash } from "node:crypto";
import { open } from "node:fs/promises";

/** Lowercase hex sha256 of bytes or of a text's UTF-8. */
export function sha256(data: Uint8Array | string): string {
  return createHash("sha256").update(data).digest("hex");
}

/** Bytes per read: large enough to stream at the hash's speed, small enough to be resident at no cost. */
const CHUNK = 4 << 20;

/** Lowercase hex sha256 of a file, read once front to back; `onBytes` hears of every chunk. */
export async function sha256File(path: string, onBytes?: (bytes: number) => void): Promise<string> {
  const file = await open(path, "r");
  try {
    const hash = createHash("sha256");
    const stream = file.createReadStream({ highWaterMark: CHUNK, autoClose: false });
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      hash.update(chunk);
      onBytes?.(chunk.length);
    }
    return hash.digest("hex");
  } finally {
    await file.close();
  }
}
