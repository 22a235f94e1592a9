import fc from "fast-check";
import { setImmediate, setTimeout } from "node:timers/promises";
import { expect, test } from "vitest";
import { FFN_MODE } from "../../native/index.ts";
import { NEUTRAL_SAMPLING } from "../../runtime/sampling.ts";
import { Scheduler, type SchedulerOptions } from "../../runtime/scheduler.ts";
import type { EndReason, SequenceRequest } from "../../runtime/sequence.ts";
import { MAX_ROWS } from "../../runtime/speculation.ts";
import { FakeEngine, fakeLogprob, hashScript, loopScript, type Script } from "./fake-engine.ts";

interface Job {
  prompt: number[];
  maxTokens: number;
  seed: number;
  scorePrompt: boolean;
}

function request({ prompt, maxTokens, seed, scorePrompt }: Job): SequenceRequest {
  const sampling = { ...NEUTRAL_SAMPLING, presencePenalty: 1, seed };
  return { prompt, maxTokens, sampling, topLogprobs: 1, scorePrompt };
}

/** What a job generates alone: prompt rows dense, output rows exact. */
function reference({ prompt, maxTokens, seed }: Job, script: Script = hashScript): number[] {
  const history = prompt.map((token) => token * 4 + FFN_MODE.dense);
  const output: number[] = [];
  while (output.length < maxTokens) {
    const token = script(history, { seed } as never);
    output.push(token);
    history.push(token * 4 + FFN_MODE.exact);
  }
  return output;
}

interface Record {
  output: number[];
  scores: number[];
  outcome: EndReason | Error | undefined;
  cancel: () => void;
  done: Promise<void>;
}

function start(scheduler: Scheduler, job: Job, stopAfter = Infinity): Record {
  let resolve = () => {};
  const done = new Promise<void>((settle) => (resolve = settle));
  const record: Record = { output: [], scores: [], outcome: undefined, cancel: () => undefined, done };
  record.cancel = scheduler.submit(request(job), {
    prompt: (score) => record.scores.push(score.token),
    token: ({ token }) => record.output.push(token) < stopAfter,
    end: (outcome) => {
      expect(record.outcome).toBeUndefined();
      record.outcome = outcome;
      resolve();
    },
  });
  return record;
}

/** Up to 100 prompt and 120 output tokens: 7 blocks. */
const job = fc.record({
  prompt: fc.tuple(fc.integer({ min: 1, max: 100 }), fc.nat(255)).map(([length, salt]) => text(length, salt)),
  maxTokens: fc.integer({ min: 0, max: 120 }),
  seed: fc.nat(1000),
  scorePrompt: fc.boolean(),
});

function text(length: number, salt: number): number[] {
  return Array.from({ length }, (_, i) => (i * 31 + salt) % 256);
}

test("outputs do not depend on batch, budgets, drafts, preemption or cancelled neighbours, and no block leaks", async () => {
  const jobs = fc.array(
    fc.record({ job, arrival: fc.nat(40), fate: fc.constantFrom("end", "end", "cancel", "stop") }),
    {
      minLength: 1,
      maxLength: 12,
    },
  );
  const options = fc.record({
    kvBlocks: fc.integer({ min: 7, max: 14 }),
    maxSequences: fc.integer({ min: 1, max: 8 }),
    stepRows: fc.integer({ min: 1, max: 200 }),
    mixedRows: fc.integer({ min: 1, max: 50 }),
    maxDrafts: fc.nat(8),
  });
  const scripts = fc.constantFrom(hashScript, loopScript);
  await fc.assert(
    fc.asyncProperty(jobs, options, scripts, async (plan, settings, script) => {
      const engine = new FakeEngine(settings.kvBlocks, script);
      const scheduler = new Scheduler(engine, { mode: "exact", ...settings });
      const records: Record[] = [];
      for (const { job: each, fate, arrival } of plan.toSorted((a, b) => a.arrival - b.arrival)) {
        for (const before = engine.steps.length + (arrival % 3); engine.steps.length < before;) {
          if (scheduler.stats().running === 0) break;
          await setImmediate();
        }
        const record = start(scheduler, each, fate === "stop" ? 5 : Infinity);
        if (fate === "cancel") void setTimeout(arrival % 4).then(record.cancel);
        records.push(record);
      }
      await Promise.all(records.map((record) => record.done));
      plan
        .toSorted((a, b) => a.arrival - b.arrival)
        .forEach(({ job: each, fate }, i) => {
          const { output, scores, outcome } = records[i]!;
          const whole = reference(each, script);
          expect(output).toEqual(whole.slice(0, output.length));
          if (fate === "end") expect([outcome, output.length]).toEqual(["length", whole.length]);
          if (fate === "stop" && whole.length > 5) expect([outcome, output.length]).toEqual(["stop", 5]);
          if (each.scorePrompt && outcome !== "cancelled") expect(scores).toEqual(each.prompt.slice(1));
        });
      checkSteps(engine, settings);
      const stats = scheduler.stats();
      expect([stats.running, stats.waiting, stats.kvBlocksUsed]).toEqual([0, 0, 0]);
      await scheduler.close();
    }),
    { numRuns: 100 },
  );
});

