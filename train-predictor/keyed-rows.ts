import type { FileHandle } from "node:fs/promises";
import type { Samples } from "../formats/samples.ts";

export interface RowShape {
  dim: number;
  nNeurons: number;
}

/** Rows in memory, as the native trainer takes them. */
export interface Rows {
  rows: number;
  /** f16 [rows, dim] */
  hidden: Uint16Array;
  /** u8 [rows, nNeurons] */
  contributions: Uint8Array;
}

/** Bytes of all write buffers together. */
const BUFFER_BYTES = 16 << 20;

const KEY_BYTES = 8;

/**
 * Rows sorted into groups in a file: each group has its place, so that reading one is one read. A row is its key, then
 * `hidden`, then `contributions`.
 */
export class KeyedRows {
  readonly #file: FileHandle;
  readonly #shape: RowShape;
  readonly #rowBytes: number;
  readonly #counts: readonly number[];
  /** Rows before each group. */
  readonly #starts: number[] = [];
  readonly #written: number[];
  /** Rows of each group that wait to be written. */
  readonly #waiting: { bytes: Buffer; rows: number }[];

  /** `counts`: how many rows each group is going to have. */
  constructor(file: FileHandle, shape: RowShape, counts: readonly number[]) {
    this.#file = file;
    this.#shape = shape;
    this.#rowBytes = KEY_BYTES + 2 * shape.dim + shape.nNeurons;
    this.#counts = counts;
    let start = 0;
    for (const count of counts) {
      this.#starts.push(start);
      start += count;
    }
    this.#written = counts.map(() => 0);
    const rows = Math.max(1, Math.floor(BUFFER_BYTES / counts.length / this.#rowBytes));
    this.#waiting = counts.map((count) => ({
      bytes: Buffer.allocUnsafe(Math.min(count, rows) * this.#rowBytes),
      rows: 0,
    }));
  }

  /** Appends row `row` of `samples` to `group`. */
  async append(group: number, samples: Samples, row: number): Promise<void> {
    const { dim, nNeurons } = this.#shape;
    const waiting = this.#waiting[group]!;
    const at = waiting.rows * this.#rowBytes;
    waiting.bytes.writeBigUInt64LE(samples.keys[row]!, at);
    waiting.bytes.set(bytesOf(samples.hidden.subarray(row * dim, (row + 1) * dim)), at + KEY_BYTES);
    const contributions = samples.contributions.subarray(row * nNeurons, (row + 1) * nNeurons);
    waiting.bytes.set(contributions, at + KEY_BYTES + 2 * dim);
    waiting.rows++;
    if (at + this.#rowBytes === waiting.bytes.length) await this.#write(group);
  }

  /** Writes what waits, and lets go of the buffers. */
  async flush(): Promise<void> {
    for (const group of this.#waiting.keys()) await this.#write(group);
    this.#waiting.length = 0;
  }

  /** The rows of `group` in ascending order of key, whatever the order they came in. */
  async read(group: number): Promise<Rows> {
    const count = this.#counts[group]!;
    const bytes = Buffer.allocUnsafeSlow(count * this.#rowBytes);
    await transfer(bytes, this.#starts[group]! * this.#rowBytes, async (part, position) => {
      return (await this.#file.read(part, 0, part.length, position)).bytesRead;
    });
    return this.#sorted(bytes, count);
  }

  async #write(group: number): Promise<void> {
    const { bytes, rows } = this.#waiting[group]!;
    const at = (this.#starts[group]! + this.#written[group]!) * this.#rowBytes;
    await transfer(bytes.subarray(0, rows * this.#rowBytes), at, async (part, position) => {
      return (await this.#file.write(part, 0, part.length, position)).bytesWritten;
    });
    this.#written[group]! += rows;
    this.#waiting[group]!.rows = 0;
  }

  #sorted(bytes: Buffer, rows: number): Rows {
    const { dim, nNeurons } = this.#shape;
    const keys = Array.from({ length: rows }, (_, i) => bytes.readBigUInt64LE(i * this.#rowBytes));
    const order = [...keys.keys()].sort((a, b) => (keys[a]! < keys[b]! ? -1 : keys[a]! > keys[b]! ? 1 : a - b));
    const hidden = new Uint16Array(rows * dim);
    const contributions = new Uint8Array(rows * nNeurons);
    const hiddenBytes = bytesOf(hidden);
    order.forEach((from, to) => {
      const at = from * this.#rowBytes + KEY_BYTES;
      hiddenBytes.set(bytes.subarray(at, at + 2 * dim), to * 2 * dim);
      contributions.set(bytes.subarray(at + 2 * dim, at + 2 * dim + nNeurons), to * nNeurons);
    });
    return { rows, hidden, contributions };
  }
}

const bytesOf = (values: Uint16Array) => new Uint8Array(values.buffer, values.byteOffset, values.byteLength);

/** Node moves at most 2 GiB in one call. */
const MAX_TRANSFER = 1 << 30;

async function transfer(
  bytes: Buffer,
  position: number,
  move: (part: Buffer, position: number) => Promise<number>,
): Promise<void> {
  for (let done = 0; done < bytes.length;) {
    const moved = await move(bytes.subarray(done, done + MAX_TRANSFER), position + done);
    if (moved === 0) throw new Error(`scratch file ends after ${position + done} bytes`);
    done += moved;
  }
}
