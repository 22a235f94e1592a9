/**
 * Which rows are sampled, held out or left to another shard. Every choice is a function of the document and of the place
 * in it alone, so that profiles of parts of a corpus add up to the profile of the whole.
 */
import { sha256 } from "../io/hash.ts";

/** One window of every so many of a document is held out. */
export const HELDOUT_EVERY = 20;

/** Weyl increment of splitmix64: 2^64 / golden ratio. */
const INCREMENT = 0x9e3779b97f4a7c15n;

/** splitmix64's output function: a bijection of 64-bit integers that leaves no pattern. */
function mix(value: bigint): bigint {
  let x = BigInt.asUintN(64, value);
  x = BigInt.asUintN(64, (x ^ (x >> 30n)) * 0xbf58476d1ce4e5b9n);
  x = BigInt.asUintN(64, (x ^ (x >> 27n)) * 0x94d049bb133111ebn);
  return x ^ (x >> 31n);
}

const first64 = (hash: string): bigint => BigInt(`0x${hash.slice(0, 16)}`);

/** Draws for one document: the splitmix64 sequence that its hash and `seed` start. */
export class DocumentDraws {
  readonly #start: bigint;

  constructor(documentSha256: string, seed: number) {
    this.#start = first64(sha256(`${seed} ${documentSha256}`));
  }

  /** The window in every {@link HELDOUT_EVERY} that is held out. */
  get heldoutPhase(): number {
    return Number(mix(this.#start) % BigInt(HELDOUT_EVERY));
  }

  /** 64-bit key of the document's row `row` (tokens and the BOS of each window, in order). */
  key(row: number): bigint {
    return mix(this.#start + INCREMENT * BigInt(row + 1));
  }
}

/** Keys below this are sampled. `rate` in [0, 1]. */
export function keyLimit(rate: number): bigint {
  return BigInt(Math.floor(rate * 2 ** 64));
}

/** Part `index` in [0, count) of a corpus. */
export interface Shard {
  index: number;
  count: number;
}

/** Every document belongs to exactly one shard. */
export function inShard(documentSha256: string, { index, count }: Shard): boolean {
  return first64(documentSha256) % BigInt(count) === BigInt(index);
}
