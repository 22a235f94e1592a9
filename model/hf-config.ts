import { PiError } from "../formats/errors.ts";

/**
 * A Hugging Face `config.json`, read key by key. Keys have moved over the years: wherever one is expected, a list of
 * names may be given, and the first that is present (and not null) counts. Every throw is `E_CONFIG` with one line that
 * names file, key, expected and actual value.
 */
export class HfConfig {
  readonly where: string;
  readonly warn: (message: string) => void;
  readonly #members: Readonly<Record<string, unknown>>;

  constructor(members: unknown, where: string, warn: (message: string) => void) {
    this.where = where;
    this.warn = warn;
    if (!isObject(members)) throw new PiError("E_CONFIG", `${where}: expected a JSON object, found ${show(members)}`);
    this.#members = members;
  }

  /** A whole number >= 1. */
  size(keys: Key, fallback?: number): number {
    return this.#read(
      keys,
      "a whole number of at least 1",
      (v): v is number => Number.isInteger(v) && (v as number) >= 1,
      fallback,
    );
  }

  number(keys: Key, fallback?: number): number {
    return this.#read(keys, "a number", (v): v is number => typeof v === "number" && Number.isFinite(v), fallback);
  }

  flag(keys: Key, fallback?: boolean): boolean {
    return this.#read(keys, "true or false", (v): v is boolean => typeof v === "boolean", fallback);
  }

  text(keys: Key, fallback?: string): string {
    return this.#read(keys, "a string", (v): v is string => typeof v === "string", fallback);
  }

  /** The value that a table has for a text; anything not in the table is refused with the list of what is supported. */
  choice<T>(keys: Key, table: Readonly<Record<string, T>>, fallback?: string): T {
    const key = this.text(keys, fallback);
    if (Object.hasOwn(table, key)) return table[key]!;
    return this.fail(keys, Object.keys(table).join(", "), key);
  }

  /** Refuses a variant of the architecture that the engine does not have. */
  require(keys: Key, expected: unknown, fallback: unknown = expected): void {
    const actual = this.get(keys) ?? fallback;
    if (actual !== expected) this.fail(keys, show(expected), actual);
  }

  /** A nested object, or null where there is none. */
  object(key: string): HfConfig | null {
    const value = this.get(key);
    return value === undefined ? null : new HfConfig(value, `${this.where}: ${key}`, this.warn);
  }

  /** Token ids below `vocabSize`, given as a number, a list or not at all; others are left out with a warning. */
  tokens(key: string, vocabSize: number): number[] {
    const value = this.get(key) ?? [];
    const ids: unknown[] = Array.isArray(value) ? value : [value];
    return ids.filter((id): id is number => {
      if (!Number.isInteger(id)) this.fail(key, "a token id or a list of them", value);
      const known = (id as number) >= 0 && (id as number) < vocabSize;
      if (!known)
        this.warn(`${this.where}: ${key} ${String(id)} is outside of the vocabulary of ${vocabSize} and ignored`);
      return known;
    });
  }

  /** Whether the key is present and not null. */
  has(key: string): boolean {
    return this.get(key) !== undefined;
  }

  /** Whether the key is present, saying "none". */
  isNull(key: string): boolean {
    return this.#members[key] === null;
  }

  /** The raw value of the first key that is present and not null. */
  get(keys: Key): unknown {
    const key = names(keys).find((name) => (this.#members[name] ?? null) !== null);
    return key === undefined ? undefined : this.#members[key];
  }

  fail(keys: Key, expected: string, actual: unknown): never {
    throw new PiError(
      "E_CONFIG",
      `${this.where}: ${names(keys).join(" or ")}: expected ${expected}, found ${show(actual)}`,
    );
  }

  #read<T>(keys: Key, expected: string, valid: (value: unknown) => value is T, fallback: T | undefined): T {
    const value = this.get(keys) ?? fallback;
    return valid(value) ? value : this.fail(keys, expected, value);
  }
}

/** A key, or the names it has had. */
type Key = string | readonly string[];

const names = (keys: Key): readonly string[] => (typeof keys === "string" ? [keys] : keys);

const isObject = (value: unknown): value is Record<string, unknown> =>
  value !== null && typeof value === "object" && !Array.isArray(value);

const show = (value: unknown): string => (JSON.stringify(value) ?? "nothing").slice(0, 100);
