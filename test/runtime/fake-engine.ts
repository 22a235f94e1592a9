import { setImmediate, setTimeout } from "node:timers/promises";
import type { ModelConfig } from "../../model/config.ts";
import type { DeviceUse } from "../../model/device.ts";
import type { OpenModel } from "../../model/open.ts";
import type { Tokenizer } from "../../model/tokenizer.ts";
import { type Choice, type Engine, FFN_MODE, KV_BLOCK, type StepBatch, type StepResult } from "../../native/index.ts";
import type { RuntimeModel } from "../../runtime/session.ts";

export const BOS = 256;
export const EOS = 257;
const VOCAB = 258;

/** Chooses the next token of a sequence from everything that is in its KV cache, token * 4 + mode of each row. */
export type Script = (history: readonly number[], choice: Choice) => number;

/** A byte that depends on every token and mode before it, and on the seed. */
export const hashScript: Script = (history, choice) => {
  let hash = 2166136261 ^ choice.seed;
  for (const value of history) hash = Math.imul(hash ^ value, 16777619);
  return (hash >>> 8) % 256;
};

/** One of four letters that depends on the two tokens before and the seed: sooner or later a loop. */
export const loopScript: Script = (history, choice) => 97 + (hashScript(history.slice(-2), choice) % 4);

/** Continues every prompt with `text`, then ends. */
export function textScript(text: string): Script {
  const bytes = [...new TextEncoder().encode(text)];
  return (history) => bytes[history.length - promptLength(history)] ?? EOS;
}

/** Only prompts hold BOS, at the start; rows of the output are not dense. The text scripts run in mode exact. */
function promptLength(history: readonly number[]): number {
  const output = history.findIndex((value) => value % 4 !== FFN_MODE.dense);
  return output < 0 ? history.length : output;
}

/**
 * An engine that remembers tokens where the real one keeps keys and values, so that a wrong block table, a block with
 * two owners or a position out of order changes what it generates. Refuses batches that the real one may not be given.
 */
export class FakeEngine implements Engine {
  readonly #script: Script;
  readonly #cells: Int32Array;
  readonly #delayMs: number;
  steps: StepBatch[] = [];
  closed = false;
  failNext: Error | undefined;

  constructor(kvBlocks: number, script: Script = hashScript, delayMs = 0) {
    this.#script = script;
    this.#cells = new Int32Array(kvBlocks * KV_BLOCK).fill(-1);
    this.#delayMs = delayMs;
  }

  async step(batch: StepBatch): Promise<StepResult> {
    const result = this.#compute(batch);
    await (this.#delayMs > 0 ? setTimeout(this.#delayMs) : setImmediate());
    this.#failIfAsked();
    return result;
  }

  stepSync(batch: StepBatch): StepResult {
    const result = this.#compute(batch);
    if (this.#delayMs > 0) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, this.#delayMs);
    this.#failIfAsked();
    return result;
  }

  #compute(batch: StepBatch): StepResult {
    if (this.closed) throw new Error("step after close");
    this.steps.push(batch);
    this.#checkTables(batch);
    batch.tokens.forEach((_, row) => this.#write(batch, row));
    const choices = batch.choose ?? [];
    const tokens = Int32Array.from(batch.outputs, (row, i) => this.#choose(batch, row, choices[i]!));
    return {
      tokens,
      logprobs: Float32Array.from(tokens, (token) => fakeLogprob(token, 0)),
      top: choices.map((choice, i) => ({
        tokens: Int32Array.from({ length: choice.topLogprobs }, (_, k) => (tokens[i]! + k) % VOCAB),
        logprobs: Float32Array.from({ length: choice.topLogprobs }, (_, k) => fakeLogprob(tokens[i]!, k)),
      })),
    };
  }

  #failIfAsked(): void {
    const error = this.failNext;
    this.failNext = undefined;
    if (error !== undefined) throw error;
  }

  #checkTables({ blockTables, sequences }: StepBatch): void {
    const used = blockTables.filter((block) => block >= 0);
    if (new Set(used).size !== used.length) throw new Error("a KV block belongs to two sequences");
    if (sequences.length === 0) throw new Error("empty step");
  }

  #cell({ blockTables, blocksPerSequence, sequences }: StepBatch, row: number, position: number): number {
    const block = blockTables[sequences[row]! * blocksPerSequence + Math.floor(position / KV_BLOCK)];
    if (block === undefined || block < 0) throw new Error(`no KV block for position ${position}`);
    return block * KV_BLOCK + (position % KV_BLOCK);
  }

