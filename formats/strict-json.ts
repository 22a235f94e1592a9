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

/**
 * Parses JSON (RFC 8259) and refuses what `JSON.parse` lets through: an object with the same key twice, and integers
 * that a double cannot hold. Throws `E_JSON` with the position; `where` begins the message.
 */
export function parseStrictJson(text: string, where: string, limits: JsonLimits): JsonValue {
  return new Parser(text, where, limits).document();
}

const NUMBER = /-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?/y;
// A string up to its closing quote; control characters must be escaped.
// oxlint-disable-next-line no-control-regex
const STRING = /"(?:[^"\\\u0000-\u001f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"/y;
// oxlint-disable-next-line no-control-regex
const NEEDS_CARE = /[\\\u0000-\u001f]/;
const WORDS = [
  ["true", true],
  ["false", false],
  ["null", null],
] as const;

const [QUOTE, COMMA, COLON] = [0x22, 0x2c, 0x3a];
const [OPEN_ARRAY, CLOSE_ARRAY, OPEN_OBJECT, CLOSE_OBJECT] = [0x5b, 0x5d, 0x7b, 0x7d];

/** One pass over the text by character codes: headers have up to 100 MB, and a regular expression a token is slow. */
class Parser {
  readonly #text: string;
  readonly #where: string;
  readonly #limits: JsonLimits;
  #at = 0;

  constructor(text: string, where: string, limits: JsonLimits) {
    this.#text = text;
    this.#where = where;
    this.#limits = limits;
  }

  document(): JsonValue {
    const value = this.#value(1);
    this.#skipSpace();
    if (this.#at < this.#text.length) this.#fail(`expected the end, found ${this.#found()}`);
    return value;
  }

  #value(depth: number): JsonValue {
    if (depth > this.#limits.depth) this.#fail(`nested deeper than ${this.#limits.depth}`);
    this.#skipSpace();
    const first = this.#text.charCodeAt(this.#at);
    if (first === QUOTE) return this.#string();
    if (first === OPEN_OBJECT) return this.#object(depth);
    if (first === OPEN_ARRAY) return this.#array(depth);
    const word = WORDS.find(([name]) => first === name.charCodeAt(0) && this.#text.startsWith(name, this.#at));
    if (!word) return this.#number();
    this.#at += word[0].length;
    return word[1];
  }

  #object(depth: number): JsonObject {
    const members: JsonObject = new Map();
    this.#at++;
    if (this.#take(CLOSE_OBJECT)) return members;
    do {
      if (members.size === this.#limits.members) this.#fail(`more than ${this.#limits.members} members`);
      this.#skipSpace();
      const key = this.#string();
      if (members.has(key)) this.#fail(`duplicate key ${JSON.stringify(key)}`);
      this.#expect(COLON);
      members.set(key, this.#value(depth + 1));
    } while (this.#take(COMMA));
    this.#expect(CLOSE_OBJECT);
    return members;
  }

  #array(depth: number): JsonValue[] {
    const items: JsonValue[] = [];
    this.#at++;
    if (this.#take(CLOSE_ARRAY)) return items;
    do {
      if (items.length === this.#limits.members) this.#fail(`more than ${this.#limits.members} elements`);
      items.push(this.#value(depth + 1));
    } while (this.#take(COMMA));
    this.#expect(CLOSE_ARRAY);
    return items;
  }

  #string(): string {
    const end = this.#text.indexOf('"', this.#at + 1);
    const plain =
      this.#text.charCodeAt(this.#at) === QUOTE && end >= 0 ? this.#text.slice(this.#at + 1, end) : undefined;
    if (plain !== undefined && !NEEDS_CARE.test(plain)) {
      this.#at = end + 1;
      return plain;
    }
    const raw = this.#match(STRING) ?? this.#fail(`expected a string, found ${this.#found()}`);
    return JSON.parse(raw) as string;
  }

  #number(): number {
    const raw = this.#match(NUMBER) ?? this.#fail(`expected a value, found ${this.#found()}`);
    const value = Number(raw);
    const exact = Number.isSafeInteger(value) || (/[.eE]/.test(raw) && Number.isFinite(value));
    return exact ? value : this.#fail(`number ${raw.slice(0, 40)} is outside of what a double holds`);
  }

  #match(pattern: RegExp): string | undefined {
    pattern.lastIndex = this.#at;
    const raw = pattern.exec(this.#text)?.[0];
    this.#at += raw?.length ?? 0;
    return raw;
  }

  #skipSpace(): void {
    for (; ; this.#at++) {
      const code = this.#text.charCodeAt(this.#at);
      if (code !== 0x20 && code !== 0x0a && code !== 0x0d && code !== 0x09) return;
    }
  }

  #take(code: number): boolean {
    this.#skipSpace();
    if (this.#text.charCodeAt(this.#at) !== code) return false;
    this.#at++;
    return true;
  }

  #expect(code: number): void {
    if (!this.#take(code)) this.#fail(`expected "${String.fromCharCode(code)}", found ${this.#found()}`);
  }

  #found(): string {
    return this.#at < this.#text.length ? JSON.stringify(this.#text[this.#at]) : "the end";
  }

  #fail(problem: string): never {
    throw new PiError("E_JSON", `${this.#where}: ${problem} at character ${this.#at} of the JSON text`);
  }
}