function checkSteps(engine: FakeEngine, options: Required<Omit<SchedulerOptions, "mode" | "clock">>): void {
  for (const { tokens, sequences, modes } of engine.steps) {
    expect(new Set(sequences).size).toBeLessThanOrEqual(options.maxSequences);
    const limit = modes.includes(FFN_MODE.exact) ? Math.max(options.mixedRows, options.stepRows) : options.stepRows;
    const drafting = options.maxDrafts > 0 ? MAX_ROWS : 0;
    expect(tokens.length).toBeLessThanOrEqual(Math.max(limit, options.maxSequences + 1, drafting));
  }
}

test("the youngest sequence makes room and comes back with the same tokens and scores", async () => {
  const scheduler = new Scheduler(new FakeEngine(8), { kvBlocks: 8, mode: "exact", stepRows: 16, mixedRows: 16 });
  const jobs = [1, 2, 3].map((seed) => ({ prompt: text(40, seed), maxTokens: 120, seed, scorePrompt: true }));
  const records = jobs.map((each) => start(scheduler, each));
  const finished: number[] = [];
  await Promise.all(records.map((record, i) => record.done.then(() => finished.push(i))));
  expect(scheduler.stats().preemptions).toBeGreaterThan(0);
  expect(finished).toEqual([0, 1, 2]);
  expect(records.map((record) => record.output)).toEqual(jobs.map((each) => reference(each)));
  expect(records.map((record) => record.scores)).toEqual(jobs.map((each) => each.prompt.slice(1)));
});

test("a long prompt does not stop others from decoding", async () => {
  const engine = new FakeEngine(64);
  const scheduler = new Scheduler(engine, { kvBlocks: 64, mode: "exact", mixedRows: 16, stepRows: 16 });
  const short = start(scheduler, { prompt: [1, 2], maxTokens: 40, seed: 0, scorePrompt: false });
  while (short.output.length < 3) await setImmediate();
  const long = start(scheduler, { prompt: Array(300).fill(7), maxTokens: 1, seed: 0, scorePrompt: false });
  const before = short.output.length;
  await long.done;
  expect(short.output.length - before).toBeGreaterThanOrEqual(300 / 16);
  short.cancel();
  await scheduler.close();
});

test("a short prompt does not wait for a long one before it", async () => {
  const scheduler = new Scheduler(new FakeEngine(64), { kvBlocks: 64, mode: "exact", stepRows: 16, mixedRows: 16 });
  const long = start(scheduler, { prompt: Array(400).fill(7), maxTokens: 1, seed: 0, scorePrompt: false });
  const short = start(scheduler, { prompt: [1, 2, 3], maxTokens: 1, seed: 0, scorePrompt: false });
  await short.done;
  expect(long.outcome).toBeUndefined();
  await long.done;
  await scheduler.close();
});

test("what can never fit is refused with numbers, before it takes anything", () => {
  const scheduler = new Scheduler(new FakeEngine(4), { kvBlocks: 4, mode: "exact" });
  const submit = () => start(scheduler, { prompt: Array(100).fill(1), maxTokens: 29, seed: 0, scorePrompt: false });
  expect(submit).toThrow("prompt of 100 and 29 to generate: 129 tokens take 5 KV blocks, there are 4");
  expect(scheduler.stats().waiting).toBe(0);
});

test("cancelling frees blocks at once: waiting, in prefill and while decoding", async () => {
  const engine = new FakeEngine(16, hashScript, 5);
  const scheduler = new Scheduler(engine, { kvBlocks: 16, mode: "exact", maxSequences: 2, stepRows: 8, mixedRows: 8 });
  const decoding = start(scheduler, { prompt: [1], maxTokens: 100, seed: 0, scorePrompt: false });
  while (decoding.output.length < 2) await setTimeout(1);
  const prefilling = start(scheduler, { prompt: Array(200).fill(1), maxTokens: 9, seed: 0, scorePrompt: false });
  const waiting = start(scheduler, { prompt: [1], maxTokens: 9, seed: 0, scorePrompt: false });
  const steps = engine.steps.length;
  while (engine.steps.length < steps + 2) await setTimeout(1);
  expect(scheduler.stats()).toMatchObject({ running: 2, waiting: 1, kvBlocksUsed: 8 });
  waiting.cancel();
  expect(scheduler.stats().waiting).toBe(0);
  prefilling.cancel();
  expect(scheduler.stats()).toMatchObject({ running: 1, kvBlocksUsed: 1 });
  decoding.cancel();
  decoding.cancel();
  expect(scheduler.stats()).toMatchObject({ running: 0, kvBlocksUsed: 0 });
  await scheduler.close();
  expect([decoding.outcome, prefilling.outcome, waiting.outcome]).toEqual(["cancelled", "cancelled", "cancelled"]);
});

