/** The engine computes what Hugging Face transformers computes (test/fixtures/make.py), and nothing but the rows' own tokens matters. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import * as fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { convert } from "../../convert/convert.ts";
import { silentContext } from "../../io/progress.ts";
import { readSafetensors, readTensorBytes } from "../../io/safetensors-file.ts";
import { GREEDY_CHOICE } from "../../model/neutral-choice.ts";
import { openModel, type OpenModel } from "../../model/open.ts";
import { FFN_MODE, KV_BLOCK, type FfnMode } from "../../native/index.ts";

const ARCHITECTURES = ["opt", "llama-relu", "llama-silu", "mistral", "falcon-7b", "falcon-40b", "bamboo"];
const FIXTURES = fileURLToPath(new URL("../fixtures", import.meta.url));
const SEQUENCES = 3;
/** Blocks of the longest run: 40 tokens of prompt, 64 generated. */
const BLOCKS = Math.ceil((40 + 64) / KV_BLOCK);

/** One token to compute. */
interface Row {
  sequence: number;
  position: number;
  token: number;
  mode: FfnMode;
}

/** Sequence s owns every SEQUENCES-th block, so that no sequence lies in one piece. */
const BLOCK_TABLES = Int32Array.from({ length: SEQUENCES * BLOCKS }, (_, i) => {
  const [sequence, block] = [Math.floor(i / BLOCKS), i % BLOCKS];
  return block * SEQUENCES + sequence;
});

/** Computes rows in one step and chooses greedily after each: logits [rows, vocab] and tokens [rows]. */
async function step(model: OpenModel, rows: readonly Row[]): Promise<{ logits: Float32Array; tokens: Int32Array }> {
  const result = await model.engine.step({
    tokens: Int32Array.from(rows, (row) => row.token),
    positions: Int32Array.from(rows, (row) => row.position),
    sequences: Int32Array.from(rows, (row) => row.sequence),
    blockTables: BLOCK_TABLES,
    blocksPerSequence: BLOCKS,
    modes: Uint8Array.from(rows, (row) => FFN_MODE[row.mode]),
    outputs: Int32Array.from(rows.keys()),
    returnLogits: true,
    choose: rows.map(() => GREEDY_CHOICE),
  });
  return { logits: result.logits!, tokens: result.tokens! };
}

const rowsOf = (ids: ArrayLike<number>, mode: FfnMode, sequence = 0): Row[] =>
  Array.from(ids, (token, position) => ({ sequence, position, token, mode }));

/** Logits of a sequence that is computed alone and token by token, one entry a position. */
async function oneByOne(model: OpenModel, rows: readonly Row[]): Promise<Float32Array[]> {
  const logits: Float32Array[] = [];
  for (const row of rows) logits.push((await step(model, [row])).logits);
  return logits;
}

/** Continues `ids` by `count` most likely tokens, token by token. */
async function generate(model: OpenModel, ids: Int32Array, count: number, mode: FfnMode): Promise<number[]> {
  let next = (await step(model, rowsOf(ids, mode))).tokens.at(-1)!;
  const generated = [next];
  while (generated.length < count) {
    const row = { sequence: 0, position: ids.length + generated.length - 1, token: next, mode };
    next = (await step(model, [row])).tokens[0]!;
    generated.push(next);
  }
  return generated;
}

/** Bits, not values: -0 and 0 differ. */
const bits = (values: Float32Array) => Buffer.from(values.buffer, values.byteOffset, values.byteLength).toString("hex");

async function readReference(name: string) {
  const file = await readSafetensors(join(FIXTURES, name, "reference.safetensors"));
  const read = async (tensor: string) => Uint8Array.from(await readTensorBytes(file, tensor)).buffer;
  return {
    ids: new Int32Array(await read("ids")),
    logits: new Float32Array(await read("logits")),
    greedy: [...new Int32Array(await read("greedy"))],
  };
}

let root: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "pi-faithful-"));
});
afterAll(() => rm(root, { recursive: true }));

