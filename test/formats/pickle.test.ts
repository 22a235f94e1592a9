import fc from "fast-check";
import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { PiError } from "../../formats/errors.ts";
import { PickleTuple, unpickle, type PickleGlobal, type PickleValue } from "../../formats/pickle.ts";
import { dictOps, op, pickle } from "./torch-bytes.ts";

const GLOBALS = new Map<string, PickleGlobal>(
  [
    { global: "ours.pair", call: (args: readonly PickleValue[]) => new PickleTuple([...args, "!"]) },
    { global: "ours.kind" },
  ].map((known) => [known.global, known]),
);
const read = (bytes: Uint8Array): PickleValue =>
  unpickle(bytes, "f", { globals: GLOBALS, persistent: (id) => new PickleTuple(["persistent", id]) });

function refusal(bytes: Uint8Array): string {
  try {
    read(bytes);
  } catch (error) {
    expect(error).toBeInstanceOf(PiError);
    expect((error as PiError).code).toBe("E_PICKLE");
    expect((error as PiError).message).not.toContain("\n");
    return (error as PiError).message;
  }
  return "read";
}

describe("values", () => {
  test.each<[string, string, PickleValue]>([
    ["none, true, false", "(N\x88\x89t", new PickleTuple([null, true, false])],
    ["whole numbers", "(K\x05M\x01\x02J\xff\xff\xff\xfft", new PickleTuple([5, 513, -1])],
    [
      "long numbers",
      `(\x8a\x00\x8a\x01\x80${op.long(2 ** 40 + 1)}${op.long(-3)}t`,
      new PickleTuple([0, -128, 2 ** 40 + 1, -3]),
    ],
    ["floats", "G\x3f\xf8\x00\x00\x00\x00\x00\x00", 1.5],
    ["text", `(${op.text("né")}\x8c\x01ht`, new PickleTuple(["né", "h"])],
    ["bytes", "C\x02\x00\xff", Buffer.of(0, 255)],
    ["a list", `](K\x01K\x02eK\x03a`, [1, 2, 3]],
    [
      "a dictionary",
      `${dictOps({ a: "K\x01" })}${op.text("b")}]s`,
      new Map<string, PickleValue>([
        ["a", 1],
        ["b", []],
      ]),
    ],
    ["tuples", ")K\x01\x85\x86", new PickleTuple([new PickleTuple([]), new PickleTuple([1])])],
    ["what was remembered", `]q\x00r\x01\x02\x00\x00h\x00j\x01\x02\x00\x00\x87`, new PickleTuple([[], [], []])],
    ["what protocol 4 remembered", "\x8c\x01a\x94h\x00\x86", new PickleTuple(["a", "a"])],
    ["a call of a listed function", `${op.global("ours", "pair")}(K\x01K\x02tR`, new PickleTuple([1, 2, "!"])],
    ["a listed function named as protocol 4 does", `\x8c\x04ours\x8c\x04pair\x93)R`, new PickleTuple(["!"])],
    ["a persistent id", "K\x07Q", new PickleTuple(["persistent", 7])],
    ["a dictionary's attributes, which are dropped", "}}b", new Map()],
    ["a frame", "\x95\x02\x00\x00\x00\x00\x00\x00\x00K\x01", 1],
  ])("%s", (_name, ops, value) => {
    expect(read(pickle(ops))).toEqual(value);
  });

  test("what is remembered is the same value, not a copy", () => {
    const { items } = read(pickle("]q\x00h\x00\x86")) as PickleTuple;
    expect(items[0]).toBe(items[1]);
  });
});

