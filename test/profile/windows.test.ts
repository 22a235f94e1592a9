import * as fc from "fast-check";
import { describe, expect, it } from "vitest";
import { sha256 } from "../../io/hash.ts";
import type { Tokenizer } from "../../model/tokenizer.ts";
import { FFN_MODE, KV_BLOCK } from "../../native/index.ts";
import { DocumentDraws, inShard, keyLimit } from "../../profile/sampling.ts";
import { steps, type Step } from "../../profile/steps.ts";
import { windows, type Window } from "../../profile/windows.ts";

const BOS = 1000;

/** One token a character. */
function characters(bosToken: number | null): Tokenizer {
  return {
    encode: (text, options) => [
      ...(options?.addSpecialTokens === false || bosToken === null ? [] : [bosToken]),
      ...Array.from(text, (character) => character.charCodeAt(0)),
    ],
    decode: (ids) => String.fromCharCode(...ids),
    tokenText: (id) => String.fromCharCode(id),
    vocabSize: 1001,
    bosToken,
    eosTokens: [],
  };
}

async function cut(pieces: string[], window: number, bosToken: number | null = BOS, seed = 0): Promise<Window[]> {
  const document = { where: "test", sha256: sha256(pieces.join("")), pieces };
  return collect(windows(document, characters(bosToken), { window, seed }));
}

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

describe("windows", () => {
  it("hold every token once, behind a BOS, and only the last is short", async () => {
    const pieces = fc.array(fc.string({ unit: "grapheme-ascii", maxLength: 30 }), { maxLength: 8 });
    await fc.assert(
      fc.asyncProperty(
        pieces,
        fc.integer({ min: 2, max: 12 }),
        fc.constantFrom(BOS, null),
        async (texts, window, bos) => {
          const found = (await cut(texts, window, bos)).map(({ tokens }) => Array.from(tokens));
          const prefix = bos === null ? [] : [bos];
          expect(found.every((tokens) => tokens.length > prefix.length && tokens.length <= window)).toBe(true);
          expect(found.slice(0, -1).every((tokens) => tokens.length === window)).toBe(true);
          expect(found.every((tokens) => bos === null || tokens[0] === bos)).toBe(true);
          const text = String.fromCharCode(...found.flatMap((tokens) => tokens.slice(prefix.length)));
          expect(text).toBe(texts.join(""));
        },
      ),
    );
  });

  it("number the document's rows, BOS included", async () => {
    const found = await cut(["abcdefgh"], 4);
    expect(found.map(({ firstRow }) => firstRow)).toEqual([0, 4, 8]);
  });

  it("hold out one in twenty of a document, which one depending on text and seed", async () => {
    const phases = new Set<number>();
    for (let document = 0; document < 12; document++) {
      const found = await cut([`${document}`.padEnd(200, "x")], 2, null);
      expect(found).toHaveLength(100);
      const heldout = found.flatMap((window, index) => (window.heldout ? [index] : []));
      expect(heldout).toEqual([0, 1, 2, 3, 4].map((i) => heldout[0]! + 20 * i));
      phases.add(heldout[0]!);
    }
    expect(phases.size).toBeGreaterThan(4);
    const phase = (seed: number) => new DocumentDraws(sha256("a"), seed).heldoutPhase;
    expect(new Set([0, 1, 2, 3, 4, 5, 6, 7].map(phase)).size).toBeGreaterThan(2);
  });
});

