/**
 * Which sides attention and head are on: a walk along the layers, at a price of memory, finds the best course and what no
 * course can do better than (Lagrange), for every number of layers with attention on the GPU at once. Whole parts are large,
 * and a relaxed problem would take half of one.
 */
import { SIDES, type Chain, type ChainLayer, type Course, type Side } from "./chain.ts";
import { hull } from "./hull.ts";

/** What a number of attentions on the GPU, with the head or without, can be worth. */
export interface Candidate {
  /** No course of this candidate takes fewer seconds. */
  bound: number;
  /** Seconds per byte at which that was found. */
  price: number;
  attentions: number;
  head: Side;
}

/** Of the option that is best at a price: which, and its seconds with what its bytes cost. */
interface Best {
  none: number;
  some: number;
}

/** A layer's options on the hull, by sides, without the first, which is nothing. */
type Hulls = number[][][];

export class Courses {
  readonly #chain: Chain;
  readonly #capacity: number;
  readonly #hulls: Hulls[];
  readonly #counted: { price: number; walk: Walk }[][] = [];
  /** Bytes of the smallest attentions, and of the smallest beginnings of FFNs, by how many. */
  readonly #attentions: number[];
  readonly #begun: number[];

  constructor(chain: Chain, capacity: number) {
    this.#chain = chain;
    this.#capacity = capacity;
    this.#attentions = sumsOfSmallest(chain.layers.map(({ attention }) => attention.size));
    this.#begun = sumsOfSmallest(chain.layers.flatMap(({ sizes }) => (sizes.length > 1 ? [sizes[1]!] : [])));
    this.#hulls = chain.layers.map(({ sizes, seconds }) =>
      SIDES.map((from) =>
        SIDES.map((to) => {
          const values = Array.from(seconds[from][to], (s) => -s).slice(1);
          return values.length === 0 ? [] : hull({ sizes: sizes.slice(1), values }).map((o) => o + 1);
        }),
      ),
    );
  }

  /** Every candidate that fits, the most promising first; the finer prices are, the better the bounds. */
  candidates(ratio = RATIO): Candidate[] {
    const prices = this.#prices(ratio);
    const best: Candidate[] = [];
    for (const head of SIDES) {
      const bounds = this.#boundsAt(prices, head);
      for (const [attentions, bound] of bounds.entries()) if (bound) best.push({ ...bound, attentions, head });
    }
    return best.filter((candidate) => this.#fits(candidate)).sort((a, b) => a.bound - b.bound);
  }

  /** The same candidate at the price where its bound is highest. */
  refine(candidate: Candidate): Candidate {
    const { attentions, head } = candidate;
    const bound = (price: number): number => this.#bound(this.#walk(price, head, false), price, attentions, 0);
    return { ...candidate, ...highest(bound, candidate) };
  }

  /**
   * A tighter bound: how many layers have anything of their FFN on the GPU decides at which price it is highest, for an FFN
   * begins with a predictor, large and worth little by itself.
   */
  refineByFfns({ attentions, head, bound, price: usual }: Candidate): number {
    const near = [usual / NEAR, usual, usual * NEAR].map((price) => ({ price, walk: this.#walk(price, head, true) }));
    const walks = [...this.#byFfns(head), ...near];
    const best = Array.from({ length: this.#chain.layers.length + 1 }, (_, ffns) => {
      if (!this.#fits({ attentions, head }, ffns)) return { bound: Infinity, price: 0 };
      return walks.reduce(
        (most, { price, walk }) => {
          const found = this.#bound(walk, price, attentions, ffns);
          return found > most.bound ? { bound: found, price } : most;
        },
        { bound: -Infinity, price: 0 },
      );
    });
    for (let i = 0; best.length <= FEW_LAYERS && i < FFNS_REFINED; i++) {
      const ffns = best.reduce((least, of, at) => (of.bound < best[least]!.bound ? at : least), 0);
      const of = best[ffns]!;
      if (of.bound === Infinity) break;
      const at = (price: number): number => this.#bound(this.#walk(price, head, true), price, attentions, ffns);
      const refined = highest(at, of);
      if (refined.bound <= of.bound) break;
      best[ffns] = refined;
    }
    const least = best.reduce((low, of) => Math.min(low, of.bound), Infinity);
    return Math.max(bound, least);
  }

  /** Walks that count FFNs, at prices all over the range: the same for all candidates with or without the head. */
  #byFfns(head: Side): { price: number; walk: Walk }[] {
    return (this.#counted[head] ??= this.#prices().map((price) => ({ price, walk: this.#walk(price, head, true) })));
  }

  /** The candidate's courses at prices around its own: one of them is best, or nearly. */
  courses({ attentions, head, price }: Candidate): Course[] {
    const found = new Map<string, Course>();
    for (const factor of [1, 0.9, 1.1, 0.5, 2]) {
      const course = this.#walk(price * factor, head, false).course(attentions);
      if (course) found.set(course.join(""), course);
    }
    return [...found.values()];
  }

  /** Whether the smallest of as many parts fit. */
  #fits({ attentions, head }: Pick<Candidate, "attentions" | "head">, ffns = 0): boolean {
    if (ffns >= this.#begun.length) return false;
    const least = this.#attentions[attentions]! + this.#begun[ffns]! + head * this.#chain.head.size;
    return least <= this.#capacity;
  }

  #bound(walk: Walk, price: number, attentions: number, ffns: number): number {
    return walk.least(attentions, ffns) - price * this.#capacity;
  }

  /** For every number of attentions the highest of the bounds at some prices. */
  #boundsAt(prices: readonly number[], head: Side): { bound: number; price: number }[] {
    const best = this.#chain.layers.map(() => ({ bound: -Infinity, price: 0 }));
    best.push({ bound: -Infinity, price: 0 });
    for (const price of prices) {
      const walk = this.#walk(price, head, false);
      for (const [attentions, of] of best.entries()) {
        const bound = this.#bound(walk, price, attentions, 0);
        if (bound > of.bound) Object.assign(of, { bound, price });
      }
    }
    return best;
  }

  /** Prices over the range in which steps are worth their bytes. */
  #prices(ratio = RATIO): number[] {
    const densities = this.#chain.layers.flatMap((layer, l) => densitiesOf(layer, this.#hulls[l]!));
    const { size, seconds } = this.#chain.head;
    if (size > 0) densities.push((seconds[0] - seconds[1]) / size);
    const high = 2 * densities.reduce((a, b) => Math.max(a, b), 0);
    if (high === 0) return [0];
    const least = densities.reduce((a, b) => (b > 0 ? Math.min(a, b) : a), high);
    const low = Math.max(least / 2, high * 1e-6);
    const steps = Math.max(8, Math.ceil(Math.log(high / low) / Math.log(ratio)));
    return [0, ...Array.from({ length: steps + 1 }, (_, i) => low * (high / low) ** (i / steps))];
  }

  #walk(price: number, head: Side, byFfns: boolean): Walk {
    const bests = this.#chain.layers.map((layer, l) =>
      SIDES.map((from) => SIDES.map((to) => bestAt(layer, this.#hulls[l]!, from, to, price))),
    );
    return new Walk(this.#chain, bests, price, head, byFfns);
  }
}

/** Between neighbouring prices of a first look. */
const RATIO = 1.3;
/** Steps of a search for the best price between two neighbours, and numbers of FFNs for which it is made. */
const STEPS = 24;
const FFNS_REFINED = 8;
/** Layers up to which it is made: each of its walks is through as many squared numbers. */
const FEW_LAYERS = 24;
/** Between a candidate's price and those beside it. */
const NEAR = 1.02;

/** Where a function that rises and then falls is highest, near a price that is nearly best: golden sections. */
function highest(of: (price: number) => number, near: { bound: number; price: number }) {
  let best = { bound: near.bound, price: near.price };
  let [low, high] = [near.price / RATIO, near.price * RATIO];
  const at = (share: number) => {
    const price = low + (high - low) * share;
    return { price, bound: of(price) };
  };
  let [a, b] = [at(1 - GOLDEN), at(GOLDEN)];
  for (let i = 0; i < STEPS && high > low; i++) {
    const better = a.bound > b.bound ? a : b;
    if (better.bound > best.bound) best = better;
    if (better === a) {
      high = b.price;
      [a, b] = [at(1 - GOLDEN), a];
    } else {
      low = a.price;
      [a, b] = [b, at(GOLDEN)];
    }
  }
  return best;
}
const GOLDEN = (Math.sqrt(5) - 1) / 2;

function sumsOfSmallest(sizes: number[]): number[] {
  const sums = [0];
  for (const size of sizes.sort((a, b) => a - b)) sums.push(sums.at(-1)! + size);
  return sums;
}

/** Value per byte of the hull's steps, and of attention with nothing else. */
function densitiesOf({ sizes, seconds, attention }: ChainLayer, hulls: Hulls): number[] {
  const found = SIDES.flatMap((side) => {
    const of = seconds[side][side];
    const kept = [0, ...hulls[side]![side]!];
    return kept.slice(1).map((o, k) => (of[kept[k]!]! - of[o]!) / (sizes[o]! - sizes[kept[k]!]!));
  });
  if (attention.size > 0) found.push((seconds[0][0][0]! - seconds[1][1][0]!) / attention.size);
  return found;
}

function bestAt({ sizes, seconds }: ChainLayer, hulls: Hulls, from: Side, to: Side, price: number): Best {
  const of = seconds[from][to];
  const kept = hulls[from]![to]!;
  if (kept.length === 0) return { none: of[0]!, some: Infinity };
  let low = 0;
  for (let high = kept.length - 1; low < high;) {
    const middle = (low + high + 1) >> 1;
    const [a, b] = [kept[middle - 1]!, kept[middle]!];
    if (of[a]! - of[b]! >= price * (sizes[b]! - sizes[a]!)) low = middle;
    else high = middle - 1;
  }
  const o = kept[low]!;
  return { none: of[0]!, some: of[o]! + price * sizes[o]! };
}

/**
 * The least seconds, with what bytes cost, from every layer on, by the side of its attention and by how many attentions (and,
 * if told so, FFNs) the GPU has from there on.
 */
class Walk {
  readonly #chain: Chain;
  readonly #bests: Best[][][];
  readonly #price: number;
  /** Numbers of attentions and of FFNs that are told apart. */
  readonly #ks: number;
  readonly #js: number;
  /** By layer and side: [k · js + j]. */
  readonly #least: Float64Array[][];

  constructor(chain: Chain, bests: Best[][][], price: number, head: Side, byFfns: boolean) {
    const n = chain.layers.length;
    this.#chain = chain;
    this.#bests = bests;
    this.#price = price;
    this.#ks = n + 1;
    this.#js = byFfns ? n + 1 : 1;
    const end = SIDES.map(() => this.#table());
    end[head]![0] = chain.head.seconds[head] + head * price * chain.head.size;
    this.#least = [...Array<Float64Array[]>(n), end];
    for (let l = n - 1; l >= 0; l--) {
      this.#least[l] = SIDES.map((side) => this.#step(l, side));
      if (byFfns) this.#least[l + 1] = []; // large, and no course is asked for
    }
  }

  #table(): Float64Array {
    return new Float64Array(this.#ks * this.#js).fill(Infinity);
  }

  #step(l: number, from: Side): Float64Array {
    const out = this.#table();
    const [js, after] = [this.#js, this.#chain.layers.length - l];
    const own = from * this.#price * this.#chain.layers[l]!.attention.size;
    for (const to of SIDES) {
      const { none, some } = this.#bests[l]![from]![to]!;
      const [idle, busy] = [own + none, own + some];
      const next = this.#least[l + 1]![to]!;
      for (let k = from; k <= after; k++) {
        const [row, before] = [k * js, (k - from) * js];
        if (js === 1) {
          out[row] = Math.min(out[row]!, next[before]! + Math.min(idle, busy));
          continue;
        }
        for (let j = 0; j <= after; j++) {
          const with_ = j > 0 ? next[before + j - 1]! + busy : Infinity;
          out[row + j] = Math.min(out[row + j]!, next[before + j]! + idle, with_);
        }
      }
    }
    return out;
  }

  /** With as many attentions on the GPU, and FFNs where they are counted. */
  least(attentions: number, ffns: number): number {
    const at = attentions * this.#js + ffns;
    const { rest, entry } = this.#chain;
    const first = this.#least[0]!;
    return rest + Math.min(first[0]![at]!, first[1]![at]! + (this.#chain.layers.length > 0 ? entry : 0));
  }

  /** The sides of a walk that takes so long; FFNs must not be counted. */
  course(attentions: number): Course | null {
    const first = this.#least[0]!;
    let side: Side = first[0]![attentions]! <= first[1]![attentions]! + this.#chain.entry ? 0 : 1;
    if (first[side]![attentions] === Infinity) return null;
    const course: Side[] = [side];
    for (let l = 0, k = attentions; l < this.#chain.layers.length; l++) {
      k -= side;
      const seconds = SIDES.map((to) => {
        const { none, some } = this.#bests[l]![side]![to]!;
        return this.#least[l + 1]![to]![k]! + Math.min(none, some);
      });
      side = seconds[0]! <= seconds[1]! ? 0 : 1;
      course.push(side);
    }
    return course;
  }
}
