import { setImmediate } from "node:timers/promises";
import { PiError } from "../formats/errors.ts";
import { Stepper } from "../model/stepper.ts";
import { type Engine, type FfnMode, KV_BLOCK, type StepResult } from "../native/index.ts";
import { blocksFor, KvBlocks } from "./kv-blocks.ts";
import { type EndReason, type ScoredToken, Sequence, type SequenceListener, type SequenceRequest } from "./sequence.ts";
import { Speculation } from "./speculation.ts";
import { buildStep, type Chunk, type Output } from "./step-batch.ts";

/** Sequences in a step at most, unless told otherwise. */
export const DEFAULT_SEQUENCES = 16;

export interface SchedulerOptions {
  /** KV blocks the engine was opened with. */
  kvBlocks: number;
  /** How decode rows compute their FFN. */
  mode: FfnMode;
  /** Sequences in a step at most; the others wait. */
  maxSequences?: number;
  /** Rows in a step at most while nothing decodes. */
  stepRows?: number;
  /** Rows in a step at most while something decodes: what one long prompt may add to everyone's next token. */
  mixedRows?: number;
  /** Draft tokens of a sequence in a step at most; 0, the default, is no speculation. */
  maxDrafts?: number;
  /** Milliseconds, by which steps are priced; the default is `performance.now`. */
  clock?: () => number;
}

/** What the scheduler is doing, and has done since it began. */
export interface SchedulerStats {
  running: number;
  waiting: number;
  kvBlocksUsed: number;
  kvBlocks: number;
  steps: number;
  rows: number;
  stepSeconds: number;
  preemptions: number;
  /** Guessed tokens that were computed, and those of them that came true. */
  drafted: number;
  accepted: number;
}

const NO_TOP = { tokens: new Int32Array(0), logprobs: new Float32Array(0) };

/**
 * Continuous batching over one engine. Every iteration plans one step for all sequences: a row for each that decodes,
 * and what the row budget leaves in equal shares for those whose prompt is not computed yet. Sequences start in order of
 * arrival, as soon as their prompt's blocks are free. When a growing sequence finds no block, the youngest one gives
 * up its blocks and computes them again later; the oldest always gets on. A sequence may put guesses behind its last
 * token; each token that proves them right comes a step earlier, and is the one that would have come anyway.
 */
export class Scheduler {
  /** Sequences in a step at most. */
  readonly maxSequences: number;
  readonly #stepper: Stepper;
  readonly #mode: FfnMode;
  readonly #stepRows: number;
  readonly #mixedRows: number;
  readonly #blocks: KvBlocks;
  readonly #clock: () => number;
  readonly #speculation: Speculation;
  /** Both in order of arrival, and everything running arrived before everything waiting. */
  readonly #running: Sequence[] = [];
  readonly #waiting: Sequence[] = [];
  #loop: Promise<void> | undefined;
  #closed = false;
  #steps = 0;
  #rows = 0;
  #stepSeconds = 0;
  #preemptions = 0;
  #drafted = 0;
  #accepted = 0;

  constructor(engine: Engine, options: SchedulerOptions) {
    this.#mode = options.mode;
    this.maxSequences = options.maxSequences ?? DEFAULT_SEQUENCES;
    this.#stepRows = Math.max(options.stepRows ?? 512, this.maxSequences + 1);
    this.#mixedRows = Math.max(options.mixedRows ?? 64, this.maxSequences + 1);
    this.#blocks = new KvBlocks(options.kvBlocks);
    this.#speculation = new Speculation(options.maxDrafts ?? 0);
    this.#clock = options.clock ?? (() => performance.now());
    this.#stepper = new Stepper(engine, this.#clock);
  }

  stats(): SchedulerStats {
    return {
      running: this.#running.length,
      waiting: this.#waiting.length,
      kvBlocksUsed: this.#blocks.used,
      kvBlocks: this.#blocks.total,
      steps: this.#steps,
      rows: this.#rows,
      stepSeconds: this.#stepSeconds,
      preemptions: this.#preemptions,
      drafted: this.#drafted,
      accepted: this.#accepted,
    };
  }

