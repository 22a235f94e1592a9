import { PiError } from "./errors.ts";

/**
 * Checked access to the members of a JSON value. Every throw is `code` with one line that names the file, the path of
 * the member, what was expected and what was found.
 */
export class Fields {
  readonly #members: Record<string, unknown>;
  readonly #path: string;
  readonly #file: string;
  readonly #code: string;

  constructor(value: unknown, file: string, code: string, path = "") {
    this.#path = path;
    this.#file = file;
    this.#code = code;
    if (value === null || typeof value !== "object" || Array.isArray(value)) this.#fail("", "an object", value);
    this.#members = value as Record<string, unknown>;
  }

  /** Parses `text` as a JSON object. */
  static parse(text: string, file: string, code: string): Fields {
    let value: unknown;
    try {
      value = JSON.parse(text);
    } catch (error) {
      throw new PiError(code, `${file}: not JSON: ${(error as Error).message}`);
    }
    return new Fields(value, file, code);
  }

  number(key: string, min = 0, max = Infinity): number {
    const value = this.#members[key];
    if (typeof value === "number" && value >= min && value <= max) return value;
    return this.#fail(key, max === Infinity ? `a number of at least ${min}` : `a number from ${min} to ${max}`, value);
  }

  /** A whole number that a double holds exactly. */
  integer(key: string, min = 0, max = Number.MAX_SAFE_INTEGER): number {
    const value = this.#members[key];
    if (Number.isSafeInteger(value) && (value as number) >= min && (value as number) <= max) return value as number;
    return this.#fail(key, `a whole number from ${min} to ${max}`, value);
  }

  integerOrNull(key: string, min = 0, max = Number.MAX_SAFE_INTEGER): number | null {
    return this.#members[key] === null ? null : this.integer(key, min, max);
  }

  string(key: string): string {
    const value = this.#members[key];
    return typeof value === "string" ? value : this.#fail(key, "a string", value);
  }

  boolean(key: string): boolean {
    const value = this.#members[key];
    return typeof value === "boolean" ? value : this.#fail(key, "true or false", value);
  }

  object(key: string): Fields {
    return new Fields(this.#members[key], this.#file, this.#code, this.#at(key));
  }

  objectOrNull(key: string): Fields | null {
    return this.#members[key] === null ? null : this.object(key);
  }

  /** A list of exactly `length` objects. */
  objects(key: string, length: number): Fields[] {
    const value = this.#members[key];
    if (!Array.isArray(value) || value.length !== length) {
      return this.#fail(key, `a list of ${length}`, value);
    }
    return value.map((item, i) => new Fields(item, this.#file, this.#code, `${this.#at(key)}[${i}]`));
  }

  /** A list of at most `max` objects. */
  list(key: string, max: number): Fields[] {
    const value = this.#members[key];
    if (!Array.isArray(value) || value.length > max) return this.#fail(key, `a list of at most ${max}`, value);
    return this.objects(key, value.length);
  }

  /** A list of exactly `length` lists of at most `max` objects each. */
  lists(key: string, length: number, max: number): Fields[][] {
    const value = this.#members[key];
    if (!Array.isArray(value) || value.length !== length) return this.#fail(key, `a list of ${length}`, value);
    return value.map((item: unknown, i) => {
      const at = `${this.#at(key)}[${i}]`;
      return new Fields({ [at]: item }, this.#file, this.#code).list(at, max);
    });
  }

  oneOf<T extends string>(key: string, values: readonly T[]): T {
    const found = values.find((value) => value === this.#members[key]);
    return found ?? this.#fail(key, `one of ${values.join(", ")}`, this.#members[key]);
  }

  has(key: string): boolean {
    return this.#members[key] !== undefined;
  }

  /** A list of numbers of at least `min`, at most `max`. */
  numbers(key: string, min = 0, max = Infinity): number[] {
    const value = this.#members[key];
    if (!Array.isArray(value)) return this.#fail(key, "a list of numbers", value);
    const items = new Fields({ ...value }, this.#file, this.#code, this.#at(key));
    return value.map((_, i) => items.number(String(i), min, max));
  }

  #at(key: string): string {
    return key === "" ? this.#path : this.#path === "" ? key : `${this.#path}.${key}`;
  }

  #fail(key: string, expected: string, actual: unknown): never {
    const found = Array.isArray(actual)
      ? `a list of ${actual.length}`
      : (JSON.stringify(actual) ?? "nothing").slice(0, 80);
    const where = [this.#file, this.#at(key)].filter((part) => part !== "").join(": ");
    throw new PiError(this.#code, `${where}: expected ${expected}, got ${found}`);
  }
}
