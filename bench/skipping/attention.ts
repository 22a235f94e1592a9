/** Dropping the inputs of q, k, v and o whose magnitude is small (TEAL, arXiv 2408.14690). */
import { tensorBytes, type DType } from "../../formats/dtypes.ts";
import { concat } from "../inputs.ts";
import { QualitySum, type Quality } from "../quality.ts";
import { Reference, type Product } from "../reference.ts";
import { through, throughColumns } from "./stored.ts";

const PARTS = ["q", "k", "v", "o"];
const SHARES = [0.2, 0.4, 0.6];

/**
 * Dropping inputs wants columns to lie together, and the blocks of q4_0 then run along the output dimension: a row for
 * the layouts alone, and one for every share of inputs that is dropped. Everything but these weights stays in f16.
 */
export async function skipInputs(
  model: Reference,
  heldout: readonly Int32Array[],
  corpus: readonly Int32Array[],
): Promise<Record<string, Quality & { bytes: number }>> {
  const magnitudes = attentionInputs(model, corpus);
  const expected = heldout.map((tokens) => model.hidden(tokens));
  const rows: Record<string, Quality & { bytes: number }> = {};
  const measure = async (label: string, stored: Reference, dtype: DType, share: number, parts = PARTS) => {
    const dropped = [...magnitudes].filter(([name]) => share > 0 && parts.includes(name.at(-1)!));
    const thresholds = dropped.map(([name, sorted]) => [name, sorted[Math.floor(sorted.length * share)]!] as const);
    const dropping = dropInputs(stored, new Map(thresholds));
    const sum = new QualitySum();
    for (const [window, tokens] of heldout.entries()) {
      const states = [expected[window]!, stored.hidden(tokens, dropping.product)];
      const [a, b] = states.map((x) => model.product("head", x));
      await sum.add(a!, b!, tokens.subarray(1), model.config.vocabSize);
    }
    const bytes = Math.round(attentionBytes(model, dtype) * (dropping.kept / dropping.seen));
    rows[`${label}, ${100 * share} % dropped`] = { bytes, ...sum.result() };
  };

  for (const share of SHARES) await measure("f16", model, "f16", share);
  for (const part of PARTS) await measure(`f16, ${part} only`, model, "f16", 0.4, [part]);
  await measure("q4_0, blocks along rows", await storeAttention(model, "q4_0", false), "q4_0", 0);
  const byColumns = await storeAttention(model, "q4_0", true);
  for (const share of [0, ...SHARES]) await measure("q4_0, blocks along columns", byColumns, "q4_0", share);
  return rows;
}

const isAttention = (name: string) => name.includes(".attn.");

/** Magnitudes of the inputs of every attention matrix, in order. */
function attentionInputs(model: Reference, corpus: readonly Int32Array[]): Map<string, Float32Array> {
  const seen = new Map<string, Float32Array[]>();
  for (const tokens of corpus) {
    model.hidden(tokens, (name, x) => {
      if (isAttention(name)) seen.set(name, [...(seen.get(name) ?? []), x.map(Math.abs)]);
      return model.product(name, x);
    });
  }
  return new Map([...seen].map(([name, parts]) => [name, concat(parts).sort()]));
}

/** Products that leave out what is below a threshold, counting the weights that are read for what is left. */
function dropInputs(model: Reference, thresholds: ReadonlyMap<string, number>) {
  const dropping = {
    kept: 0,
    seen: 0,
    product: ((name, x) => {
      if (!isAttention(name)) return model.product(name, x);
      const threshold = thresholds.get(name) ?? 0;
      const weights = model.weights(name).length / x.length;
      const left = x.map((value) => (Math.abs(value) < threshold ? 0 : value));
      for (const value of x) {
        dropping.seen += weights;
        if (Math.abs(value) >= threshold) dropping.kept += weights;
      }
      return model.product(name, left);
    }) satisfies Product,
  };
  return dropping;
}

const isAttentionWeight = (name: string) => isAttention(name) && name.endsWith(".weight");

function attentionBytes(model: Reference, dtype: DType): number {
  const sizes = [...model.tensors].map(([name, { length }]) => (isAttentionWeight(name) ? length : 0));
  return sizes.reduce((sum, length) => sum + tensorBytes(dtype, [length]), 0);
}

/** The model with its attention matrices as they come back from `dtype`. */
async function storeAttention(model: Reference, dtype: DType, byColumns: boolean): Promise<Reference> {
  const tensors = new Map(model.tensors);
  for (const [name, values] of model.tensors) {
    if (!isAttentionWeight(name)) continue;
    const rows = name.includes(".o.") ? model.config.dim : values.length / model.config.dim;
    const cols = values.length / rows;
    tensors.set(name, byColumns ? await throughColumns(values, rows, cols, dtype) : await through(values, cols, dtype));
  }
  return new Reference(model.config, tensors);
}
