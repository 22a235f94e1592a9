import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { DTYPES, tensorBytes, type DType } from "../../formats/dtypes.ts";
import { PiError } from "../../formats/errors.ts";
import {
  encodeHeader,
  MAX_HEADER_BYTES,
  parseHeader,
  parseHeaderLength,
  placeTensors,
  type SafetensorsFile,
} from "../../formats/safetensors.ts";

/** Parses a whole file, as io/safetensors-file.ts does in two reads. */
function parseFile(bytes: Uint8Array): SafetensorsFile {
  const length = parseHeaderLength(bytes.subarray(0, 8), bytes.length, "f");
  return parseHeader(bytes.subarray(8, 8 + length), bytes.length, "f");
}

/** A file of a header as text and so many bytes of data. */
function fileOf(header: string, dataBytes = 0): Uint8Array {
  const json = new TextEncoder().encode(header);
  const file = new Uint8Array(8 + json.length + dataBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(json.length), true);
  file.set(json, 8);
  return file;
}

const tensor = (dtype: string, shape: unknown, offsets: unknown): string =>
  JSON.stringify({ dtype, shape, data_offsets: offsets });

const refusal = (bytes: Uint8Array): string => {
  try {
    parseFile(bytes);
  } catch (error) {
    expect(error).toBeInstanceOf(PiError);
    expect((error as PiError).code).toBe("E_SAFETENSORS");
    expect((error as PiError).message).toMatch(/^f: [^\n]*$/);
    return (error as PiError).message;
  }
  return "accepted";
};

const VALID = fileOf(
  `{"__metadata__":{"format":"pt"},"b":${tensor("F16", [2, 2], [4, 12])},"a":${tensor("F32", [], [0, 4])}}`,
  12,
);

test("reads tensors in order of offset, with absolute offsets, and metadata", () => {
  const { tensors, metadata, dataStart, size } = parseFile(VALID);
  expect(metadata).toEqual({ format: "pt" });
  expect(size).toBe(dataStart + 12);
  expect([...tensors]).toEqual([
    ["a", { dtype: "F32", shape: [], begin: dataStart, end: dataStart + 4 }],
    ["b", { dtype: "F16", shape: [2, 2], begin: dataStart + 4, end: dataStart + 12 }],
  ]);
});

test("accepts an empty file of tensors, zero-sized tensors and trailing spaces", () => {
  expect(parseFile(fileOf("{}   ")).tensors.size).toBe(0);
  expect(
    parseFile(fileOf(`{"a":${tensor("F32", [0, 7], [0, 0])},"b":${tensor("U8", [3], [0, 3])}}`, 3)).tensors.size,
  ).toBe(2);
});

test("refuses every prefix of a file, and every longer one", () => {
  for (let length = 0; length < VALID.length; length++) expect(refusal(VALID.subarray(0, length))).not.toBe("accepted");
  expect(refusal(Uint8Array.from([...VALID, 0]))).toMatch(/end with its tensors/);
});

test("any change of a header byte gives a typed error or another valid file, never anything else", () => {
  const headerEnd = parseFile(VALID).dataStart;
  for (let at = 0; at < headerEnd; at++) {
    for (const value of [
      0x00,
      0x01,
      0x20,
      0x7f,
      0x80,
      0xff,
      ...[0, 1, 2, 3, 4, 5, 6, 7].map((bit) => VALID[at]! ^ (1 << bit)),
    ]) {
      const changed = Uint8Array.from(VALID);
      changed[at] = value;
      refusal(changed);
    }
  }
});

test("arbitrary bytes give a typed error or a valid file", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => void refusal(bytes)),
    { numRuns: 500 },
  );
  fc.assert(
    fc.property(fc.string({ maxLength: 64 }), (text) => void refusal(fileOf(`{${text}}`))),
    { numRuns: 500 },
  );
});

describe("refuses header lengths that lie", () => {
  const limits = [0n, 1n, 2n ** 31n - 1n, 2n ** 31n, 2n ** 32n, 2n ** 53n + 1n, 2n ** 63n, 2n ** 64n - 1n];
  test.each(limits)("%s", (length) => {
    const file = Uint8Array.from(VALID);
    new DataView(file.buffer).setBigUint64(0, length, true);
    expect(refusal(file)).not.toBe("accepted");
  });

  test("a header larger than the limit, before it is read", () => {
    const prefix = new Uint8Array(8);
    new DataView(prefix.buffer).setBigUint64(0, BigInt(MAX_HEADER_BYTES + 1), true);
    expect(() => parseHeaderLength(prefix, 2 ** 40, "f")).toThrow(/header of at most 100000000 bytes, found 100000001/);
  });
});

