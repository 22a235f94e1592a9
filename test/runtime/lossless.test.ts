/** Guessing ahead changes nothing but speed: the real engine says the same with and without, to the bit of its scores. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { convert } from "../../convert/convert.ts";
import { silentContext } from "../../io/progress.ts";
import type { Generation } from "../../runtime/generate.ts";
import { loadSession } from "../../runtime/load.ts";
import type { SamplingOptions } from "../../runtime/sampling.ts";
import type { Session } from "../../runtime/session.ts";
import { writeRandomPredictors } from "../model/random-predictors.ts";

const DEMO = fileURLToPath(new URL("../../examples/pi-tale-7m", import.meta.url));
const CONTEXT = 512;

const REPETITIVE = "One for the king, two for the queen. ".repeat(6);
const PROSE = "The old captain looked out over the sea, and";

const GREEDY = { temperature: 0 };
const SAMPLED = { temperature: 0.8, topP: 0.95, seed: 7 };
const PENALISED = { ...SAMPLED, repetitionPenalty: 1.2, presencePenalty: 0.3, frequencyPenalty: 0.4 };

describe.each([
  ["f16", "exact"],
  ["q8_0", "dense"],
  ["q4_0", "exact"],
  ["q8_0", "predictor"],
] as const)("%s, %s", (dtype, mode) => {
  let dir: string;
  let plain: Session;
  let guessing: Session;

  beforeAll(async () => {
    dir = await mkdtemp(join(tmpdir(), "pi-lossless-"));
    await convert({ source: DEMO, output: dir, dtype }, silentContext);
    const predictors = mode === "predictor" ? { predictors: await writeRandomPredictors(dir, 32) } : {};
    const options = { threads: 2, contextTokens: CONTEXT, maxSequences: 4, mode, ...predictors };
    plain = await loadSession(dir, options);
    guessing = await loadSession(dir, { ...options, maxDrafts: 8 });
  });
  afterAll(async () => {
    await Promise.all([plain.close(), guessing.close()]);
    await rm(dir, { recursive: true });
  });

  function start(session: Session, text: string, options: SamplingOptions, maxTokens: number): Generation {
    const prompt = session.model.tokenizer.encode(text);
    const sampling = session.sampling(options);
    return session.generate({ prompt, maxTokens, sampling, topLogprobs: 3, ignoreEos: true });
  }

  /** Everything that a client can see of a generation. */
  async function seen(generation: Generation) {
    const { text, tokens } = await generation.all();
    return { text, tokens, count: generation.completionTokens, reason: generation.finishReason };
  }

  test.each([
    ["greedy", REPETITIVE, GREEDY],
    ["greedy", PROSE, GREEDY],
    ["sampled", REPETITIVE, SAMPLED],
    ["sampled", PROSE, SAMPLED],
    ["penalised", REPETITIVE, PENALISED],
    ["penalised", PROSE, PENALISED],
  ] as const)("%s: %s", async (_name, text, options) => {
    const expected = await seen(start(plain, text, options, 150));
    expect(await seen(start(guessing, text, options, 150))).toEqual(expected);
  });

  test("in company, up to the end of the context, and beside one that is cancelled", async () => {
    const jobs = [REPETITIVE, PROSE].map((text) => [text, GREEDY, 150] as const);
    const expected = await Promise.all(jobs.map((job) => seen(start(plain, ...job))));
    const cancelled = start(guessing, REPETITIVE, GREEDY, 150);
    const together = jobs.map((job) => seen(start(guessing, ...job)));
    for await (const { text } of cancelled) if (text !== "") break;
    expect(await Promise.all(together)).toEqual(expected);
    expect(cancelled.finishReason).toBe("cancelled");
    const room = CONTEXT - plain.model.tokenizer.encode(REPETITIVE).length;
    const whole = await seen(start(plain, REPETITIVE, GREEDY, room));
    expect(whole).toMatchObject({ count: room, reason: "length" });
    expect(await seen(start(guessing, REPETITIVE, GREEDY, room))).toEqual(whole);
  });

  test("and guesses did come true", () => {
    const { drafted, accepted, kvBlocksUsed } = guessing.scheduler.stats();
    expect(accepted).toBeGreaterThan(0);
    expect(drafted).toBeGreaterThanOrEqual(accepted);
    expect(kvBlocksUsed).toBe(0);
    expect(plain.scheduler.stats()).toMatchObject({ drafted: 0, accepted: 0 });
  });
});
