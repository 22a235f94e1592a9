import fc from "fast-check";
import { setTimeout } from "node:timers/promises";
import { expect, test } from "vitest";
import { type GenerateOptions, Generation } from "../../runtime/generate.ts";
import { NEUTRAL_SAMPLING } from "../../runtime/sampling.ts";
import { Scheduler } from "../../runtime/scheduler.ts";
import { BOS, EOS, FakeEngine, fakeTokenizer, type Script, textScript } from "./fake-engine.ts";

function setUp(script: Script, delayMs = 0) {
  const scheduler = new Scheduler(new FakeEngine(64, script, delayMs), { kvBlocks: 64, mode: "exact" });
  const generate = (options: Partial<GenerateOptions> = {}) =>
    new Generation(scheduler, fakeTokenizer, {
      prompt: [BOS, 65],
      maxTokens: 200,
      sampling: NEUTRAL_SAMPLING,
      stopTokens: new Set([EOS]),
      ...options,
    });
  return { scheduler, generate };
}

test("ends with the EOS token, which has no text and is counted", async () => {
  const generation = setUp(textScript("Hi.")).generate();
  const { text, tokens } = await generation.all();
  expect(text).toBe("Hi.");
  expect(tokens.map(({ token }) => token)).toEqual([72, 105, 46]);
  expect([generation.finishReason, generation.completionTokens]).toEqual(["stop", 4]);
});

test("ends with the last token allowed", async () => {
  const generation = setUp(textScript("Hello")).generate({ maxTokens: 3 });
  expect((await generation.all()).text).toBe("Hel");
  expect([generation.finishReason, generation.completionTokens]).toEqual(["length", 3]);
});

test("goes past EOS when it does not count as an end", async () => {
  const generation = setUp(textScript("ab")).generate({ stopTokens: new Set(), maxTokens: 5 });
  expect((await generation.all()).text).toBe("ab");
  expect([generation.finishReason, generation.completionTokens]).toEqual(["length", 5]);
});

test("any text comes out as it is, in deltas that never split a character", async () => {
  const unit = fc.constantFrom("a", "é", "中", "😀", "\n", "👩‍👩‍👧");
  await fc.assert(
    fc.asyncProperty(fc.string({ unit, minLength: 1, maxLength: 20 }), async (text) => {
      let out = "";
      for await (const delta of setUp(textScript(text)).generate()) {
        expect(delta.text).not.toMatch(/\p{Surrogate}/u);
        expect(delta.text).not.toContain("\uFFFD");
        out += delta.text;
      }
      expect(out).toBe(text);
    }),
    { numRuns: 50 },
  );
});

test("a character that is cut off by the limit is shown as such", async () => {
  const { text } = await setUp(textScript("ab😀")).generate({ maxTokens: 4 }).all();
  expect(text).toBe("ab\uFFFD");
});

test("a stop string over token borders ends the text in front of it, and its tokens do not appear", async () => {
  const generation = setUp(textScript("One😀\n\nUser: no")).generate({ stop: ["\n\nUser:", "zzz"] });
  const { text, tokens } = await generation.all();
  expect(text).toBe("One😀");
  expect(fakeTokenizer.decode(tokens.map(({ token }) => token))).toBe("One😀");
  expect(generation.finishReason).toBe("stop");
});

test("what looked like a stop string comes out when it was none", async () => {
  for (const [text, maxTokens] of [
    ["a\n\nUs", 200],
    ["a\n\nUs", 5],
  ] as const) {
    const generation = setUp(textScript(text)).generate({ stop: ["\n\nUser:"], maxTokens });
    const { text: out, tokens } = await generation.all();
    expect(out).toBe(text);
    expect(tokens.length).toBe(5);
  }
});

test("a slow reader gets everything, in fewer pieces", async () => {
  const text = "x".repeat(100);
  const deltas: string[] = [];
  for await (const delta of setUp(textScript(text)).generate()) {
    deltas.push(delta.text);
    await setTimeout(5);
  }
  expect(deltas.join("")).toBe(text);
  expect(deltas.length).toBeLessThan(100);
});

test("leaving the loop cancels and frees", async () => {
  const { scheduler, generate } = setUp(textScript("x".repeat(100)), 1);
  const generation = generate();
  for await (const _ of generation) break;
  expect(generation.finishReason).toBe("cancelled");
  expect(scheduler.stats()).toMatchObject({ running: 0, kvBlocksUsed: 0 });
});

test("cancelling ends the iteration with what was certain", async () => {
  const { generate } = setUp(textScript("x".repeat(100)), 1);
  const generation = generate();
  let text = "";
  for await (const delta of generation) {
    text += delta.text;
    if (text.length >= 3) generation.cancel();
  }
  expect(text).toMatch(/^x{3,}$/);
  expect(generation.finishReason).toBe("cancelled");
});

test("an engine error comes to the reader", async () => {
  const engine = new FakeEngine(4);
  engine.failNext = new Error("device lost");
  const scheduler = new Scheduler(engine, { kvBlocks: 4, mode: "exact" });
  const generation = new Generation(scheduler, fakeTokenizer, {
    prompt: [1],
    maxTokens: 4,
    sampling: NEUTRAL_SAMPLING,
  });
  await expect(generation.all()).rejects.toThrow("device lost");
  expect(generation.finishReason).toBeUndefined();
});

test("tells its observer the pace, first and last", async () => {
  const seen: string[] = [];
  const observer = {
    token: (_seconds: number, first: boolean) => seen.push(first ? "first" : "next"),
    end: (generation: Generation) => seen.push(generation.finishReason!),
  };
  await setUp(textScript("ab")).generate({ observer }).all();
  expect(seen).toEqual(["first", "next", "next", "stop"]);
});
