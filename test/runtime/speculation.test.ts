import { describe, expect, test } from "vitest";
import { NEUTRAL_SAMPLING } from "../../runtime/sampling.ts";
import { Sequence } from "../../runtime/sequence.ts";
import { MAX_ROWS, Speculation, StepCost } from "../../runtime/speculation.ts";

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

/** A speculation that has seen steps of 1 to 8 rows at these prices. */
function priced(maxDrafts: number, seconds: (rows: number) => number): Speculation {
  const speculation = new Speculation(maxDrafts);
  for (let i = 0; i < 200; i++) speculation.observe(1 + (i % 8), seconds(1 + (i % 8)));
  return speculation;
}

describe("drafts are planned", () => {
  test("for texts that repeat themselves, up to the bound", () => {
    expect(new Speculation(8).plan([decoding(PROSE), decoding(LOOP)])[0]).toBe(0);
    const cheap = priced(6, (rows) => 1 + 0.02 * rows);
    expect(cheap.plan([decoding(LOOP)])).toEqual([6]);
    expect(cheap.plan([decoding(PROSE)])).toEqual([0]);
    expect(priced(0, () => 1).plan([decoding(LOOP)])).toEqual([0]);
  });

  test("fewer the more a row costs, none where it costs a token's time", () => {
    const [cheap, dear] = [0.1, 0.4].map((price) => priced(8, (rows) => 1 + price * rows).plan([decoding(LOOP)])[0]!);
    expect(dear).toBeLessThan(cheap!);
    expect(priced(8, (rows) => rows).plan([decoding(LOOP)])).toEqual([0]);
  });

  test("again when rows have become cheap", () => {
    const speculation = priced(8, (rows) => rows);
    for (let i = 0; i < 200; i++) speculation.observe(1, 1);
    expect(speculation.plan([decoding(LOOP)])[0]).toBeGreaterThan(0);
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

describe("the price of a row", () => {
  test("is the slope of the latest steps", () => {
    const cost = new StepCost();
    for (let i = 0; i < 500; i++) cost.observe(1 + (i % 4), 3 + 0.5 * (1 + (i % 4)));
    expect(cost.line().perRow).toBeCloseTo(0.5, 1);
    expect(cost.line().at(10)).toBeCloseTo(8, 0);
  });

  test("is neither nothing nor more than a step divided by its rows, whatever was measured", () => {
    const shrinking = new StepCost();
    for (let i = 0; i < 100; i++) shrinking.observe(1 + (i % 4), 5 - (i % 4));
    expect(shrinking.line().perRow).toBeGreaterThan(0);
    const steep = new StepCost();
    for (let i = 0; i < 100; i++) steep.observe(1 + (i % 2), i % 2 === 0 ? 1 : 9);
    expect(steep.line().at(1)).toBeGreaterThan(0);
  });

  test("hardly moves for a step that was disturbed", () => {
    const cost = new StepCost();
    for (let i = 0; i < 100; i++) cost.observe(1 + (i % 4), 1 + 0.1 * (i % 4));
    const before = cost.line().perRow;
    cost.observe(4, 1000);
    expect(cost.line().perRow).toBeLessThan(before + 0.1);
  });
});