/** Converts a fixture to f32 and returns the working directory. */
async function converted(name: string): Promise<string> {
  const output = join(root, name);
  await convert({ source: join(FIXTURES, name), output, dtype: "f32" }, silentContext);
  return output;
}

describe.each(ARCHITECTURES)("%s", (name) => {
  let model: OpenModel;
  let reference: Awaited<ReturnType<typeof readReference>>;

  beforeAll(async () => {
    reference = await readReference(name);
    model = await openModel(await converted(name), { threads: 2, contextTokens: SEQUENCES * BLOCKS * KV_BLOCK });
  });
  afterAll(() => model.close());

  test("logits are transformers' within 1e-4 of their range", async () => {
    const { ids, logits: expected } = reference;
    const { logits } = await step(model, rowsOf(ids, "dense"));
    const range = expected.reduce((a, b) => Math.max(a, b)) - expected.reduce((a, b) => Math.min(a, b));
    const difference = expected.reduce((max, value, i) => Math.max(max, Math.abs(value - logits[i]!)), 0);
    expect(logits).toHaveLength(expected.length);
    expect(difference / range).toBeLessThanOrEqual(1e-4);
  });

  test.each(["dense", "exact"] as const)("64 greedy tokens are transformers' in %s mode", async (mode) => {
    expect(await generate(model, reference.ids, 64, mode)).toEqual(reference.greedy);
  });

  test("exact mode has the bits of dense, and skips where the activation has zeros", async () => {
    const dense = await step(model, rowsOf(reference.ids, "dense"));
    model.engine.resetStats();
    const exact = await step(model, rowsOf(reference.ids, "exact"));
    expect(bits(exact.logits)).toBe(bits(dense.logits));
    const smooth = ["silu", "gelu"].includes(model.config.activation.kind);
    for (const { active, rows } of model.engine.stats().layers) {
      const share = active / (rows * model.config.nNeurons);
      if (smooth) expect(share).toBe(1);
      else expect(share).toBeLessThan(0.75);
    }
  });

  test("neither threads nor chunks nor company change a bit of anybody's logits", async () => {
    const { ids } = reference;
    // Three different texts: the prompt, the prompt backwards, and a part of it.
    const texts = [ids, ids.toReversed(), ids.slice(7, 30)];
    model.engine.setThreads(1);
    const alone: Float32Array[][] = [];
    for (const text of texts) alone.push(await oneByOne(model, rowsOf(text, "dense")));

    const turn = fc.record({ sequence: fc.nat(SEQUENCES - 1), rows: fc.integer({ min: 1, max: 12 }) });
    const steps = fc.array(fc.array(turn, { minLength: 1, maxLength: 4 }), { minLength: 3, maxLength: 12 });
    const modes = fc.tuple(...texts.map(() => fc.constantFrom<FfnMode>("dense", "exact")));
    await fc.assert(
      fc.asyncProperty(steps, modes, fc.integer({ min: 1, max: 3 }), async (plan, mode, threads) => {
        model.engine.setThreads(threads);
        const queues = texts.map((text, sequence) => rowsOf(text, mode[sequence]!, sequence));
        for (const turns of [...plan, queues.map((queue, sequence) => ({ sequence, rows: queue.length }))]) {
          const rows = turns.flatMap(({ sequence, rows: count }) => queues[sequence]!.splice(0, count));
          if (rows.length === 0) continue;
          const { logits } = await step(model, rows);
          const vocab = model.config.vocabSize;
          for (const [i, { sequence, position }] of rows.entries()) {
            expect(bits(logits.subarray(i * vocab, (i + 1) * vocab))).toBe(bits(alone[sequence]![position]!));
          }
        }
      }),
      { numRuns: 12 },
    );
  });
});

test("shards are one model", async () => {
  const [whole, sharded] = await Promise.all(["llama-relu", "llama-relu-sharded"].map(converted));
  const models = await Promise.all([openModel(whole!), openModel(sharded!)]);
  expect(models[1].file.weights).toBe(models[0].file.weights);
  for (const model of models) model.close();
});
