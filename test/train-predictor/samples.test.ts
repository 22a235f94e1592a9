import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { provenance } from "../../formats/provenance.ts";
import { createSamples } from "../../io/samples-file.ts";
import type { Rows } from "../../train-predictor/keyed-rows.ts";
import { openLayerSamples, SAMPLE_MEMORY, type SampleMemory } from "../../train-predictor/samples.ts";

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

const numbers = ({ hidden, rows }: Rows) => Array.from({ length: rows }, (_, row) => hidden[row * DIM]!);

/** What a file holds: numbers of the rows held out and of each chunk, in order. */
async function dealt(path: string, maxRows: number, memory: SampleMemory = SAMPLE_MEMORY): Promise<number[][]> {
  const samples = await openLayerSamples(path, "weights", maxRows, join(dir, "scratch"), memory);
  try {
    const chunks = await Promise.all(samples.chunks.map((_, i) => samples.chunk(i)));
    chunks.forEach(({ rows }, i) => expect(rows).toBe(samples.chunks[i]));
    for (const { rows, hidden, contributions } of [samples.heldout, ...chunks]) {
      for (let i = 0; i < rows; i++) expect(contributions[i * NEURONS]).toBe(hidden[i * DIM]);
    }
    return [samples.heldout, ...chunks].map(numbers);
  } finally {
    await samples.close();
    expect(await readdir(dir)).not.toContain("scratch");
  }
}

/** Ten rows a chunk. */
const SMALL = { chunkBytes: 10 * (2 * DIM + NEURONS), heldoutBytes: 1 << 20 };

const sorted = (groups: number[][]) => groups.flat().sort((a, b) => a - b);

test("rows, split and chunks depend on the keys, not on the order of the file", async () => {
  const a = await dealt(await write("a", forward), 1000, SMALL);
  expect(a.length).toBeGreaterThan(8);
  expect(await dealt(await write("b", forward.toReversed()), 1000, SMALL)).toEqual(a);
  expect(sorted(a)).toEqual(forward);
  expect(a[0]!.length).toBeGreaterThan(4);
  expect(a[0]!.length).toBeLessThan(30);
});

test("memory decides chunks and held-out rows: a chunk is not larger for there being more rows", async () => {
  const many = Array.from({ length: 100 }, (_, i) => i);
  const a = await dealt(await write("m", many), 1000, { ...SMALL, heldoutBytes: 5 * (2 * DIM + NEURONS) });
  expect(a[0]!.length).toBeLessThan(15);
  for (const chunk of a.slice(1)) expect(chunk.length).toBeLessThan(25);
});

test("of too many rows about as many are kept as were asked for, whatever the order", async () => {
  const a = await dealt(await write("c", forward), 40);
  expect(a.flat().length).toBeGreaterThan(20);
  expect(a.flat().length).toBeLessThan(60);
  expect(await dealt(await write("c2", forward.toReversed()), 40)).toEqual(a);
  // Fewer are a part of more.
  const more = new Set((await dealt(await write("c3", forward), 60)).flat());
  for (const number of a.flat()) expect(more).toContain(number);
});

test("equal keys stay together", async () => {
  const once = await dealt(await write("d", forward), 1000, SMALL);
  const twice = await dealt(await write("d2", [...forward, ...forward]), 2000, {
    ...SMALL,
    chunkBytes: 2 * SMALL.chunkBytes,
  });
  expect(twice).toEqual(once.map((group) => group.flatMap((number) => [number, number])));
});

test("too few rows and rows of other weights are refused, and leave no scratch file", async () => {
  const few = await write("e", forward.slice(0, 15));
  await expect(dealt(few, 100)).rejects.toThrow(/e: expected at least 16 sampled rows, found 15/);
  const open = openLayerSamples(few, "others", 100, join(dir, "scratch"));
  await expect(open).rejects.toThrow(expect.objectContaining({ code: "E_MISMATCH" }));
  expect(await readdir(dir)).not.toContain("scratch");
});