test("a failed step fails its sequences, and the next ones work", async () => {
  const engine = new FakeEngine(16);
  const scheduler = new Scheduler(engine, { kvBlocks: 16, mode: "exact" });
  engine.failNext = new Error("device lost");
  const jobs = [1, 2].map((seed) => ({ prompt: [1, 2, 3], maxTokens: 4, seed, scorePrompt: false }));
  const failed = jobs.map((each) => start(scheduler, each));
  await Promise.all(failed.map((each) => each.done));
  expect(failed.map((each) => String(each.outcome))).toEqual(["Error: device lost", "Error: device lost"]);
  expect(scheduler.stats().kvBlocksUsed).toBe(0);
  const next = start(scheduler, jobs[0]!);
  await next.done;
  expect(next.output).toEqual(reference(jobs[0]!));
});

test("a listener that throws ends its own sequence only", async () => {
  const scheduler = new Scheduler(new FakeEngine(16), { kvBlocks: 16, mode: "exact" });
  let outcome: unknown;
  scheduler.submit(request({ prompt: [5], maxTokens: 9, seed: 0, scorePrompt: false }), {
    prompt: () => undefined,
    token: () => {
      throw new Error("no room for text");
    },
    end: (reason) => (outcome = reason),
  });
  const other = start(scheduler, { prompt: [6], maxTokens: 9, seed: 0, scorePrompt: false });
  await other.done;
  expect(String(outcome)).toBe("Error: no room for text");
  expect(other.outcome).toBe("length");
  expect(scheduler.stats().kvBlocksUsed).toBe(0);
});

test("modes: prompts dense, output in the model's mode, scored prompts as the model decodes", async () => {
  const engine = new FakeEngine(16);
  const scheduler = new Scheduler(engine, { kvBlocks: 16, mode: "predictor" });
  await start(scheduler, { prompt: [1, 2], maxTokens: 2, seed: 0, scorePrompt: false }).done;
  await start(scheduler, { prompt: [1, 2], maxTokens: 2, seed: 0, scorePrompt: true }).done;
  const { dense, predictor } = FFN_MODE;
  expect(engine.steps.map((step) => Array.from(step.modes))).toEqual([
    [dense, dense],
    [predictor],
    [predictor, predictor],
    [predictor],
  ]);
  expect(engine.steps.map((step) => Array.from(step.prefill!))).toEqual([[1, 1], [0], [0, 0], [0]]);
});

test("scores carry the probability of the prompt's own tokens", async () => {
  const scheduler = new Scheduler(new FakeEngine(16), { kvBlocks: 16, mode: "dense" });
  const scores: [number, number][] = [];
  await new Promise<void>((resolve) => {
    scheduler.submit(request({ prompt: [9, 8, 7], maxTokens: 0, seed: 0, scorePrompt: true }), {
      prompt: ({ token, logprob }) => scores.push([token, logprob]),
      token: () => true,
      end: () => resolve(),
    });
  });
  expect(scores).toEqual([8, 7].map((token) => [token, Math.fround(fakeLogprob(token, 0))]));
});

test("guesses that come true save steps, never change a token, and end where the sequence ends", async () => {
  const each = { prompt: [1, 2], maxTokens: 200, seed: 3, scorePrompt: false };
  const whole = reference(each, loopScript);
  for (const stopAfter of [Infinity, 100, 101, 102, 103, 104, 105]) {
    const engine = new FakeEngine(16, loopScript);
    let now = 0;
    const clock = () => now++; // a step takes a millisecond, however many rows it has
    const scheduler = new Scheduler(engine, { kvBlocks: 16, mode: "exact", maxDrafts: 8, clock });
    const record = start(scheduler, each, stopAfter);
    await record.done;
    expect(record.output).toEqual(whole.slice(0, stopAfter));
    const { steps, drafted, accepted, rows } = scheduler.stats();
    expect(accepted).toBeGreaterThan(40);
    expect(drafted).toBeGreaterThanOrEqual(accepted);
    expect(rows).toBe(each.prompt.length + steps - 1 + drafted);
    if (stopAfter === Infinity) expect(steps + accepted).toBe(whole.length);
  }
});