  #write(batch: StepBatch, row: number): void {
    const token = batch.tokens[row]!;
    if (token < 0 || token >= VOCAB) throw new Error(`token ${token} outside the vocabulary`);
    this.#cells[this.#cell(batch, row, batch.positions[row]!)] = token * 4 + batch.modes[row]!;
  }

  #choose(batch: StepBatch, row: number, choice: Choice): number {
    if (choice.target >= 0) return choice.target;
    const history = Array.from(
      { length: batch.positions[row]! + 1 },
      (_, position) => this.#cells[this.#cell(batch, row, position)]!,
    );
    const seen = history.map((value) => value >> 2);
    if (choice.history.length > 0 && `${choice.history}` !== `${seen}`)
      throw new Error("penalties look at other tokens");
    return this.#script(history, choice);
  }

  setThreads(): void {}
  setThresholds(): void {}
  setProfiling(): void {}
  setRecallTracking(): void {}
  resetStats(): void {}
  setTracing(): void {}
  trace(): [] {
    return [];
  }
  activationCounts(): never {
    throw new Error("not profiled");
  }
  stats(): never {
    throw new Error("no stats");
  }
  allocatedBytes(): number {
    return this.#cells.byteLength;
  }
  close(): void {
    this.closed = true;
  }
}

/** Log probability the fake gives the token `rank` places after the chosen one. */
export function fakeLogprob(token: number, rank: number): number {
  return -(1 + (token % 7)) / 8 - rank;
}

/** Bytes are tokens; `<s>` and `</s>` are the special ones. */
export const fakeTokenizer: Tokenizer = {
  encode(text, { addSpecialTokens = true, parseSpecial = true } = {}) {
    const parts = parseSpecial ? text.split(/(<\/?s>)/) : [text];
    const ids = parts.flatMap((part, i) =>
      parseSpecial && i % 2 === 1 ? [part === "<s>" ? BOS : EOS] : Array.from(new TextEncoder().encode(part)),
    );
    return addSpecialTokens ? [BOS, ...ids] : ids;
  },
  decode(ids, { skipSpecialTokens = true } = {}) {
    const special = (id: number) => (id === BOS ? "<s>" : "</s>");
    let text = "";
    let bytes: number[] = [];
    for (const id of [...ids, -1]) {
      if (id >= 0 && id < 256) {
        bytes.push(id);
        continue;
      }
      text += new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
      bytes = [];
      if (id >= 256 && !skipSpecialTokens) text += special(id);
    }
    return text;
  },
  tokenText(id) {
    return fakeTokenizer.decode([id], { skipSpecialTokens: false });
  },
  vocabSize: VOCAB,
  bosToken: BOS,
  eosTokens: [EOS],
};

const TEMPLATE =
  "{{ bos_token }}{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}" +
  "{% if add_generation_prompt %}[assistant]{% endif %}";

export interface FakeOptions {
  script?: Script;
  kvBlocks?: number;
  context?: number;
  delayMs?: number;
  vocabSize?: number;
  device?: DeviceUse;
}

/** A model around a fake engine; `context` is in tokens, `kvBlocks` of cache for all sequences. */
export function fakeModel(options: FakeOptions = {}) {
  const { script = hashScript, kvBlocks = 64, context = 512, delayMs = 0, vocabSize = VOCAB, device = {} } = options;
  const engine = new FakeEngine(kvBlocks, script, delayMs);
  const config = { maxPositions: context, vocabSize, eosTokens: [EOS] } as unknown as ModelConfig;
  const open = {
    file: { metadata: {}, dtype: "f16" },
    config,
    engine,
    hasPredictors: false,
    name: "fake",
    defaultMode: "exact",
    kvTokens: kvBlocks * KV_BLOCK,
    device,
    textFile: () => Promise.resolve(undefined),
    close: () => engine.close(),
  } as unknown as OpenModel;
  const model: RuntimeModel = {
    open,
    artifact: undefined,
    name: "fake",
    mode: "exact",
    tokenizer: fakeTokenizer,
    specialTokens: ["<s>", "</s>"],
    chatTemplate: TEMPLATE,
    samplingDefaults: {},
    stopTokens: new Set([EOS]),
  };
  return { model, engine };
}
