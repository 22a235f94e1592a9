import { setImmediate } from "node:timers/promises";
import type { Engine, StepBatch, StepResult } from "../native/index.ts";

/** Longest step, in milliseconds, that the event loop is made to wait for. */
const SHORT = 15;

/**
 * Runs an engine's steps. Those that are expected to be short run on the JavaScript thread: handing one to another thread
 * and back is dear beside a small model's token. Between two of them the event loop gets its turn.
 */
export class Stepper {
  readonly #engine: Engine;
  readonly #clock: () => number;
  /** Milliseconds that the latest step of so many rows took, prompts left out. */
  readonly #latest = new Map<number, number>();

  /** @param clock milliseconds, by which steps are expected to be short */
  constructor(engine: Engine, clock: () => number = () => performance.now()) {
    this.#engine = engine;
    this.#clock = clock;
  }

  async step(batch: StepBatch): Promise<StepResult> {
    if (batch.prefill?.includes(1)) return this.#engine.step(batch);
    const rows = batch.tokens.length;
    const started = this.#clock();
    const result = this.#isShort(rows) ? this.#engine.stepSync(batch) : await this.#engine.step(batch);
    this.#latest.set(rows, this.#clock() - started);
    await setImmediate();
    return result;
  }

  #isShort(rows: number): boolean {
    return (this.#latest.get(rows) ?? Infinity) <= SHORT;
  }
}