describe("refuses", () => {
  test.each<[string, string, RegExp]>([
    [
      "a name that is not on the list",
      `${op.global("os", "system")}(${op.text("id")}tR`,
      /refers to "os\.system", which is none/,
    ],
    ["builtins", `${op.global("builtins", "eval")}(${op.text("1")}tR`, /refers to "builtins\.eval"/],
    [
      "a list's name with something added",
      op.global("ours", "pair.__globals__"),
      /refers to "ours\.pair\.__globals__"/,
    ],
    ["a name on the list by another split", op.global("", "ours.pair"), /refers to "\.ours\.pair"/],
    ["a name of a prototype", op.global("__proto__", "constructor"), /refers to "__proto__\.constructor"/],
    ["a name that is no text", "K\x01K\x02\x93", /named by two strings/],
    ["a call of what is no function", `${op.global("ours", "kind")})R`, /calls ours\.kind, which is no function/],
    ["a call of a value", "])R", /calls a value/],
    ["a call of nothing", "N)R", /calls a value/],
    [
      "a call of a dictionary that looks like a function",
      `${dictOps({ call: "N", global: op.text("x") })})R`,
      /calls a value/,
    ],
    ["arguments that are no tuple", `${op.global("ours", "pair")}]R`, /arguments of a call to be a tuple/],
    ["state of what is no dictionary", "]}b", /no dictionary/],
    ["classic instances", "(i__main__\nC\n", /opcode 0x69 is none/],
    ["objects", "c__main__\nC\n)\x81", /refers to "__main__\.C"/],
    ["new objects of listed names", `${op.global("ours", "kind")})\x81`, /opcode 0x81/],
    ["the extension registry", "\x82\x01", /opcode 0x82/],
    ["text numbers, which protocol 0 has", "I5\n", /opcode 0x49/],
    ["numbers past 2^53", `\x8a\x08\x01\x00\x00\x00\x00\x00\x20\x00`, /integer 9007199254740993 is beyond 2\^53/],
    ["numbers of many bytes", `\x8a\xff${"a".repeat(255)}`, /at most 8 bytes, found 255/],
    ["a string that is longer than the file", `X\xff\xff\x0f\x00abc`, /needs 1048575 bytes more/],
    ["a string of 4 GiB", `X\xff\xff\xff\xff`, /at most 1048576 bytes in a string, found 4294967295/],
    ["a string of 2^64 bytes", `\x8d\xff\xff\xff\xff\xff\xff\xff\xff`, /in a string, found 18446744073709552000/],
    ["text that is not UTF-8", "\x8c\x01\xff", /not UTF-8/],
    ["a reference to nothing", "h\x05", /value 5, which was not stored/],
    ["an empty stack", "", /expected 1 values/],
    ["a stack that is not empty at the end", "NN", /end with one value/],
    ["an open mark at the end", "(", /expected 1 values/],
    ["a mark that is closed twice", "(tt", /expected a mark/],
    ["taking what is below a mark", "N(\x85", /expected 1 values/],
    ["appending below a mark", "](K\x01(e", /no list/],
    ["appending to a tuple", ")K\x01a", /no list/],
    ["an entry of a list", "]K\x01K\x01s", /no dictionary/],
    ["a key without a value", "}(K\x01u", /in pairs/],
    ["a key twice", `}(K\x01NK\x01Nu`, /two entries 1/],
    ["a tuple as key", "})Ns", /keys to be strings or numbers/],
    ["bytes after the end", "N.", /end with one value/],
  ])("%s", (_name, ops, message) => {
    expect(refusal(pickle(ops))).toMatch(message);
  });

  test("other protocols", () => {
    expect(refusal(Buffer.from("(dp0\n."))).toMatch(/protocol 2 or later/);
    expect(refusal(Buffer.from("\x80\x01N.", "latin1"))).toMatch(/protocol 2 to 5, found 1/);
    expect(refusal(Buffer.from("\x80\x06N.", "latin1"))).toMatch(/found 6/);
    expect(refusal(new Uint8Array())).toMatch(/truncated/);
  });
});

describe("bombs", () => {
  test("of marks and of values end at their limits", () => {
    expect(refusal(pickle("(".repeat(2000)))).toMatch(/nested deeper than 1000/);
    expect(refusal(pickle("N".repeat(1_000_001)))).toMatch(/more than 1000000 values on the stack/);
    expect(refusal(Buffer.alloc(40 << 20))).toMatch(/at most 33554432 bytes/);
  });

  test("of depth are values like others: nothing walks them", () => {
    expect(read(pickle(`N${"\x85".repeat(500_000)}`))).toBeInstanceOf(PickleTuple);
  });

  test("of references take no memory: 2^60 leaves are 60 pairs", () => {
    const doubled = Array.from({ length: 60 }, (_, i) => `${op.get(i)}${op.get(i)}\x86${op.put(i + 1)}`);
    expect(read(pickle(`Nr\x00\x00\x00\x00\x85${doubled.map((pair) => `${pair}\x86`).join("")}`))).toBeInstanceOf(
      PickleTuple,
    );
  });

  test("of what is remembered end at their limit", () => {
    expect(refusal(pickle(`N${"\x94".repeat(4_000_001)}`))).toMatch(/more than 4000000 values to remember/);
  });
});

/** A real pickle: the one in the file of a linear layer. */
function realPickle(): Buffer {
  const file = readFileSync(new URL("../fixtures/torch/linear.pt", import.meta.url));
  const begin = file.indexOf(Buffer.from([0x80, 2]));
  return file.subarray(begin, file.indexOf("PK", begin));
}

test("whatever the bytes, the answer is a value or a refusal", () => {
  const real = realPickle();
  for (let length = 0; length < real.length; length++) expect(refusal(real.subarray(0, length))).not.toBe("read");
  const edits = fc.array(fc.tuple(fc.nat(real.length - 1), fc.integer({ min: 0, max: 255 })), {
    minLength: 1,
    maxLength: 4,
  });
  fc.assert(
    fc.property(edits, (changes) => {
      const bytes = Buffer.from(real);
      for (const [at, value] of changes) bytes[at] = value;
      refusal(bytes);
    }),
    { numRuns: 2000 },
  );
  fc.assert(
    fc.property(
      fc.uint8Array({ maxLength: 60 }),
      (tail) => void refusal(Buffer.concat([Buffer.from([0x80, 2]), tail])),
    ),
  );
});
