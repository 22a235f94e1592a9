import { FFN_MODE, KV_BLOCK, type StepBatch } from "../native/index.ts";
import type { Window } from "./windows.ts";

/** Several windows that one step of the engine takes together. */
export interface Step {
  batch: StepBatch;
  /** [rows sampled] their keys. */
  keys: BigUint64Array;
}

/** KV blocks that a window of `tokens` tokens fills. */
export const blocksOf = (tokens: number): number => Math.ceil(tokens / KV_BLOCK);

/**
 * Groups `windows` into steps that fit `kvBlocks` and at most `maxSamples` sampled rows, but never less than a window a
 * step. Rows whose key is below `limit` are sampled.
 */
export async function* steps(
  windows: AsyncIterable<Window>,
  { kvBlocks, maxSamples, limit }: { kvBlocks: number; maxSamples: number; limit: bigint },
): AsyncGenerator<Step> {
  let group = new StepBuilder();
  for await (const window of windows) {
    const sampled = sampledRows(window, limit);
    const fits =
      group.blocks + blocksOf(window.tokens.length) <= kvBlocks && group.samples + sampled.length <= maxSamples;
    if (!fits && group.blocks > 0) {
      yield group.build();
      group = new StepBuilder();
    }
    group.add(window, sampled);
  }
  if (group.blocks > 0) yield group.build();
}

/** Rows of `window` whose key is below `limit`, with the keys. */
function sampledRows(window: Window, limit: bigint): { row: number; key: bigint }[] {
  return Array.from(window.tokens, (_, row) => ({ row, key: window.draws.key(window.firstRow + row) })).filter(
    ({ key }) => key < limit,
  );
}

class StepBuilder {
  blocks = 0;
  samples = 0;
  readonly #windows: Window[] = [];
  readonly #sampleRows: number[] = [];
  readonly #keys: bigint[] = [];
  #rows = 0;

  add(window: Window, sampled: { row: number; key: bigint }[]): void {
    for (const { row, key } of sampled) {
      this.#sampleRows.push(this.#rows + row);
      this.#keys.push(key);
    }
    this.#windows.push(window);
    this.#rows += window.tokens.length;
    this.blocks += blocksOf(window.tokens.length);
    this.samples += sampled.length;
  }

  build(): Step {
    const lengths = this.#windows.map(({ tokens }) => tokens.length);
    const rows = <T>(of: (length: number, window: number) => ArrayLike<T>): T[] =>
      lengths.flatMap((length, window) => Array.from(of(length, window)));
    const blocksPerSequence = Math.max(...lengths.map(blocksOf));
    return {
      batch: {
        tokens: Int32Array.from(rows((_, window) => this.#windows[window]!.tokens)),
        positions: Int32Array.from(rows((length) => Array.from({ length }, (_, position) => position))),
        sequences: Int32Array.from(rows((length, window) => Array.from({ length }, () => window))),
        blockTables: blockTables(lengths, blocksPerSequence),
        blocksPerSequence,
        modes: new Uint8Array(this.#rows).fill(FFN_MODE.dense),
        outputs: new Int32Array(0),
        sampleRows: Int32Array.from(this.#sampleRows),
      },
      keys: BigUint64Array.from(this.#keys),
    };
  }
}

/** Sequences of `lengths` tokens side by side in the KV cache. */
function blockTables(lengths: number[], blocksPerSequence: number): Int32Array {
  const tables = new Int32Array(lengths.length * blocksPerSequence).fill(-1);
  let next = 0;
  for (const [sequence, length] of lengths.entries()) {
    for (let block = 0; block < blocksOf(length); block++) tables[sequence * blocksPerSequence + block] = next++;
  }
  return tables;
}
