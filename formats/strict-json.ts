import { PiError } from "./errors.ts";

/** A parsed JSON value. Objects are maps, so that a key such as `__proto__` is only a key. */
export type JsonValue = null | boolean | number | string | JsonValue[] | JsonObject;
export type JsonObject = Map<string, JsonValue>;

export interface JsonLimits {
  /** Nesting of arrays and objects: hostile input must not exhaust the stack. */
  depth: number;
  /** Members of one object or array. */
  members: number;
}

const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
const SPACE = /[ \t\n\r]*/y;
// A string up to its closing quote; control characters must be escaped.
// oxlint-disable-next-line no-control-regex
const STRING = /"(?:[^"\\\u0000-\u001f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"/y;

/**
 * Parses JSON (RFC 8259) and refuses what `JSON.parse` lets through: an object with the same key twice, and integers
 * that a double cannot hold. Throws `E_JSON` with the position; `where` begins the message.
 */
export function parseStrictJson(text: string, where: string, limits: JsonLimits): JsonValue {
  let at = 0;

  const fail = (problem: string): never => {
    throw new PiError("E_JSON", `${where}: ${problem} at character ${at} of the JSON text`);
  };
  const match = (pattern: RegExp): string | undefined => {
    pattern.lastIndex = at;
    const found = pattern.exec(text)?.[0];
    if (found !== undefined) at += found.length;
    return found;
  };
  const skip = (character: string): boolean => {
    match(SPACE);
    if (text[at] !== character) return false;
    at++;
    match(SPACE);
    return true;
  };
  const expect = (character: string): void => {
    if (!skip(character)) fail(`expected "${character}", found ${found()}`);
  };
  const found = (): string => (at < text.length ? JSON.stringify(text[at]) : "the end");

  const string = (): string => {
    const raw = match(STRING) ?? fail(`expected a string, found ${found()}`);
    return raw.includes("\\") ? (JSON.parse(raw) as string) : raw.slice(1, -1);
  };
  const number = (): number => {
    const raw = match(NUMBER) ?? fail(`expected a value, found ${found()}`);
    const value = Number(raw);
    const exact = /[.eE]/.test(raw) ? Number.isFinite(value) : Number.isSafeInteger(value);
    return exact ? value : fail(`number ${raw.slice(0, 40)} is outside of what a double holds`);
  };
  const word = (): JsonValue => {
    for (const [name, value] of [
      ["true", true],
      ["false", false],
      ["null", null],
    ] as const) {
      if (text.startsWith(name, at)) {
        at += name.length;
        return value;
      }
    }
    return number();
  };
  const array = (depth: number): JsonValue[] => {
    const items: JsonValue[] = [];
    expect("[");
    if (skip("]")) return items;
    do {
      if (items.length === limits.members) fail(`more than ${limits.members} elements`);
      items.push(value(depth + 1));
    } while (skip(","));
    expect("]");
    return items;
  };
  const object = (depth: number): JsonObject => {
    const members: JsonObject = new Map();
    expect("{");
    if (skip("}")) return members;
    do {
      if (members.size === limits.members) fail(`more than ${limits.members} members`);
      const key = string();
      if (members.has(key)) fail(`duplicate key ${JSON.stringify(key)}`);
      expect(":");
      members.set(key, value(depth + 1));
    } while (skip(","));
    expect("}");
    return members;
  };
  const value = (depth: number): JsonValue => {
    if (depth > limits.depth) fail(`nested deeper than ${limits.depth}`);
    match(SPACE);
    const first = text[at];
    if (first === "{") return object(depth);
    if (first === "[") return array(depth);
    return first === '"' ? string() : word();
  };

  const result = value(1);
  match(SPACE);
  if (at < text.length) fail(`expected the end, found ${found()}`);
  return result;
}
