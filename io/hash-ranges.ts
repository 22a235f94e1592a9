import { createHash } from "node:crypto";
import { availableParallelism } from "node:os";
import { Worker } from "node:worker_threads";
import { hashRange } from "./hash.ts";

/** Bytes of a file: [offset, offset + bytes). */
export interface FileRange {
  offset: number;
  bytes: number;
}

/** A worker takes some 50 ms to start, in which a thread hashes about as much. */
const WORTH_A_WORKER = 64 << 20;
/** So many together are about as fast as memory is. */
const MAX_WORKERS = 8;

/**
 * The worker's program, as text: it then runs the same from compiled and from TypeScript sources. Workers draw ranges
 * until none is left. A chunk stays in its core's own cache from being read to being hashed.
 */
const WORKER = `
const { createHash } = require("node:crypto");
const { openSync, readSync, closeSync } = require("node:fs");
const { parentPort, workerData: { path, ranges, next } } = require("node:worker_threads");
const file = openSync(path);
const chunk = Buffer.allocUnsafeSlow(256 << 10);
for (let i = Atomics.add(next, 0, 1); i < ranges.length; i = Atomics.add(next, 0, 1)) {
  const hash = createHash("sha256");
  const { offset, bytes, index } = ranges[i];
  for (let done = 0; done < bytes; ) {
    const read = readSync(file, chunk, 0, Math.min(chunk.length, bytes - done), offset + done);
    if (read === 0) break;
    hash.update(chunk.subarray(0, read));
    done += read;
  }
  parentPort.postMessage({ index, sha256: hash.digest("hex") });
}
closeSync(file);
`;

/**
 * Lowercase hex sha256 of each range of a file, or of as much of it as the file has: of many bytes, on several threads
 * and none of them the caller's.
 */
export async function hashRanges(path: string, ranges: readonly FileRange[]): Promise<string[]> {
  const total = ranges.reduce((sum, { bytes }) => sum + bytes, 0);
  const workers = Math.min(Math.floor(total / WORTH_A_WORKER), ranges.length, availableParallelism(), MAX_WORKERS);
  return workers === 0 ? hashHere(path, ranges) : hashInWorkers(path, ranges, workers);
}

async function hashHere(path: string, ranges: readonly FileRange[]): Promise<string[]> {
  const hashes: string[] = [];
  for (const { offset, bytes } of ranges) {
    const hash = createHash("sha256");
    await hashRange(hash, path, offset, offset + bytes);
    hashes.push(hash.digest("hex"));
  }
  return hashes;
}

async function hashInWorkers(path: string, ranges: readonly FileRange[], workers: number): Promise<string[]> {
  // The longest first, so that none is begun when the others have ended.
  const order = ranges.map((range, index) => ({ ...range, index })).sort((a, b) => b.bytes - a.bytes);
  const data = { path, ranges: order, next: new Int32Array(new SharedArrayBuffer(4)) };
  const hashes: string[] = [];
  const share = () => hashShare(data, (index, sha256) => (hashes[index] = sha256));
  await Promise.all(Array.from({ length: workers }, share));
  return hashes;
}

/** Runs one worker to its end. */
function hashShare(
  data: { path: string; ranges: unknown; next: Int32Array },
  found: (index: number, sha256: string) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(WORKER, { eval: true, workerData: data, env: {}, execArgv: [] });
    worker.on("message", ({ index, sha256 }: { index: number; sha256: string }) => found(index, sha256));
    worker.on("error", reject);
    worker.on("exit", () => resolve());
  });
}
