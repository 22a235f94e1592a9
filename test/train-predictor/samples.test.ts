import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { provenance } from "../../formats/provenance.ts";
import { createSamples } from "../../io/samples-file.ts";
import { loadSamples, type LayerSamples } from "../../train-predictor/samples.ts";

const DIM = 4;
const NEURONS = 3;
const KEYS = Array.from({ length: 100 }, (_, i) => (BigInt(i) * 0x9e3779b97f4a7c15n) % 2n ** 64n);

let dir: string;
beforeAll(async () => (dir = await mkdtemp(join(tmpdir(), "pi-samples-"))));
afterAll(() => rm(dir, { recursive: true }));

/** A file whose row of key number `i` is made of `i`. */
async function write(name: string, order: number[]): Promise<string> {
  const path = join(dir, name);
  const origin = provenance("profile", {}, { model: "weights" });
  const writer = await createSamples(path, {
    layer: 0,
    dim: DIM,
    nNeurons: NEURONS,
    sampleRate: 1,
    provenance: origin,
  });
  await writer.append({
    rows: order.length,
    keys: BigUint64Array.from(order, (i) => KEYS[i]!),
    hidden: Uint16Array.from(order.flatMap((i) => Array(DIM).fill(i) as number[])),
    contributions: Uint8Array.from(order.flatMap((i) => Array(NEURONS).fill(i) as number[])),
  });
  await writer.finish();
  return path;
}

const forward = KEYS.map((_, i) => i);

/** The rows' numbers in the given order. */
const numbers = ({ hidden }: LayerSamples, rows: Int32Array) => Array.from(rows, (row) => hidden[row * DIM]!);

test("rows and split depend on the keys, not on the order of the file", async () => {
  const a = await loadSamples(await write("a", forward), "weights", 1000);
  const b = await loadSamples(await write("b", forward.toReversed()), "weights", 1000);
  expect(numbers(a, a.train)).toEqual(numbers(b, b.train));
  expect(numbers(a, a.heldout)).toEqual(numbers(b, b.heldout));
  const all = [...numbers(a, a.train), ...numbers(a, a.heldout)].sort((x, y) => x - y);
  expect(all).toEqual(forward);
  for (const row of a.train) expect(a.contributions[row * NEURONS]).toBe(a.hidden[row * DIM]);
});

test("of too many rows those with the lowest keys are kept", async () => {
  const all = await loadSamples(await write("c", forward), "weights", 40);
  const lowest = forward.toSorted((a, b) => (KEYS[a]! < KEYS[b]! ? -1 : 1)).slice(0, 40);
  expect(new Set([...numbers(all, all.train), ...numbers(all, all.heldout)])).toEqual(new Set(lowest));
  expect(all.hidden.length).toBe(40 * DIM);
});

test("equal keys stay together", async () => {
  const twice = await loadSamples(await write("d", [...forward, ...forward]), "weights", 39);
  expect(twice.train.length + twice.heldout.length).toBe(40);
});

test("too few rows and rows of other weights are refused", async () => {
  const few = await write("e", forward.slice(0, 15));
  await expect(loadSamples(few, "weights", 100)).rejects.toThrow(/e: expected at least 16 sampled rows, found 15/);
  await expect(loadSamples(few, "others", 100)).rejects.toThrow(expect.objectContaining({ code: "E_MISMATCH" }));
});
