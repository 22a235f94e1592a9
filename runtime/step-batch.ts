import { FFN_MODE, type Choice, type FfnMode, type StepBatch } from "../native/index.ts";
import { choiceOf, NEUTRAL_SAMPLING } from "./sampling.ts";
import type { Sequence } from "./sequence.ts";

/** The next `rows` uncomputed tokens of a sequence, and its drafts behind them. */
export interface Chunk {
  sequence: Sequence;
  rows: number;
}

/** What an output row is for: the probability of a prompt token, or the next token. */
export interface Output {
  sequence: Sequence;
  position: number;
  kind: "score" | "sample";
}

/** Lays chunks out as one engine step. Costs O(rows), and reads nothing but the chunks. */
export function buildStep(chunks: readonly Chunk[], mode: FfnMode): { batch: StepBatch; outputs: Output[] } {
  const rows = chunks.reduce((sum, chunk) => sum + chunk.rows + chunk.sequence.drafts, 0);
  const tokens = new Int32Array(rows);
  const positions = new Int32Array(rows);
  const sequences = new Int32Array(rows);
  const modes = new Uint8Array(rows);
  const prefill = new Uint8Array(rows);
  const outputs: Output[] = [];
  const outputRows: number[] = [];
  const choose: Choice[] = [];
  let row = 0;
  chunks.forEach(({ sequence, rows: known }, index) => {
    for (let i = 0; i < known + sequence.drafts; i++, row++) {
      const position = sequence.computed + i;
      tokens[row] = sequence.tokens[position]!;
      positions[row] = position;
      sequences[row] = index;
      modes[row] = FFN_MODE[rowMode(sequence, position, mode)];
      prefill[row] = isPrefill(sequence, position) ? 1 : 0;
      const choice = choiceAt(sequence, position);
      if (choice === undefined) continue;
      outputRows.push(row);
      outputs.push({ sequence, position, kind: choice.target < 0 ? "sample" : "score" });
      choose.push(choice);
    }
  });
  const batch = {
    tokens,
    positions,
    sequences,
    modes,
    prefill,
    ...blockTables(chunks),
    outputs: Int32Array.from(outputRows),
    choose,
  };
  return { batch, outputs };
}

/**
 * Prompt rows run dense: their weights are read once for many rows, and `exact` equals dense. Rows that are scored run in
 * the model's mode, so that a prompt's probabilities are those of the model as it decodes.
 * A row's mode depends on its position alone, so a sequence that lost its blocks recomputes the same values.
 */
function rowMode(sequence: Sequence, position: number, mode: FfnMode): FfnMode {
  if (position >= sequence.promptLength) return mode;
  return sequence.request.scorePrompt && mode === "predictor" ? mode : "dense";
}

/** Rows of a prompt that nobody scores take the engine's faster products, whose sums run in another order. */
const isPrefill = ({ request, promptLength }: Sequence, position: number): boolean =>
  position < promptLength && !request.scorePrompt;

/** What the row at `position` is asked for; undefined: nothing. A draft's row is asked for what follows if it comes true. */
function choiceAt(sequence: Sequence, position: number): Choice | undefined {
  const { request, tokens, length, promptLength } = sequence;
  if (position + 1 < promptLength) {
    if (!request.scorePrompt || position < sequence.scored) return undefined;
    return { ...choiceOf(NEUTRAL_SAMPLING, tokens, 0, request.topLogprobs), target: tokens[position + 1]! };
  }
  if (position + 1 < length || request.maxTokens === 0) return undefined;
  return choiceOf(request.sampling, tokens.subarray(0, position + 1), promptLength, request.topLogprobs);
}

function blockTables(chunks: readonly Chunk[]): Pick<StepBatch, "blockTables" | "blocksPerSequence"> {
  const blocksPerSequence = Math.max(...chunks.map(({ sequence }) => sequence.blocks.length));
  const tables = new Int32Array(chunks.length * blocksPerSequence).fill(-1);
  chunks.forEach(({ sequence }, index) => tables.set(sequence.blocks, index * blocksPerSequence));
  return { blockTables: tables, blocksPerSequence };
}
