import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { PromptLookup } from "../../runtime/prompt-lookup.ts";

/** Tokens after `text` as the lookup guesses them; undefined where it has no guess. */
function guess(text: readonly number[], count: number, room = count): number[] | undefined {
  const tokens = Int32Array.from({ length: text.length + room }, (_, i) => text[i] ?? -1);
  const lookup = new PromptLookup(tokens, text.length);
  lookup.advance(text.length);
  if (lookup.chance(0) === 0) return undefined;
  lookup.draft(count);
  return Array.from(tokens.subarray(text.length, text.length + count));
}

describe("guesses", () => {
  test("nothing after what was never seen", () => {
    expect(guess([], 1)).toBeUndefined();
    expect(guess([1, 2, 3, 4, 5, 2], 1)).toBeUndefined();
  });

  test("what followed the longest run of last tokens, of several places the latest", () => {
    expect(guess([1, 2, 3, 9, 1, 2], 3)).toEqual([3, 9, 1]);
    expect(guess([1, 2, 7, 5, 1, 2, 8, 5, 1, 2], 2)).toEqual([8, 5]);
    expect(guess([6, 7, 1, 2, 30, 5, 1, 2, 40, 5, 6, 7, 1, 2], 1)).toEqual([30]);
  });

  test("stays with a place while it comes true", () => {
    const [old, latest] = [
      [1, 2, 3, 4, 5, 6, 70],
      [3, 4, 5, 6, 80],
    ];
    expect(guess([...old, 0, ...latest, 9, 1, 2, 3, 4, 5, 6], 1)).toEqual([70]);
  });

  test("a loop goes on", () => {
    expect(guess([4, 4, 4], 5)).toEqual([4, 4, 4, 4, 4]);
    expect(guess([9, 1, 2, 3, 1, 2, 3, 1, 2], 7)).toEqual([3, 1, 2, 3, 1, 2, 3]);
  });
});

test("every guess is what followed an earlier occurrence of the last two tokens", () => {
  const texts = fc.array(fc.nat(3), { minLength: 1, maxLength: 60 });
  fc.assert(
    fc.property(texts, (text) => {
      const [next] = guess(text, 1) ?? [];
      if (next === undefined) return;
      const runs = text.slice(1).map((token, i) => `${text[i]} ${token} ${text[i + 2] ?? "end"}`);
      expect(runs).toContain(`${text.at(-2)} ${text.at(-1)} ${next}`);
    }),
    { numRuns: 500 },
  );
});

describe("chances", () => {
  const chanceAfter = (text: readonly number[], outputStart: number) => {
    const lookup = new PromptLookup(Int32Array.from(text), outputStart);
    lookup.advance(text.length);
    return lookup.chance(0);
  };
  const copied = Array.from({ length: 60 }, (_, i) => i);
  const loop = [...copied, ...copied];
  /** What follows 1, 2 is never the same. */
  const misleading = Array.from({ length: 40 }, (_, i) => [1, 2, 100 + i]).flat();

  test("grow with the tokens that agreed, and with guesses that came true", () => {
    const fresh = new PromptLookup(Int32Array.from([1, 2, 3, 1, 2, 0]), 5);
    fresh.advance(5);
    const ahead = [0, 1, 2, 6].map((each) => fresh.chance(each));
    expect(ahead).toEqual(ahead.toSorted((a, b) => a - b));
    expect(chanceAfter(loop, copied.length)).toBeGreaterThan(0.95);
  });

  test("shrink with guesses that did not, and the prompt teaches nothing", () => {
    const text = [...misleading, 1, 2];
    const learnt = new PromptLookup(Int32Array.from([...text, 0]), 0);
    learnt.advance(text.length);
    const untaught = new PromptLookup(Int32Array.from([...text, 0]), text.length);
    untaught.advance(text.length);
    expect(learnt.chance(0)).toBeLessThan(untaught.chance(0));
  });
});
