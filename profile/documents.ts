/** Corpus files as documents, read front to back; no file is ever whole in memory. */
import { createReadStream } from "node:fs";
import { createGunzip } from "node:zlib";
import { PiError, check } from "../formats/errors.ts";
import { sha256 } from "../io/hash.ts";
import type { CorpusFile } from "./corpus-files.ts";

/** One text. Its tokens are told apart from all others by `sha256`. */
export interface Document {
  /** The file, and the line or row in it. */
  where: string;
  /** Hash of the text; of the whole file where the file is one document. */
  sha256: string;
  /** The text in order; where it is cut depends on nothing but the text. */
  pieces: Iterable<string> | AsyncIterable<string>;
}

/**
 * The documents of `file`: itself (text), its lines (JSONL) or its rows (Parquet); of the latter the string `field`.
 * Pieces have to be read before the next document is asked for. Throws `E_CORPUS` naming file and line or row.
 */
export async function* documents(file: CorpusFile, field: string): AsyncGenerator<Document> {
  if (file.format === "text") {
    yield { where: file.path, sha256: file.sha256, pieces: pieces(decodedText(file)) };
    return;
  }
  const texts = file.format === "jsonl" ? jsonTexts(file, field) : parquetTexts(file, field);
  for await (const { where, text } of texts) yield { where, sha256: sha256(text), pieces: pieces([text]) };
}

interface Text {
  where: string;
  text: string;
}

/** Characters per piece: tokenisers are given no more at once, since some take longer than linear time. */
const PIECE = 8192;

/** Cuts a text behind the last line end, or else the last space, of every {@link PIECE} characters. */
async function* pieces(chunks: Iterable<string> | AsyncIterable<string>): AsyncGenerator<string> {
  let text = "";
  for await (const chunk of chunks) {
    text += chunk;
    let from = 0;
    for (; text.length - from > PIECE;) {
      const piece = text.slice(from, from + PIECE);
      const end = [piece.lastIndexOf("\n") + 1, piece.lastIndexOf(" ")].find((at) => at > 0) ?? wholeCharacters(piece);
      yield piece.slice(0, end);
      from += end;
    }
    text = text.slice(from);
  }
  if (text.length > 0) yield text;
}

/** Length without a last surrogate that waits for its other half. */
const wholeCharacters = (text: string): number => (/[\uD800-\uDBFF]$/.test(text) ? text.length - 1 : text.length);

/** The file's text, decompressed, chunk by chunk. */
async function* decodedText(file: CorpusFile): AsyncGenerator<string> {
  const decoder = new TextDecoder("utf-8", { fatal: true });
  const source = createReadStream(file.path, { highWaterMark: 1 << 18 });
  const stream = file.gzip ? source.pipe(createGunzip()) : source;
  source.on("error", (error) => stream.destroy(error));
  try {
    for await (const chunk of stream) yield decoder.decode(chunk as Buffer, { stream: true });
    yield decoder.decode();
  } catch (error) {
    const wanted = file.gzip ? "gzipped UTF-8 text" : "UTF-8 text";
    throw new PiError("E_CORPUS", `${file.path}: expected ${wanted}: ${(error as Error).message}`);
  } finally {
    source.destroy();
  }
}

/** Lines longer than this are not lines of text. */
const MAX_LINE = 1 << 28;

async function* lines(file: CorpusFile): AsyncGenerator<string> {
  let rest = "";
  for await (const chunk of decodedText(file)) {
    const parts = (rest + chunk).split("\n");
    rest = parts.pop()!;
    check(rest.length <= MAX_LINE, "E_CORPUS", `${file.path}: a line is longer than ${MAX_LINE} characters`);
    yield* parts;
  }
  yield rest;
}

async function* jsonTexts(file: CorpusFile, field: string): AsyncGenerator<Text> {
  let number = 0;
  for await (const line of lines(file)) {
    const where = `${file.path}:${++number}`;
    if (line.trim() === "") continue;
    yield { where, text: textField(parseLine(line, where), field, where) };
  }
}

function parseLine(line: string, where: string): unknown {
  try {
    return JSON.parse(line);
  } catch {
    throw new PiError("E_CORPUS", `${where}: expected a JSON object, found ${line.slice(0, 40)}`);
  }
}

function textField(row: unknown, field: string, where: string): string {
  const object = row !== null && typeof row === "object" ? (row as Record<string, unknown>) : {};
  const value = Object.hasOwn(object, field) ? object[field] : undefined;
  const found = value === undefined ? `fields ${Object.keys(object).join(", ") || "(none)"}` : typeof value;
  check(typeof value === "string", "E_CORPUS", () => `${where}: expected a string in field ${field}, found ${found}`);
  return value;
}

/** Reads one row group at a time: the unit that writers of the format keep in memory too. */
async function* parquetTexts(file: CorpusFile, field: string): AsyncGenerator<Text> {
  const { asyncBufferFromFile, parquetMetadataAsync, parquetReadObjects } = await import("hyparquet");
  const { compressors } = await import("hyparquet-compressors");
  const named = <T>(promise: Promise<T>): Promise<T> =>
    promise.catch((error: Error) => {
      throw new PiError("E_CORPUS", `${file.path}: expected a Parquet file: ${error.message}`);
    });
  const buffer = await named(asyncBufferFromFile(file.path));
  const metadata = await named(parquetMetadataAsync(buffer));
  const columns = new Set(metadata.row_groups[0]?.columns.map((column) => column.meta_data?.path_in_schema[0]));
  const found = `columns ${[...columns].join(", ") || "(none)"}`;
  check(columns.has(field), "E_CORPUS", () => `${file.path}: expected a column ${field}, found ${found}`);

  let row = 0;
  for (const group of metadata.row_groups) {
    const range = { rowStart: row, rowEnd: row + Number(group.num_rows) };
    const options = { file: buffer, metadata, columns: [field], compressors, ...range };
    for (const object of await named(parquetReadObjects(options))) {
      const where = `${file.path}: row ${row++}`;
      yield { where, text: textField(object, field, where) };
    }
  }
}
