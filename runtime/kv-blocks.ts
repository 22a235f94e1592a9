import { check } from "../formats/errors.ts";
import { KV_BLOCK } from "../native/index.ts";

/** KV blocks that `tokens` positions take. */
export function blocksFor(tokens: number): number {
  return Math.ceil(tokens / KV_BLOCK);
}

/**
 * Who owns which block of the engine's KV cache. The cache itself is native; here a block is a number below `total`.
 * Blocks are handed out most recently freed first, so a lightly loaded server keeps to few pages of memory.
 */
export class KvBlocks {
  readonly total: number;
  readonly #free: number[];
  readonly #owned: Uint8Array;

  constructor(total: number) {
    this.total = total;
    this.#free = Array.from({ length: total }, (_, i) => total - 1 - i);
    this.#owned = new Uint8Array(total);
  }

  get available(): number {
    return this.#free.length;
  }

  get used(): number {
    return this.total - this.#free.length;
  }

  /** A free block, undefined when there is none. */
  take(): number | undefined {
    const block = this.#free.pop();
    if (block !== undefined) this.#owned[block] = 1;
    return block;
  }

  /** Returns blocks to the pool and empties the list, so that it cannot be given back twice. */
  giveBack(blocks: number[]): void {
    for (const block of blocks) {
      check(this.#owned[block] === 1, "E_INTERNAL", () => `KV block ${block} given back but not taken`);
      this.#owned[block] = 0;
      this.#free.push(block);
    }
    blocks.length = 0;
  }
}
