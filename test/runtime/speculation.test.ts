import { describe, expect, test } from "vitest";
import { NEUTRAL_SAMPLING } from "../../runtime/sampling.ts";
import { Sequence } from "../../runtime/sequence.ts";
import { MAX_ROWS, Speculation } from "../../runtime/speculation.ts";

/** A decoding sequence with the given text, one token of which was generated, and room for `room` more. */
function decoding(text: readonly number[], room = 50): Sequence {
  const prompt = text.slice(0, -1);
  const request = { prompt, maxTokens: room + 1, sampling: NEUTRAL_SAMPLING, topLogprobs: 0, scorePrompt: false };
  const sequence = new Sequence(request, { prompt: () => undefined, token: () => true, end: () => undefined });
  sequence.tokens[sequence.length++] = text.at(-1)!;
  return sequence;
}

const LOOP = Array.from({ length: 40 }, (_, i) => i % 5);
const PROSE = Array.from({ length: 40 }, (_, i) => i);

/** A speculation that has seen steps of a sequence with up to 8 drafts, and of 2 and 3 without, take so many seconds. */
function priced(maxDrafts: number, seconds: (rows: number) => number): Speculation {
  const speculation = new Speculation(maxDrafts);
  for (let i = 0; i < 300; i++) speculation.observe(1, (i * 7) % 9, seconds(1 + ((i * 7) % 9)));
  for (const sequences of [1, 2, 3]) speculation.observe(sequences, 0, seconds(sequences));
  return speculation;
}

describe("drafts are planned", () => {
  test("for texts that repeat themselves, up to the bound", () => {
    const cheap = priced(6, (rows) => 1 + 0.02 * rows);
    expect(cheap.plan([decoding(LOOP)])).toEqual([6]);
    expect(cheap.plan([decoding(PROSE)])).toEqual([0]);
    expect(cheap.plan([decoding(PROSE), decoding(LOOP)])).toEqual([0, 6]);
    expect(priced(0, () => 1).plan([decoding(LOOP)])).toEqual([0]);
  });

  test("fewer the more a row costs, none where it costs a token's time", () => {
    const [cheap, dear] = [0.1, 0.4].map((price) => priced(8, (rows) => 1 + price * rows).plan([decoding(LOOP)])[0]!);
    expect(dear).toBeLessThan(cheap!);
    expect(priced(8, (rows) => rows).plan([decoding(LOOP)])).toEqual([0]);
  });

  test("many or none where the first is dear and the others cheap", () => {
    const speculation = priced(8, (rows) => (rows === 1 ? 1 : 2.6 + 0.05 * rows));
    expect(speculation.plan([decoding(LOOP)])[0]).toBeGreaterThan(4);
    expect(speculation.plan([decoding(LOOP, 3)])).toEqual([0]);
  });

  test("again when rows may have become cheap, and never before a step without drafts was measured", () => {
    const speculation = priced(8, (rows) => rows);
    for (let i = 0; i < 300; i++) speculation.observe(1, 0, 1);
    expect(speculation.plan([decoding(LOOP)])[0]).toBeGreaterThan(0);
    expect(new Speculation(8).plan([decoding(LOOP)])).toEqual([0]);
  });

  test("now and then not, to see what a step takes without", () => {
    const cheap = priced(8, () => 1);
    const planned = Array.from({ length: 100 }, () => {
      const [drafts] = cheap.plan([decoding(LOOP)]);
      cheap.observe(1, drafts!, 1);
      return drafts!;
    });
    const without = planned.filter((drafts) => drafts === 0).length;
    expect(without).toBeGreaterThan(0);
    expect(without).toBeLessThan(10);
  });

  test("within a step's rows, and none when others fill it", () => {
    const cheap = priced(15, (rows) => 1 + 0.001 * rows);
    const plan = cheap.plan([decoding(LOOP), decoding(LOOP), decoding(PROSE)]);
    expect(plan.reduce((a, b) => a + b)).toBeLessThanOrEqual(MAX_ROWS - 3);
    expect(plan[0]).toBeGreaterThan(0);
    expect(plan[2]).toBe(0);
    const many = Array.from({ length: MAX_ROWS }, () => decoding(LOOP));
    expect(cheap.plan(many)).toEqual(many.map(() => 0));
  });

  test("never past the sequence's end", () => {
    const cheap = priced(8, () => 1);
    const room = [0, 1, 2, 4].map((each) => cheap.plan([decoding(LOOP, each)])[0]);
    expect(room).toEqual([0, 0, 1, 3]);
  });
});
