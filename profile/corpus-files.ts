/** Which files a corpus is made of, and how each of them is read. */
import { readdir, stat } from "node:fs/promises";
import { basename, dirname, join, relative, sep } from "node:path";
import { check } from "../formats/errors.ts";
import { sha256File } from "../io/hash.ts";
import type { StageContext } from "../io/progress.ts";

export type CorpusFormat = "text" | "jsonl" | "parquet";

/** Extensions that a directory is searched for; a file that is named itself is text when it has none of them. */
const FORMATS: Record<string, CorpusFormat> = {
  ".txt": "text",
  ".md": "text",
  ".jsonl": "jsonl",
  ".ndjson": "jsonl",
  ".parquet": "parquet",
};
const GZIP = ".gz";

export interface CorpusFile {
  path: string;
  /** The path as the user would know it, whatever directory the command runs in. */
  name: string;
  format: CorpusFormat;
  gzip: boolean;
  bytes: number;
  sha256: string;
}

/**
 * All files of `paths` (files, directories, patterns with `*`, `**` and `?`), those of one path sorted by name, with
 * their hashes. Throws `E_CORPUS` naming the path that is not there or holds no corpus.
 */
export async function corpusFiles(paths: readonly string[], context: StageContext): Promise<CorpusFile[]> {
  const found: { path: string; name: string; bytes: number }[] = [];
  for (const path of paths) {
    const { base, files } = await expand(path);
    for (const file of files) {
      found.push({ path: file, name: relative(base, file).split(sep).join("/"), bytes: (await stat(file)).size });
    }
  }
  const total = found.reduce((sum, file) => sum + file.bytes, 0);
  let done = 0;
  const hashed: CorpusFile[] = [];
  for (const { path, name, bytes } of found) {
    const sha256 = await sha256File(path, (n) => {
      context.signal.throwIfAborted();
      context.progress({ label: "hash corpus", done: (done += n), total, unit: "bytes" });
    });
    hashed.push({ path, name, bytes, sha256, ...formatOf(path) });
  }
  return hashed;
}

/** The files of one path, and the directory that their names count from: its parent, or where a pattern begins. */
async function expand(path: string): Promise<{ base: string; files: string[] }> {
  const info = await stat(path).catch(() => undefined);
  if (info?.isFile()) return { base: dirname(path), files: [path] };
  const pattern = info ? undefined : globPattern(path);
  check(info?.isDirectory() || pattern, "E_CORPUS", `${path}: no such file or directory`);
  const root = pattern ? dirname(`${path.split(/[*?]/)[0]!}x`) : path;
  const entries = await readdir(root, { recursive: true, withFileTypes: true }).catch(() => []);
  const files = entries
    .filter((entry) => entry.isFile() && !entry.name.startsWith("."))
    .map((entry) => join(entry.parentPath, entry.name))
    .filter((file) => (pattern ? pattern.test(file) : knownFormat(file) !== undefined));
  const wanted = pattern ? "files that match" : `files named ${Object.keys(FORMATS).join(", ")} (or with ${GZIP})`;
  check(files.length > 0, "E_CORPUS", `${path}: expected ${wanted}, found none`);
  return { base: pattern ? root : dirname(path), files: files.sort() };
}

/** `*` and `?` stay within a path segment, `**` does not. Undefined when `path` is no pattern. */
function globPattern(path: string): RegExp | undefined {
  if (!/[*?]/.test(path)) return undefined;
  const parts = join(path).split(/(\*\*\/|\*\*|\*|\?)/);
  const meanings: Record<string, string> = { "**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]" };
  return new RegExp(`^${parts.map((part) => meanings[part] ?? part.replace(/[\\^$.|+()[\]{}]/g, "\\$&")).join("")}$`);
}

function knownFormat(path: string): CorpusFormat | undefined {
  const name = basename(path, GZIP).toLowerCase();
  return Object.entries(FORMATS).find(([extension]) => name.endsWith(extension))?.[1];
}

function formatOf(path: string): Pick<CorpusFile, "format" | "gzip"> {
  return { format: knownFormat(path) ?? "text", gzip: path.endsWith(GZIP) };
}
