import fc from "fast-check";
import { expect, test } from "vitest";
import { blocksFor, KvBlocks } from "../../runtime/kv-blocks.ts";

test("blocks hold 32 tokens", () => {
  expect([0, 1, 32, 33, 64].map(blocksFor)).toEqual([0, 1, 1, 2, 2]);
});

test("no block has two owners, and all come back", () => {
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 20 }), fc.array(fc.integer({ min: 0, max: 4 })), (total, actions) => {
      const pool = new KvBlocks(total);
      const owners: number[][] = [[], [], []];
      for (const action of actions) {
        const owner = owners[action % 3]!;
        if (action === 4) pool.giveBack(owner);
        else {
          const block = pool.take();
          expect(block === undefined).toBe(owners.flat().length === total);
          if (block !== undefined) owner.push(block);
        }
        const owned = owners.flat();
        expect(new Set(owned).size).toBe(owned.length);
        expect(pool.used).toBe(owned.length);
        expect(pool.available).toBe(total - owned.length);
      }
    }),
  );
});

test("a block given back twice is a bug, said aloud", () => {
  const pool = new KvBlocks(2);
  const block = pool.take()!;
  pool.giveBack([block]);
  expect(() => pool.giveBack([block])).toThrow(/KV block \d given back but not taken/);
});
