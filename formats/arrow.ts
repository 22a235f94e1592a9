import { makeData, RecordBatch, Struct, type Data, type Schema } from "apache-arrow";
import { check, PiError } from "./errors.ts";
import { parseProvenance, type Provenance } from "./provenance.ts";

/** An Arrow IPC file starts and ends with this; the footer's length (i32) stands before the last one. */
const MAGIC = "ARROW1";

/** Bytes that {@link checkArrowEnds} wants from either end of a file. */
export const ARROW_END_BYTES = 10;

/**
 * Refuses what is no whole Arrow IPC file, before the library reads it: it takes a truncated file for one with a
 * broken footer and fails in ways that say nothing. `head` and `tail` are the file's first and last
 * {@link ARROW_END_BYTES} bytes (fewer when it is shorter), `size` its bytes. Throws `E_ARROW`.
 */
export function checkArrowEnds(head: Uint8Array, tail: Uint8Array, size: number, path: string): void {
  const start = latin1(head.subarray(0, MAGIC.length));
  check(
    start === MAGIC,
    "E_ARROW",
    () => `${path}: expected an Arrow file (starting with ${MAGIC}), found ${show(start)}`,
  );
  const end = latin1(tail.subarray(-MAGIC.length));
  check(size > 2 * ARROW_END_BYTES && end === MAGIC, "E_ARROW", () => {
    return `${path}: truncated: expected ${MAGIC} at the end, found ${show(end)} after ${size} bytes`;
  });
  const footer = new DataView(tail.buffer, tail.byteOffset + tail.length - ARROW_END_BYTES).getInt32(0, true);
  check(footer > 0 && footer <= size - 2 * ARROW_END_BYTES, "E_ARROW", () => {
    return `${path}: footer of ${footer} bytes does not fit in a file of ${size} bytes`;
  });
}

const latin1 = (bytes: Uint8Array) => Buffer.from(bytes).toString("latin1");
const show = (text: string) => JSON.stringify(text.slice(0, MAGIC.length));

/** Runs `read`, turning whatever the library throws over damaged bytes into `E_ARROW` with the file's name. */
export function readingArrow<T>(path: string, read: () => T): T {
  try {
    return read();
  } catch (error) {
    throw arrowError(path, error);
  }
}

/** `error` as a `PiError` about `path`; one that is already one passes through. */
export function arrowError(path: string, error: unknown): PiError {
  if (error instanceof PiError) return error;
  const why = error instanceof Error ? error.message : String(error);
  return new PiError("E_ARROW", `${path}: not a readable Arrow file: ${why}`);
}

/** Throws `E_SCHEMA` unless the file's columns and `pi.format` are those of `expected` (other metadata is free). */
export function checkSchema(actual: Schema | null | undefined, expected: Schema, path: string): void {
  check(actual, "E_ARROW", `${path}: no schema`);
  const [want, have] = [expected, actual].map((schema) => schema.metadata.get("pi.format") ?? "(none)");
  check(have === want, "E_SCHEMA", () => `${path}: expected pi.format ${want}, found ${have}`);
  check(columns(actual) === columns(expected), "E_SCHEMA", () => {
    return `${path}: expected columns ${columns(expected)}, found ${columns(actual)}`;
  });
}

const columns = (schema: Schema) => schema.fields.map((field) => `${field.name}: ${String(field.type)}`).join(", ");

/** A metadata value; throws `E_SCHEMA` when it is absent. */
export function metadataText(schema: Schema, key: string, path: string): string {
  const text = schema.metadata.get(key);
  check(text !== undefined, "E_SCHEMA", () => `${path}: metadata ${key} is missing`);
  return text;
}

/** A metadata value that is a number in `[0, max]`; throws `E_SCHEMA`. */
export function metadataNumber(schema: Schema, key: string, path: string, max = Number.MAX_SAFE_INTEGER): number {
  const text = metadataText(schema, key, path);
  const value = text.trim() === "" ? NaN : Number(text);
  check(value >= 0 && value <= max, "E_SCHEMA", () => `${path}: expected ${key} between 0 and ${max}, found ${text}`);
  return value;
}

/** A metadata value that is JSON; throws `E_SCHEMA`. */
export function metadataJson(schema: Schema, key: string, path: string): unknown {
  const text = metadataText(schema, key, path);
  try {
    return JSON.parse(text);
  } catch {
    throw new PiError("E_SCHEMA", `${path}: expected JSON in metadata ${key}, found ${text.slice(0, 40)}`);
  }
}

/** `pi.provenance`; throws `E_SCHEMA`. */
export function metadataProvenance(schema: Schema, path: string): Provenance {
  return parseProvenance(schema.metadata.get("pi.provenance"), path, "E_SCHEMA");
}

/** A batch of `rows` rows of `schema`, one `Data` a column, none null. */
export function makeBatch(schema: Schema, rows: number, children: Data[]): RecordBatch {
  return new RecordBatch(schema, makeData({ type: new Struct(schema.fields), length: rows, nullCount: 0, children }));
}

/** The `length` values of a column without nulls; the library's own view includes padding. Throws `E_ARROW`. */
export function columnValues(data: Data, length: number, where: string): Data["values"] {
  const found = Math.min(data.length, data.values.length as number) - data.nullCount;
  check(data.length === length && found === length, "E_ARROW", `${where}: expected ${length} values, found ${found}`);
  return data.values.subarray(0, length);
}
