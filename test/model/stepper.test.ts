import { expect, test } from "vitest";
import { Stepper } from "../../model/stepper.ts";
import type { Engine, StepBatch, StepResult } from "../../native/index.ts";

/** An engine that says how it was called, on a clock that every step moves by `duration` milliseconds. */
function setUp() {
  const calls: string[] = [];
  const state = { now: 0, duration: 5 };
  const run = (how: string): StepResult => {
    calls.push(how);
    state.now += state.duration;
    return {};
  };
  const engine = {
    step: () => Promise.resolve(run("thread")),
    stepSync: () => run("here"),
  } as unknown as Engine;
  return { calls, state, stepper: new Stepper(engine, () => state.now) };
}

const batch = (rows: number, prefill?: Uint8Array) =>
  ({ tokens: new Int32Array(rows), ...(prefill && { prefill }) }) as StepBatch;

test("a step runs on the event loop's thread once one of as many rows was short", async () => {
  const { calls, stepper } = setUp();
  for (const rows of [1, 1, 2, 1, 2]) await stepper.step(batch(rows));
  expect(calls).toEqual(["thread", "here", "thread", "here", "here"]);
});

test("a step that took long sends the next one to the other thread, until it is short again", async () => {
  const { calls, state, stepper } = setUp();
  for (const duration of [5, 16, 16, 15, 15]) {
    state.duration = duration;
    await stepper.step(batch(1));
  }
  expect(calls).toEqual(["thread", "here", "thread", "thread", "here"]);
});

test("prompts never hold the event loop up, and say nothing about decoding", async () => {
  const { calls, stepper } = setUp();
  for (let i = 0; i < 2; i++) await stepper.step(batch(2, Uint8Array.of(0, 1)));
  await stepper.step(batch(2, Uint8Array.of(0, 0)));
  expect(calls).toEqual(["thread", "thread", "thread"]);
});

test("timers and requests get their turn between short steps", async () => {
  const { stepper } = setUp();
  let turns = 0;
  const count = () => {
    turns++;
    if (turns < 100) setImmediate(count);
  };
  setImmediate(count);
  for (let i = 0; i < 10; i++) await stepper.step(batch(1));
  expect(turns).toBeGreaterThanOrEqual(9);
});

test("an error of a short step is the step's", async () => {
  const engine = {
    step: () => Promise.resolve({}),
    stepSync: () => {
      throw new Error("device lost");
    },
  } as unknown as Engine;
  const stepper = new Stepper(engine, () => 0);
  await stepper.step(batch(1));
  await expect(stepper.step(batch(1))).rejects.toThrow("device lost");
});
