import { parquetWriteBuffer } from "hyparquet-writer";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { sha256 } from "../../io/hash.ts";
import { silentContext } from "../../io/progress.ts";
import { corpusFiles } from "../../profile/corpus-files.ts";
import { documents } from "../../profile/documents.ts";

let dir: string;
beforeEach(async () => void (dir = await mkdtemp(join(tmpdir(), "pi-corpus-"))));
afterEach(() => rm(dir, { recursive: true }));

async function put(name: string, content: string | Uint8Array): Promise<string> {
  const path = join(dir, name);
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, content);
  return path;
}

/** Where each document is, its hash and its text. */
async function read(path: string, field = "text") {
  const found: { where: string; sha256: string; text: string; pieces: string[] }[] = [];
  for (const file of await corpusFiles([path], silentContext)) {
    for await (const document of documents(file, field)) {
      const pieces: string[] = [];
      for await (const piece of document.pieces) pieces.push(piece);
      found.push({ where: document.where, sha256: document.sha256, text: pieces.join(""), pieces });
    }
  }
  return found;
}

const texts = async (path: string, field?: string) => (await read(path, field)).map(({ text }) => text);

describe("text files", () => {
  it("are one document each, in pieces that lose nothing and end where words do", async () => {
    const text = "naïve façade, 日本語 and 🙂 emoji.\n".repeat(4000) + "x".repeat(20_000) + "🙂".repeat(10_000);
    const path = await put("a.txt", text);
    const [document] = await read(path);
    expect(document).toMatchObject({ where: path, text, sha256: sha256(text) });
    const pieces = document!.pieces;
    expect(Math.max(...pieces.map((piece) => piece.length))).toBeLessThanOrEqual(8192);
    expect(pieces.slice(0, 10).every((piece) => piece.endsWith("\n"))).toBe(true);
    expect(pieces.every((piece) => !/[\uD800-\uDBFF]$/.test(piece))).toBe(true);
  });

  it("may be gzipped, begin with a byte-order mark, or be empty", async () => {
    expect(await texts(await put("a.txt.gz", gzipSync("some text")))).toEqual(["some text"]);
    expect(await texts(await put("bom.txt", "\uFEFFtext"))).toEqual(["text"]);
    expect(await texts(await put("empty.txt", ""))).toEqual([""]);
  });

  it("are refused when they are no text, with their name", async () => {
    const path = await put("a.txt", Uint8Array.of(0x61, 0xff, 0xfe, 0x62));
    await expect(read(path)).rejects.toMatchObject({ code: "E_CORPUS", message: expect.stringContaining(path) });
    const cut = await put("b.txt.gz", gzipSync("some text").subarray(0, -9));
    await expect(read(cut)).rejects.toThrow(`${cut}: expected gzipped UTF-8 text`);
  });
});

describe("JSON lines", () => {
  it("are a document each; blank lines, CRLF and exotic separators do no harm", async () => {
    const odd = "line\u2028separator and\u0085more";
    const lines = [{ text: "one" }, { text: odd, id: 2 }, { text: "" }].map((row) => JSON.stringify(row));
    const content = `${lines[0]}\r\n\n${lines[1]}\n${lines[2]}`;
    const found = await read(await put("a.jsonl", content));
    expect(found.map(({ text }) => text)).toEqual(["one", odd, ""]);
    expect(found[1]!.sha256).toBe(sha256(odd));
    expect(found[1]!.where).toBe(`${join(dir, "a.jsonl")}:3`);
    expect(await texts(await put("a.ndjson.gz", gzipSync(content)))).toEqual(["one", odd, ""]);
  });

  it("have the field that is asked for", async () => {
    const path = await put("a.jsonl", '{"body": "b", "text": "t"}\n');
    expect(await texts(path, "body")).toEqual(["b"]);
    await expect(read(path, "story")).rejects.toThrow(
      `${path}:1: expected a string in field story, found fields body, text`,
    );
  });

  it.each([
    { line: "{not json", problem: "expected a JSON object, found {not json" },
    { line: '{"text": 5}', problem: "expected a string in field text, found number" },
    { line: "[1, 2]", problem: "expected a string in field text, found fields 0, 1" },
    { line: "null", problem: "expected a string in field text, found fields (none)" },
  ])("that are wrong are named with file and line: $line", async ({ line, problem }) => {
    const path = await put("bad.jsonl", `{"text": "fine"}\n\n${line}\n`);
    await expect(read(path)).rejects.toMatchObject({ code: "E_CORPUS", message: `${path}:3: ${problem}` });
  });
});

describe("Parquet files", () => {
  const rows = Array.from({ length: 250 }, (_, i) => `row ${i} ${"日本 ".repeat(i % 7)}`);
  const table = (compressed: boolean, data: unknown[] = rows) =>
    new Uint8Array(
      parquetWriteBuffer({
        columnData: [
          { name: "id", data: data.map((_, i) => i) },
          { name: "text", data },
        ],
        compressed,
        rowGroupSize: 100,
      }),
    );

  it.each([true, false])("are a document a row, over several row groups (compressed: %s)", async (compressed) => {
    const path = await put("a.parquet", table(compressed));
    const found = await read(path);
    expect(found.map(({ text }) => text)).toEqual(rows);
    expect(found[120]).toMatchObject({ where: `${path}: row 120`, sha256: sha256(rows[120]!) });
  });

  it("are refused when column or contents do not fit", async () => {
    const path = await put("a.parquet", table(true));
    await expect(read(path, "body")).rejects.toThrow(`${path}: expected a column body, found columns id, text`);
    await expect(read(path, "id")).rejects.toThrow(`${path}: row 0: expected a string in field id, found`);
    const broken = await put("b.parquet", table(true).subarray(0, 500));
    await expect(read(broken)).rejects.toThrow(`${broken}: expected a Parquet file: `);
  });
});

describe("paths of a corpus", () => {
  const names = async (...paths: string[]) =>
    (
      await corpusFiles(
        paths.map((path) => join(dir, path)),
        silentContext,
      )
    ).map(({ name }) => name);

  beforeEach(async () => {
    const listed = ["c/b.txt", "c/a.md", "c/deep/d.jsonl.gz", "c/.hidden.txt", "c/model.safetensors", "c/x.log"];
    for (const name of listed) await put(name, gzipSync(name));
  });

  it("are files as named, and directories with everything that is text in them", async () => {
    expect(await names("c/x.log", "c")).toEqual(["x.log", "c/a.md", "c/b.txt", "c/deep/d.jsonl.gz"]);
    const [, , , file] = await corpusFiles([join(dir, "c/x.log"), join(dir, "c")], silentContext);
    expect(file).toMatchObject({
      format: "jsonl",
      gzip: true,
      bytes: 37,
      sha256: sha256(gzipSync("c/deep/d.jsonl.gz")),
    });
  });

  it("may be patterns", async () => {
    expect(await names("c/*.txt")).toEqual(["b.txt"]);
    expect(await names("c/**/?.*")).toEqual(["a.md", "b.txt", "deep/d.jsonl.gz", "x.log"]);
  });

  it.each(["nowhere", "c/*.csv", "c/deep/none-*"])("are refused when there is nothing: %s", async (path) => {
    await expect(names(path)).rejects.toMatchObject({ code: "E_CORPUS", message: expect.stringContaining(path) });
  });

  it("are refused when a directory has no text", async () => {
    await put("empty/a.bin", "x");
    await expect(names("empty")).rejects.toThrow(/empty: expected files named \.txt, .*, found none/);
  });
});
