/** Experiments on Hugging Face folders: those on the command line, or both example models. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";

/** A file or folder in `examples/`. */
export const inExamples = (name: string): string => join(new URL("../examples/", import.meta.url).pathname, name);

/** Runs `measure` on every source, with a folder that is removed afterwards; prints a table each, then one line of JSON. */
export async function measureSources(
  bench: string,
  measure: (source: string, folder: string) => Promise<Record<string, object>>,
): Promise<void> {
  const given = process.argv.slice(2);
  const sources = given.length > 0 ? given : ["pi-tale-7m", "pi-tale-opt-1m"].map(inExamples);
  const folder = await mkdtemp(join(tmpdir(), "pi-bench-"));
  const results: Record<string, unknown> = {};
  try {
    for (const source of sources) {
      const rows = await measure(source, folder);
      console.error(basename(source));
      console.table(rows);
      results[basename(source)] = rows;
    }
    console.log(JSON.stringify({ bench, results }));
  } finally {
    await rm(folder, { recursive: true });
  }
}
