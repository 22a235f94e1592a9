import { tableFromIPC } from "apache-arrow";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { provenance } from "../../formats/provenance.ts";
import type { Samples, SamplesHeader } from "../../formats/samples.ts";
import { createSamples, openSamples, readSamples } from "../../io/samples-file.ts";

const header: SamplesHeader = {
  layer: 3,
  dim: 64,
  nNeurons: 3333,
  sampleRate: 0.25,
  provenance: provenance("profile", { window: 512, seed: 1 }, { model: "ab".repeat(32) }),
};

let dir: string;
beforeEach(async () => void (dir = await mkdtemp(join(tmpdir(), "pi-samples-"))));
afterEach(() => rm(dir, { recursive: true }));

/** Rows `from` … `from + rows` of one fixed sequence. */
function sequence(from: number, rows: number): Samples {
  const at = (size: number, factor: number) =>
    Array.from({ length: rows * size }, (_, i) => (i + from * size) * factor);
  return {
    rows,
    keys: BigUint64Array.from({ length: rows }, (_, i) => BigInt(from + i) << 50n),
    hidden: Uint16Array.from(at(header.dim, 7)),
    contributions: Uint8Array.from(at(header.nNeurons, 13)),
  };
}

async function write(path: string, groups: number[]): Promise<void> {
  const writer = await createSamples(path, header);
  let from = 0;
  for (const rows of groups) {
    await writer.append(sequence(from, rows));
    from += rows;
  }
  await writer.finish();
}

async function readAll(path: string): Promise<Samples> {
  const batches: Samples[] = [];
  for await (const batch of readSamples(path)) batches.push(batch);
  const flat = <T>(of: (batch: Samples) => Iterable<T>) => batches.flatMap((batch) => [...of(batch)]);
  return {
    rows: batches.reduce((sum, batch) => sum + batch.rows, 0),
    keys: BigUint64Array.from(flat((batch) => batch.keys)),
    hidden: Uint16Array.from(flat((batch) => batch.hidden)),
    contributions: Uint8Array.from(flat((batch) => batch.contributions)),
  };
}

/** Compares bytes: an element-wise comparison of this much takes seconds. */
function expectSame(actual: Samples, expected: Samples): void {
  expect(actual.rows).toBe(expected.rows);
  for (const column of ["keys", "hidden", "contributions"] as const) {
    const bytes = ({ buffer, byteOffset, byteLength }: ArrayBufferView) => Buffer.from(buffer, byteOffset, byteLength);
    expect(bytes(actual[column]).equals(bytes(expected[column])), column).toBe(true);
  }
}

describe("samples file", () => {
  it("gives back its rows in order, over several record batches", async () => {
    const path = join(dir, "layer-003.arrow");
    await write(path, [1, 500, 0, 99]);
    expectSame(await readAll(path), sequence(0, 600));
    const reader = await openSamples(path);
    expect(reader.header).toEqual(header);
    expect(reader.rows).toBe(600);
    expect(reader.batches).toBeGreaterThan(1);
    const [first, last] = [await reader.read(0), await reader.read(reader.batches - 1)];
    expectSame(last, sequence(600 - last.rows, last.rows));
    expectSame(await reader.read(0), first);
    await reader.close();
  });

  it("has bytes that do not depend on how rows were appended", async () => {
    await write(join(dir, "a"), [700]);
    await write(join(dir, "b"), [1, 2, 600, 97]);
    expect((await readFile(join(dir, "a"))).equals(await readFile(join(dir, "b")))).toBe(true);
  });

  it("may be empty", async () => {
    await write(join(dir, "none"), []);
    expect((await readAll(join(dir, "none"))).rows).toBe(0);
  });

  it("is a table that any Arrow reader understands", async () => {
    await write(join(dir, "t"), [10]);
    const table = tableFromIPC(await readFile(join(dir, "t")));
    expect(table.numRows).toBe(10);
    expect(String(table.schema.fields[1]!.type)).toBe("FixedSizeList[64]<Uint16>");
    expect(table.schema.metadata.get("pi.rows")).toBe("10");
  });

  it("refuses truncated and foreign files, naming them", async () => {
    const path = join(dir, "layer-003.arrow");
    await write(path, [700]);
    const bytes = await readFile(path);
    for (const length of [0, 5, 30, bytes.length >> 1, bytes.length - 1]) {
      await writeFile(path, bytes.subarray(0, length));
      await expect(readAll(path)).rejects.toMatchObject({ code: "E_ARROW", message: expect.stringContaining(path) });
    }
    const holed = Buffer.concat([bytes.subarray(0, 100_000), bytes.subarray(300_000)]);
    await writeFile(path, holed);
    await expect(readAll(path)).rejects.toMatchObject({ code: "E_ARROW", message: expect.stringContaining(path) });
  });
});
