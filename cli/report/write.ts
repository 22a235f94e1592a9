import { open } from "node:fs/promises";
import { check, PiError } from "../../formats/errors.ts";
import { writeAtomic } from "../../io/atomic-file.ts";
import type { Contents } from "./contents.ts";
import { makeReport, type Report } from "./page.ts";

/** What every page begins with. */
const START = "<!doctype html>";

/**
 * Writes the page about `contents` to `path`, all or nothing. Throws `E_REPORT` when something stands there that is no
 * page, so that no model is replaced by a picture of it, or when the file cannot be written.
 */
export async function writeReport(path: string, contents: Contents): Promise<Report> {
  const found = await startOf(path);
  check(
    found === undefined || found.toLowerCase() === START,
    "E_REPORT",
    `${path}: expected no file yet or an HTML page to replace, found another file`,
  );
  const report = makeReport(contents);
  await writeAtomic(path, (file) => file.writeFile(report.html)).catch((error: NodeJS.ErrnoException) => {
    throw new PiError("E_REPORT", `${path}: expected to write a page here, found ${error.code ?? error.message}`);
  });
  return report;
}

/** The first characters of a file, as many as a page begins with; undefined where there is none. */
async function startOf(path: string): Promise<string | undefined> {
  const file = await open(path, "r").catch((error: NodeJS.ErrnoException) => {
    if (error.code === "ENOENT") return undefined;
    throw new PiError("E_REPORT", `${path}: expected no file yet or an HTML page to replace, found ${error.code}`);
  });
  if (!file) return undefined;
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(START.length), 0, START.length, 0);
    return buffer.toString("latin1", 0, bytesRead);
  } catch (error) {
    throw new PiError(
      "E_REPORT",
      `${path}: expected an HTML page to replace, found ${(error as NodeJS.ErrnoException).code}`,
    );
  } finally {
    await file.close();
  }
}
