import { describe, expect, test } from "vitest";
import { PiError } from "../../formats/errors.ts";
import { LOCAL_HEADER_BYTES, parseZipDirectory, parseZipEnd, ZIP_TAIL_BYTES, zipDataStart } from "../../formats/zip.ts";
import { zipFile, type ZipContent, type ZipLies } from "./torch-bytes.ts";

/** Reads a whole zip file as io/torch-file.ts does, range by range. */
function contentsOf(file: Uint8Array): Map<string, string> {
  const end = parseZipEnd(file.subarray(-ZIP_TAIL_BYTES), file.length, "f");
  const directory = file.subarray(end.directoryOffset, end.directoryOffset + end.directoryBytes);
  const contents = [...parseZipDirectory(directory, end, "f").values()].map((entry) => {
    const header = file.subarray(entry.localOffset, entry.localOffset + LOCAL_HEADER_BYTES);
    const begin = zipDataStart(header, entry, "f");
    return [entry.name, Buffer.from(file.subarray(begin, begin + entry.size)).toString()] as const;
  });
  return new Map(contents);
}

function refusal(file: Uint8Array): string {
  try {
    contentsOf(file);
  } catch (error) {
    expect(error).toBeInstanceOf(PiError);
    expect((error as PiError).code).toBe("E_ZIP");
    expect((error as PiError).message).not.toContain("\n");
    return (error as PiError).message;
  }
  return "read";
}

const A: ZipContent = { name: "x/a", bytes: Buffer.from("hello") };
const B: ZipContent = { name: "x/b", bytes: Buffer.from("world!") };

describe("reads", () => {
  test.each<[string, ZipContent[], ZipLies]>([
    ["stored entries", [A, B], {}],
    ["a zip64 end record", [A, B], { zip64: true }],
    ["zip64 sizes", [{ ...A, zip64: true }, B], { zip64: true }],
    ["data descriptors", [{ ...A, lie: { flags: 0x808 } }, B], {}],
  ])("%s", (_name, contents, how) => {
    expect(contentsOf(zipFile(contents, how))).toEqual(
      new Map([
        ["x/a", "hello"],
        ["x/b", "world!"],
      ]),
    );
  });

  test("an archive of nothing", () => {
    expect(contentsOf(zipFile([])).size).toBe(0);
  });

  test("sizes past 4 GiB, which only the directory has to believe", () => {
    const size = 5 * 2 ** 32;
    const far = { ...B, zip64: true, lie: { offset: size + 1000 } };
    const file = zipFile([{ ...A, zip64: true, lie: { size, stored: size } }, far], { zip64: true });
    const end = parseZipEnd(file.subarray(-ZIP_TAIL_BYTES), file.length, "f");
    const directory = file.subarray(end.directoryOffset, end.directoryOffset + end.directoryBytes);
    const entries = parseZipDirectory(directory, { ...end, directoryOffset: size + 2000 }, "f");
    expect(entries.get("x/a")).toMatchObject({ size, limit: size + 1000 });
    expect(entries.get("x/b")).toMatchObject({ localOffset: size + 1000, limit: size + 2000 });
  });
});

describe("refuses", () => {
  const changed = (lie: ZipContent["lie"], more: Partial<ZipContent> = {}): Buffer =>
    zipFile([{ ...A, ...more, ...(lie && { lie }) }, B], { zip64: more.zip64 ?? false });
  test.each<[string, Buffer, RegExp]>([
    ["nothing", Buffer.alloc(0), /at least 22 bytes, found 0/],
    ["something else", Buffer.alloc(500, 7), /ends with its end record/],
    ["a comment, in which another end could hide", zipFile([A], { comment: "hi" }), /ends with its end record/],
    ["bytes after the end", Buffer.concat([zipFile([A]), Buffer.from("x")]), /ends with its end record/],
    ["a deflated entry", changed({ method: 8 }), /x\/a is compressed \(method 8\)/],
    ["an encrypted entry", changed({ flags: 1 }), /x\/a is encrypted/],
    ["a masked entry", changed({ flags: 1 << 13 }), /x\/a is encrypted/],
    ["flags that mean something else", changed({ flags: 1 << 5 }), /unexpected flags 0x20/],
    ["two sizes", changed({ size: 6 }), /expected 6 stored bytes, found 5/],
    ["an entry that reaches into the next", changed({ size: 90, stored: 90 }), /x\/a overlaps x\/b/],
    ["an entry that is not where it should be", changed({ offset: 1 }), /local header at byte 1/],
    ["two entries at one place", zipFile([A, { ...B, lie: { offset: 0 } }]), /x\/a overlaps x\/b|x\/b overlaps x\/a/],
    ["an entry beyond the file", changed({ offset: 1e6 }), /x\/a reaches into the directory/],
    ["an entry at 2^60", changed({ offset: 2 ** 60 }, { zip64: true }), /beyond 2\^53/],
    ["a size of 2^52", changed({ size: 2 ** 52, stored: 2 ** 52 }, { zip64: true }), /overlaps|reaches into/],
    ["a name twice", zipFile([A, { ...B, name: "x/a" }]), /two entries x\/a/],
    ...["../a", "/a", "x//a", "x/../a", "x\\a", "x/\n", "", "./a", "x/"].map((name): [string, Buffer, RegExp] => [
      `the name ${JSON.stringify(name)}`,
      zipFile([{ ...A, name }]),
      /has an entry (of the name|whose name)/,
    ]),
    ["more entries than there are", zipFile([A], { entries: 2 }), /directory entry 1 at/],
    ["fewer entries than there are", zipFile([A, B], { entries: 1 }), /expected a directory of \d+ bytes/],
    ["a directory elsewhere", zipFile([A], { directoryOffset: 3 }), /directory to end at byte/],
    ["a directory of 4 GB", zipFile([A], { directoryBytes: 4e9 }), /at most 67108864 bytes, found 4000000000/],
    ["a directory past 2^53", zipFile([A], { directoryOffset: 2 ** 60, zip64: true }), /beyond 2\^53/],
    ["a million entries", zipFile([A], { entries: 1e6, zip64: true }), /at most 500000 entries, found 1000000/],
    ["markers of zip64 without its record", zipFile([A], { entries: 0xffff }), /there is none/],
  ])("%s", (_name, file, message) => {
    expect(refusal(file)).toMatch(message);
  });

  test("a local header that contradicts the directory", () => {
    const file = zipFile([A, B]);
    file[8] = 8; // method
    expect(refusal(file)).toMatch(/contradict each other/);
    const longer = zipFile([A, B]);
    longer[28] = 200; // extra field
    expect(refusal(longer)).toMatch(/x\/a ends at byte \d+, expected \d+ at most/);
  });

  test("end records that contradict each other", () => {
    const file = zipFile([A], { zip64: true });
    file.writeUInt32LE(1, file.length - 6); // offset of the directory
    expect(refusal(file)).toMatch(/contradict each other/);
  });

  test("every file that is cut short", () => {
    for (const how of [{}, { zip64: true }]) {
      const file = zipFile([A, B], how);
      for (let length = 0; length < file.length; length++) expect(refusal(file.subarray(0, length))).not.toBe("read");
    }
  });
});