describe("draws", () => {
  it("have keys that differ, fill 64 bits evenly and depend on nothing else", () => {
    const draws = new DocumentDraws(sha256("a"), 3);
    const keys = Array.from({ length: 4096 }, (_, row) => draws.key(row));
    expect(new Set(keys).size).toBe(4096);
    expect(new DocumentDraws(sha256("a"), 3).key(77)).toBe(keys[77]);
    for (let bit = 0n; bit < 64n; bit++) {
      const ones = keys.filter((key) => (key >> bit) & 1n).length;
      expect(Math.abs(ones - 2048)).toBeLessThan(6 * 32); // six standard deviations
    }
    const sampled = keys.filter((key) => key < keyLimit(0.1)).length;
    expect(Math.abs(sampled - 409.6)).toBeLessThan(6 * 19.2);
    expect(keys.every((key) => key < keyLimit(1))).toBe(true);
    expect(keys.some((key) => key < keyLimit(0))).toBe(false);
  });

  it("put every document into exactly one shard", () => {
    for (let document = 0; document < 200; document++) {
      const hash = sha256(`${document}`);
      const shards = [0, 1, 2, 3, 4].filter((index) => inShard(hash, { index, count: 5 }));
      expect(shards).toHaveLength(1);
    }
  });
});

describe("steps", () => {
  const group = async (lengths: number[], kvBlocks: number, maxSamples = Infinity, rate = 1): Promise<Step[]> => {
    async function* source() {
      for (const [i, length] of lengths.entries()) {
        const tokens = Int32Array.from({ length }, (_, at) => 100 * i + at);
        yield { tokens, firstRow: 0, heldout: false, draws: new DocumentDraws(sha256(`${i}`), 0) };
      }
    }
    return collect(steps(source(), { kvBlocks, maxSamples, limit: keyLimit(rate) }));
  };

  it("pack windows side by side into the KV cache, in order", async () => {
    const [first, second, ...rest] = await group([KV_BLOCK + 1, 3, 2 * KV_BLOCK], 4);
    expect(rest).toEqual([]);
    const { batch } = first!;
    expect([...batch.blockTables]).toEqual([0, 1, 2, -1]);
    expect(batch.blocksPerSequence).toBe(2);
    expect([...batch.tokens.subarray(-3)]).toEqual([100, 101, 102]);
    expect([...batch.positions.subarray(-4)]).toEqual([KV_BLOCK, 0, 1, 2]);
    expect([...batch.sequences.subarray(-4)]).toEqual([0, 1, 1, 1]);
    expect(batch.modes.every((mode) => mode === FFN_MODE.dense)).toBe(true);
    expect(second!.batch.tokens).toHaveLength(2 * KV_BLOCK);
  });

  it("never exceed the KV cache or the samples, except for a window alone", async () => {
    const lengths = fc.array(fc.integer({ min: 1, max: 99 }), { maxLength: 20 });
    await fc.assert(
      fc.asyncProperty(
        lengths,
        fc.integer({ min: 4, max: 9 }),
        fc.integer({ min: 1, max: 120 }),
        async (all, blocks, samples) => {
          const found = await group(all, blocks, samples);
          expect(found.flatMap(({ batch }) => batch.tokens.length).reduce((a, b) => a + b, 0)).toBe(
            all.reduce((a, b) => a + b, 0),
          );
          for (const { batch, keys } of found) {
            expect(batch.blockTables.filter((block) => block >= 0).length).toBeLessThanOrEqual(blocks);
            const sequences = batch.blockTables.length / batch.blocksPerSequence;
            expect(keys.length <= samples || sequences === 1).toBe(true);
            expect(batch.sampleRows).toHaveLength(keys.length);
          }
        },
      ),
      { numRuns: 50 },
    );
  });

  it("sample the same rows whatever they are grouped with", async () => {
    const lengths = [50, 60, 70];
    const [together] = await group(lengths, 100, Infinity, 0.3);
    const alone = await group(lengths, 2, Infinity, 0.3);
    expect(alone).toHaveLength(3);
    expect(alone.flatMap(({ keys }) => [...keys])).toEqual([...together!.keys]);
    const tokens = ({ batch }: Step) => Array.from(batch.sampleRows!, (row) => batch.tokens[row]);
    expect(alone.flatMap(tokens)).toEqual(tokens(together!));
    expect(together!.keys.length).toBeGreaterThan(20);
  });
});
