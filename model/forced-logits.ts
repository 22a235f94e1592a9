import { check } from "../formats/errors.ts";
import { FFN_MODE, KV_BLOCK, type FfnMode, type StepBatch } from "../native/index.ts";
import type { OpenModel } from "./open.ts";

/** Logits of one chunk of rows: at most 2^23 f32, 32 MiB, or one row. */
const CHUNK_LOGITS = 2 ** 23;

/** Logits of positions [start, start + rows) of a sequence: f32 [rows, vocab]. */
export interface LogitChunk {
  start: number;
  rows: number;
  logits: Float32Array;
}

/** KV capacity in tokens that `slots` sequences of `length` tokens take side by side. */
export function kvTokensFor(length: number, slots: number): number {
  return Math.ceil(length / KV_BLOCK) * KV_BLOCK * slots;
}

/**
 * Teacher forcing: every token of `tokens` is a row in `mode`, and the logits of all rows come out, a chunk at a time in
 * order. `slot` names the part of the KV cache to use, so that sequences of at most `length` tokens can advance side by
 * side. Throws `E_CONTEXT` when the cache or the checkpoint's context is too small.
 */
export async function* forcedLogits(
  model: OpenModel,
  tokens: Int32Array,
  mode: FfnMode,
  slot = 0,
  length = tokens.length,
): AsyncGenerator<LogitChunk> {
  checkFits(model, tokens.length, kvTokensFor(length, slot + 1));
  const size = Math.max(1, Math.floor(CHUNK_LOGITS / model.config.vocabSize));
  for (let start = 0; start < tokens.length; start += size) {
    const rows = Math.min(size, tokens.length - start);
    const outputs = Int32Array.from({ length: rows }, (_, i) => i);
    const batch = forcedStep(tokens, start, rows, mode, kvTokensFor(length, 1) / KV_BLOCK, slot);
    const { logits } = await model.engine.step({ ...batch, outputs, returnLogits: true });
    yield { start, rows, logits: logits! };
  }
}

function checkFits(model: OpenModel, length: number, kvTokens: number): void {
  const { maxPositions } = model.config;
  check(length <= maxPositions, "E_CONTEXT", () => {
    return `${model.file.path}: expected at most ${maxPositions} tokens (the checkpoint's context), got ${length}`;
  });
  check(kvTokens <= model.kvTokens, "E_CONTEXT", () => {
    return `${model.file.path}: opened for ${model.kvTokens} tokens of KV cache, ${kvTokens} are needed`;
  });
}

/** A step over rows [start, start + rows) of a sequence whose KV blocks are `blocks` in a row; no output rows. */
export function forcedStep(
  tokens: Int32Array,
  start: number,
  rows: number,
  mode: FfnMode,
  blocks: number,
  slot: number,
): StepBatch {
  return {
    tokens: tokens.subarray(start, start + rows),
    positions: Int32Array.from({ length: rows }, (_, i) => start + i),
    sequences: new Int32Array(rows),
    blockTables: Int32Array.from({ length: blocks }, (_, i) => slot * blocks + i),
    blocksPerSequence: blocks,
    modes: new Uint8Array(rows).fill(FFN_MODE[mode]),
    outputs: new Int32Array(),
  };
}