  /**
   * Queues a sequence; `listener` hears of it from the next step on.
   * @returns what cancels it: its blocks are free when the call returns
   * @throws E_CONTEXT when it could not fit even alone
   */
  submit(request: SequenceRequest, listener: SequenceListener): () => void {
    if (this.#closed) throw new PiError("E_CLOSED", "the model is closed");
    const longest = request.prompt.length + request.maxTokens;
    const needed = blocksFor(longest);
    if (needed > this.#blocks.total) {
      const numbers = `${longest} tokens take ${needed} KV blocks, there are ${this.#blocks.total}`;
      throw new PiError(
        "E_CONTEXT",
        `prompt of ${request.prompt.length} and ${request.maxTokens} to generate: ${numbers}`,
      );
    }
    const sequence = new Sequence(request, listener);
    this.#waiting.push(sequence);
    this.#loop ??= this.#run();
    return () => this.#end(sequence, "cancelled");
  }

  /** Cancels everything and waits for the step in flight. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const sequence of [...this.#running, ...this.#waiting]) this.#end(sequence, "cancelled");
    await this.#loop;
  }

  async #run(): Promise<void> {
    await setImmediate(); // requests that came in together start together
    for (let chunks = this.#plan(); chunks.length > 0; chunks = this.#plan()) await this.#step(chunks);
    this.#loop = undefined;
  }

  /** Chooses the rows of the next step and sees to it that they have blocks. */
  #plan(): Chunk[] {
    this.#admit();
    const chunks: Chunk[] = [];
    // Taking blocks removes sequences from the end of #running only, so `at` stays right.
    for (let at = 0; at < this.#running.length; at++) {
      const sequence = this.#running[at]!;
      if (sequence.isDecoding && this.#growTo(sequence, sequence.length)) chunks.push({ sequence, rows: 1 });
    }
    const prefilling = this.#running.filter((sequence) => !sequence.isDecoding);
    prefilling.sort((a, b) => a.pending - b.pending);
    let left = (chunks.length > 0 ? this.#mixedRows : this.#stepRows) - chunks.length;
    prefilling.forEach((sequence, i) => {
      const rows = Math.min(sequence.pending, Math.ceil(left / (prefilling.length - i)));
      left -= rows;
      if (rows > 0) chunks.push({ sequence, rows });
    });
    if (chunks.length > 0 && prefilling.length === 0) this.#addDrafts(chunks.map(({ sequence }) => sequence));
    return chunks;
  }

  /** Puts guesses behind the last tokens of decoding sequences, where blocks are free that nobody will soon need. */
  #addDrafts(sequences: readonly Sequence[]): void {
    const planned = this.#speculation.plan(sequences);
    sequences.forEach((sequence, i) => {
      const wanted = sequence.length + planned[i]!;
      while (sequence.blocks.length < blocksFor(wanted) && this.#blocks.available > this.#running.length) {
        sequence.blocks.push(this.#blocks.take()!);
      }
      sequence.drafts = Math.min(wanted, sequence.blocks.length * KV_BLOCK) - sequence.length;
      sequence.lookup?.draft(sequence.drafts);
    });
  }

  /** Starts waiting sequences while there are blocks for all they have, and one to spare for each that runs. */
  #admit(): void {
    while (this.#waiting.length > 0 && this.#running.length < this.maxSequences) {
      const next = this.#waiting[0]!;
      if (blocksFor(next.length) + this.#running.length > this.#blocks.available) return;
      this.#waiting.shift();
      this.#running.push(next);
      this.#growTo(next, next.length);
    }
  }

  /** Blocks for `tokens` positions, at the cost of the youngest sequences; false when that is `sequence` itself. */
  #growTo(sequence: Sequence, tokens: number): boolean {
    while (sequence.blocks.length < blocksFor(tokens)) {
      const block = this.#blocks.take();
      if (block !== undefined) {
        sequence.blocks.push(block);
        continue;
      }
      const youngest = this.#running.pop()!;
      this.#blocks.giveBack(youngest.blocks);
      youngest.computed = 0;
      this.#waiting.unshift(youngest);
      this.#preemptions++;
      if (youngest === sequence) return false;
    }
    return true;
  }

  async #step(chunks: readonly Chunk[]): Promise<void> {
    const { batch, outputs } = buildStep(chunks, this.#mode);
    const started = this.#clock();
    let result: StepResult;
    try {
      result = await this.#stepper.step(batch);
    } catch (error) {
      for (const { sequence } of chunks) this.#end(sequence, error as Error);
      return;
    }
    this.#steps++;
    this.#rows += batch.tokens.length;
    const seconds = (this.#clock() - started) / 1000;
    this.#stepSeconds += seconds;
    if (chunks.every(({ sequence }) => sequence.isDecoding)) {
      this.#speculation.observe(chunks.length, batch.tokens.length - chunks.length, seconds);
    }
    for (const { sequence, rows } of chunks) {
      sequence.computed += rows;
      this.#drafted += sequence.drafts;
    }
    outputs.forEach((output, i) => this.#deliver(output, result, i));
    for (const { sequence } of chunks) {
      if (sequence.request.maxTokens === 0 && sequence.pending === 0) this.#end(sequence, "length");
    }
  }

  /**
   * Hands output `i` of a step to its sequence's listener, unless its row followed a guess that did not come true. A
   * listener that throws ends its own sequence only.
   */
  #deliver({ sequence, position, kind }: Output, result: StepResult, i: number): void {
    if (sequence.ended || position >= sequence.computed) return;
    const scored = { token: result.tokens![i]!, logprob: result.logprobs![i]!, top: result.top?.[i] ?? NO_TOP };
    try {
      if (kind === "score") {
        sequence.scored++;
        sequence.listener.prompt(scored);
        return;
      }
      this.#append(sequence, scored);
      if (!sequence.listener.token(scored)) this.#end(sequence, "stop");
      else if (sequence.length === sequence.tokens.length) this.#end(sequence, "length");
    } catch (error) {
      this.#end(sequence, error as Error);
    }
  }

  /** Adds the next token. Where it is the one that was guessed, its row is computed already. */
  #append(sequence: Sequence, { token }: ScoredToken): void {
    if (sequence.drafts > 0 && sequence.tokens[sequence.length] === token) {
      sequence.drafts--;
      sequence.computed++;
      this.#accepted++;
    } else {
      sequence.drafts = 0;
    }
    sequence.tokens[sequence.length++] = token;
  }

  #end(sequence: Sequence, outcome: EndReason | Error): void {
    if (sequence.ended) return;
    sequence.ended = true;
    for (const list of [this.#running, this.#waiting]) {
      const at = list.indexOf(sequence);
      if (at >= 0) list.splice(at, 1);
    }
    this.#blocks.giveBack(sequence.blocks);
    sequence.listener.end(outcome);
  }
}
