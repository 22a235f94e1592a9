import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { sha256 } from "../../io/hash.ts";
import { hashRanges } from "../../io/hash-ranges.ts";

let dir: string;
beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-hash-"));
});
afterAll(() => rm(dir, { recursive: true }));

const bytes = Buffer.alloc((130 << 20) + 777);
for (let i = 0; i < bytes.length; i += 4093) bytes.writeUInt8((i * 31) % 256, i);

/** Whether few enough bytes for the calling thread, or enough for workers. */
test.each([
  ["few", 1 << 20],
  ["many", 40 << 20],
])("hashes each range, of %s bytes", async (name, size) => {
  const path = join(dir, name);
  await writeFile(path, bytes);
  const ranges = [
    { offset: 3, bytes: 1 },
    { offset: 70, bytes: size },
    { offset: 0, bytes: 0 },
    { offset: size - 5, bytes: size },
    { offset: bytes.length - size, bytes: size },
    { offset: 300_000, bytes: 300_001 },
  ];
  const expected = ranges.map(({ offset, bytes: n }) => sha256(bytes.subarray(offset, offset + n)));
  expect(await hashRanges(path, ranges)).toEqual(expected);
  await truncate(path, bytes.length - 9);
  const short = await hashRanges(path, ranges);
  expect(short.map((hash, i) => hash === expected[i])).toEqual([true, true, true, true, false, true]);
});

test.each([1, 100 << 20])("a file that is not there is an error that names it (%d bytes)", async (size) => {
  const path = join(dir, "absent");
  await expect(hashRanges(path, [{ offset: 0, bytes: size }])).rejects.toThrow(
    /no such file.*absent|absent.*no such file/,
  );
});