describe("refuses", () => {
  const f32 = (begin: number, end: number, shape = [(end - begin) / 4]) => tensor("F32", shape, [begin, end]);
  test.each<[string, string, number, RegExp]>([
    ["a header that does not start with {", ` {"a":${f32(0, 4)}}`, 4, /to start with "\{"/],
    ["a list", "[]", 0, /to start with "\{"/],
    ["broken JSON", `{"a":${f32(0, 4)}`, 4, /expected "\}", found the end/],
    ["two documents", `{}{}`, 0, /expected the end/],
    ["duplicate tensors", `{"a":${f32(0, 4)},"a":${f32(4, 8)}}`, 8, /duplicate key "a"/],
    [
      "duplicate keys in a tensor",
      `{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}`,
      4,
      /duplicate key/,
    ],
    ["duplicate metadata", `{"__metadata__":{"x":"1","x":"2"}}`, 0, /duplicate key "x"/],
    ["metadata that is no text", `{"__metadata__":{"x":1}}`, 0, /metadata "x" to be a string, found number/],
    ["metadata that is no object", `{"__metadata__":[]}`, 0, /__metadata__ to be an object/],
    ["a tensor that is no object", `{"a":7}`, 0, /tensor a to be an object/],
    ["an unknown dtype", `{"a":${tensor("F31", [1], [0, 4])}}`, 4, /unknown dtype F31/],
    ["a missing dtype", `{"a":{"shape":[1],"data_offsets":[0,4]}}`, 4, /unknown dtype undefined/],
    ["a dtype from the prototype", `{"a":${tensor("constructor", [1], [0, 4])}}`, 4, /unknown dtype/],
    ["a negative size", `{"a":${tensor("F32", [-1], [0, 4])}}`, 4, /shape to be a list of sizes/],
    ["a fractional size", `{"a":${tensor("F32", [0.5], [0, 4])}}`, 4, /list of sizes/],
    ["three offsets", `{"a":${tensor("F32", [1], [0, 4, 8])}}`, 4, /two offsets/],
    [
      "offsets beyond 2^53",
      `{"a":{"dtype":"F32","shape":[1],"data_offsets":[9007199254740993,9007199254740997]}}`,
      4,
      /outside of what a double holds/,
    ],
    ["a shape that says more than the range", `{"a":${f32(0, 4, [2])}}`, 4, /is 8 bytes, its range \[0, 4\] is 4/],
    ["a reversed range", `{"a":${tensor("F32", [1], [4, 0])}}`, 4, /is 4 bytes, its range \[4, 0\] is -4/],
    ["a product beyond 2^53", `{"a":${tensor("F32", [2 ** 30, 2 ** 30], [0, 4])}}`, 4, /more bytes than 2\^53/],
    [
      "a product that a zero would hide",
      `{"a":${tensor("F32", [2 ** 40, 2 ** 40, 0], [0, 0])}}`,
      0,
      /more bytes than 2\^53/,
    ],
    [
      "a byte size that wraps where the count does not",
      `{"a":${tensor("F64", [2 ** 51], [0, 8])}}`,
      8,
      /more bytes than 2\^53/,
    ],
    ["an overlap", `{"a":${f32(0, 8)},"b":${f32(4, 12)}}`, 12, /tensor b begins at byte \d+, inside/],
    ["a hole", `{"a":${f32(0, 4)},"b":${f32(8, 12)}}`, 12, /hole before tensor b/],
    ["a hole at the start", `{"a":${f32(4, 8)}}`, 8, /hole before tensor a/],
    ["trailing bytes", `{"a":${f32(0, 4)}}`, 5, /end with its tensors at byte \d+, found/],
    ["data beyond the end", `{"a":${f32(0, 8)}}`, 4, /\(truncated\?\)/],
    ["deep nesting", `{"a":${"[".repeat(100_000)}`, 0, /nested deeper/],
  ])("%s", (_name, header, dataBytes, message) => {
    expect(refusal(fileOf(header, dataBytes))).toMatch(message);
  });

  test("text that is not UTF-8", () => {
    const file = fileOf('{"aa":{}}');
    file[10] = 0xff;
    expect(refusal(file)).toMatch(/not UTF-8/);
  });

  test("more tensors than any model has", () => {
    const header = `{${Array.from({ length: 1_000_002 }, (_, i) => `"${i}":0`).join(",")}}`;
    expect(refusal(fileOf(header))).toMatch(/more than 1000001 members/);
  });
});

test("a tensor named __proto__ is a tensor", () => {
  const { tensors } = parseFile(fileOf(`{"__proto__":${tensor("U8", [1], [0, 1])}}`, 1));
  expect(tensors.get("__proto__")?.shape).toEqual([1]);
});

const dtype = fc.constantFrom(...(Object.keys(DTYPES) as DType[]));
const outputs = fc
  .uniqueArray(
    fc.record({
      name: fc.string({ minLength: 1, maxLength: 12 }),
      dtype,
      rows: fc.integer({ min: 1, max: 5 }),
      blocks: fc.integer({ min: 1, max: 3 }),
    }),
    { selector: ({ name }) => name, maxLength: 8 },
  )
  .map((list) =>
    list
      .filter(({ name }) => !name.startsWith("pad.") && name !== "__metadata__" && name !== "__proto__")
      .map(({ name, dtype: type, rows, blocks }) => ({
        name,
        dtype: type,
        shape: [rows, blocks * DTYPES[type].blockSize],
      })),
  );

test("what is laid out and encoded is parsed back, aligned and without holes", () => {
  fc.assert(
    fc.property(
      outputs,
      fc.dictionary(fc.string(), fc.string(), { noNullPrototype: true }),
      fc.constantFrom(64, 4096),
      (tensors, metadata, align) => {
        fc.pre(!Object.hasOwn(metadata, "__proto__"));
        const placed = placeTensors(tensors);
        const header = encodeHeader(placed, metadata, align);
        expect(header.length % align).toBe(0);
        const size = header.length + (placed.at(-1)?.end ?? 0);
        const parsed = parseHeader(header.subarray(8), size, "f");
        expect(parsed.metadata).toEqual(metadata);
        for (const { name, dtype: type, shape } of tensors) {
          const entry = parsed.tensors.get(name)!;
          expect(entry.begin % 64).toBe(0);
          expect(entry.end - entry.begin).toBe(tensorBytes(type, shape));
          expect(entry.dtype).toBe(DTYPES[type].safetensors);
        }
      },
    ),
  );
});

test("metadata values of equal length make headers of equal length", () => {
  const placed = placeTensors([{ name: "a", dtype: "f32", shape: [3] }]);
  const of = (hash: string) => encodeHeader(placed, { hash }, 64).length;
  expect(of("0".repeat(64))).toBe(of("f".repeat(64)));
});
