import { spawnSync } from "node:child_process";
import { mkdtemp, open, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { DTYPES, tensorBytes, type DType } from "../../formats/dtypes.ts";
import { sha256, sha256File } from "../../io/hash.ts";
import { readSafetensors, readTensorBytes, writeSafetensors, type OutputTensor } from "../../io/safetensors-file.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-safetensors-"));
});
afterAll(() => rm(dir, { recursive: true }));

const bytesFor = ({ dtype, shape, name }: OutputTensor): Uint8Array =>
  Uint8Array.from({ length: tensorBytes(dtype, shape) }, (_, i) => (i * 31 + name.length) & 255);

const TWO: OutputTensor[] = [
  { name: "a", dtype: "f32", shape: [3] },
  { name: "b", dtype: "q4_0", shape: [2, 64] },
];
const metadata = () => ({ "pi.format": "test" });

test("writes what it is given, in whole tensors or in chunks, and says the hashes", async () => {
  const tensors = fc.uniqueArray(
    fc.record({
      name: fc.stringMatching(/^[a-z.]{1,10}$/),
      dtype: fc.constantFrom(...(Object.keys(DTYPES) as DType[])),
      shape: fc.tuple(
        fc.nat(4),
        fc.nat(3).map((n) => n * 32),
      ),
    }),
    { selector: ({ name }) => name, maxLength: 6 },
  );
  await fc.assert(
    fc.asyncProperty(
      tensors,
      fc.integer({ min: 1, max: 100 }),
      fc.constantFrom(64 as const, 4096 as const),
      async (list, chunk, dataAlign) => {
        const path = join(dir, "property.safetensors");
        async function* chunks(bytes: Uint8Array) {
          for (let at = 0; at < bytes.length; at += chunk) yield bytes.subarray(at, at + chunk);
        }
        const hashes = await writeSafetensors(path, list, {
          dataAlign,
          metadata,
          produce: (tensor) => (tensor.name < "m" ? chunks(bytesFor(tensor)) : Promise.resolve(bytesFor(tensor))),
        });
        const file = await readSafetensors(path);
        expect(file.dataStart % dataAlign).toBe(0);
        const table = JSON.parse(file.metadata["pi.tensors"]!) as Record<
          string,
          { dtype: string; shape: number[]; sha256: string }
        >;
        for (const tensor of list) {
          const stored = await readTensorBytes(file, tensor.name);
          expect(Buffer.compare(stored, bytesFor(tensor))).toBe(0);
          expect(file.tensors.get(tensor.name)!.begin % 64).toBe(0);
          expect(table[tensor.name]).toEqual({ dtype: tensor.dtype, shape: tensor.shape, sha256: sha256(stored) });
          expect(hashes.get(tensor.name)).toBe(sha256(stored));
        }
        expect(Object.keys(table).length).toBe(list.length);
      },
    ),
    { numRuns: 40 },
  );
});

describe("leaves nothing behind", () => {
  const failing = {
    "a producer that throws": () => Promise.reject(new Error("no bytes")),
    "too few bytes": () => Promise.resolve(new Uint8Array(3)),
    "too many bytes": () => Promise.resolve(new Uint8Array(300)),
  };
  test.each(Object.entries(failing))("after %s", async (_name, produce) => {
    const folder = await mkdtemp(join(dir, "failed-"));
    await writeFile(join(folder, "out.safetensors"), "old");
    await expect(writeSafetensors(join(folder, "out.safetensors"), TWO, { metadata, produce })).rejects.toThrow();
    expect(await readdir(folder)).toEqual(["out.safetensors"]);
    expect(await readFile(join(folder, "out.safetensors"), "utf8")).toBe("old");
  });

  test("when aborted", async () => {
    const folder = await mkdtemp(join(dir, "aborted-"));
    const controller = new AbortController();
    const produce = (tensor: OutputTensor) => {
      controller.abort();
      return Promise.resolve(bytesFor(tensor));
    };
    const written = writeSafetensors(join(folder, "x"), TWO, { metadata, produce, signal: controller.signal });
    await expect(written).rejects.toMatchObject({ name: "AbortError" });
    expect(await readdir(folder)).toEqual([]);
  });
});

test("metadata must keep its length between measuring and writing", async () => {
  const growing = (hashes: Map<string, string>) => ({
    note: hashes.get("a")!.startsWith("000") ? "short" : "x".repeat(500),
  });
  const written = writeSafetensors(join(dir, "growing"), TWO, { metadata: growing, produce: async (t) => bytesFor(t) });
  await expect(written).rejects.toThrow(/changed its length/);
});

describe("reading", () => {
  const code = (promise: Promise<unknown>) =>
    promise.then(
      () => "read",
      (error: { code: string }) => error.code,
    );

  test("refuses what is no regular file", async () => {
    expect(await code(readSafetensors(join(dir, "absent")))).toBe("E_FILE");
    expect(await code(readSafetensors(dir))).toBe("E_FILE");
    spawnSync("mkfifo", [join(dir, "fifo")]);
    expect(await code(readSafetensors(join(dir, "fifo")))).toBe("E_FILE");
  });

  test("refuses a sparse giant without reading it", async () => {
    const path = join(dir, "sparse");
    await (await open(path, "w")).close();
    await truncate(path, 2 ** 40);
    expect(await code(readSafetensors(path))).toBe("E_SAFETENSORS");
  });

  test("refuses every prefix of a file", async () => {
    const path = join(dir, "whole");
    await writeSafetensors(path, TWO, { metadata, produce: async (t) => bytesFor(t) });
    const bytes = await readFile(path);
    const prefix = join(dir, "prefix");
    await writeFile(prefix, bytes);
    for (let length = bytes.length - 1; length >= 0; length--) {
      await truncate(prefix, length);
      expect(await code(readSafetensors(prefix))).toBe("E_SAFETENSORS");
    }
  });

  test("names a tensor that is not there, and a file that shrank", async () => {
    const path = join(dir, "shrinks");
    await writeSafetensors(path, TWO, { metadata, produce: async (t) => bytesFor(t) });
    const file = await readSafetensors(path);
    await expect(readTensorBytes(file, "c")).rejects.toThrow(/no tensor c/);
    await truncate(path, file.tensors.get("b")!.begin + 1);
    await expect(readTensorBytes(file, "b")).rejects.toThrow(/the file ends after 1/);
  });

  test("hashes files of any size", async () => {
    const bytes = new Uint8Array(9 << 20).map((_, i) => i * 7);
    await writeFile(join(dir, "hashed"), bytes);
    let seen = 0;
    expect(await sha256File(join(dir, "hashed"), (n) => (seen += n))).toBe(sha256(bytes));
    expect(seen).toBe(bytes.length);
    await writeFile(join(dir, "empty"), "");
    expect(await sha256File(join(dir, "empty"))).toBe(sha256(""));
  });
});
