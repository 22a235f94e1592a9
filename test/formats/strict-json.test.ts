import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { parseStrictJson, type JsonValue } from "../../formats/strict-json.ts";

const LIMITS = { depth: 8, members: 100 };
const parse = (text: string): JsonValue => parseStrictJson(text, "x", LIMITS);

/** Maps as plain objects, to compare with JSON.parse. */
function plain(value: JsonValue): unknown {
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, member]) => [key, plain(member)]));
  return Array.isArray(value) ? value.map(plain) : value;
}

test("agrees with JSON.parse on whatever JSON.stringify writes", () => {
  const limits = { depth: 50, members: 1000 };
  fc.assert(
    fc.property(fc.jsonValue({ maxDepth: 5 }), fc.constantFrom(0, 2), (value, indent) => {
      const text = JSON.stringify(value, null, indent);
      fc.pre(!/\d{16}/.test(text)); // integers that a double does not hold are refused, see below
      expect(plain(parseStrictJson(text, "x", limits))).toEqual(JSON.parse(text));
    }),
  );
});

test("accepts and refuses the same texts as JSON.parse, but for keys and integers", () => {
  fc.assert(
    fc.property(
      fc.string({ unit: fc.constantFrom(...'{}[],:"\\ \n019-+.eEtruefalsn\u0001u'), maxLength: 12 }),
      (text) => {
        let expected: unknown;
        try {
          expected = JSON.parse(text);
        } catch {
          expect(() => parse(text)).toThrow(/at character/);
          return;
        }
        fc.pre(!/\d{16}|[eE]\+?\d\d/.test(text)); // the numbers that we refuse
        fc.pre(JSON.stringify(expected).length >= JSON.stringify(JSON.parse(text)).length);
        if (!/"[^"]*"\s*:.*"[^"]*"\s*:/s.test(text)) expect(plain(parse(text))).toEqual(expected);
      },
    ),
    { numRuns: 2000 },
  );
});

describe("refuses what JSON.parse lets through", () => {
  test.each([
    ['{"a":1,"a":2}', /duplicate key "a"/],
    ['{"b":{"c":[{"a":1,"\\u0061":2}]}}', /duplicate key "a"/],
    ['{"__proto__":1,"__proto__":2}', /duplicate key "__proto__"/],
    ["9007199254740993", /outside of what a double holds/],
    ["-9007199254740992", /outside/],
    ["1e999", /outside/],
  ])("%s", (text, message) => {
    expect(() => parse(text)).toThrow(message);
  });
});

test("a key such as __proto__ is only a key", () => {
  const value = parse('{"__proto__":{"x":1},"constructor":2}') as Map<string, JsonValue>;
  expect(value.get("constructor")).toBe(2);
  expect(Object.getPrototypeOf(value)).toBe(Map.prototype);
});

test("limits depth and members", () => {
  expect(() => parse("[".repeat(100_000))).toThrow(/nested deeper than 8/);
  expect(() => parse('{"a":'.repeat(100_000))).toThrow(/nested deeper than 8/);
  expect(() => parse(`[${"0,".repeat(100)}0]`)).toThrow(/more than 100 elements/);
  const members = Array.from({ length: 101 }, (_, i) => `"${i}":0`);
  expect(() => parse(`{${members.join(",")}}`)).toThrow(/more than 100 members/);
});
