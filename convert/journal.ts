import { open, readdir, readFile, rm, type FileHandle } from "node:fs/promises";
import { basename, join } from "node:path";

/** What had become durable at one moment of a conversion. */
export interface JournalEntry {
  /** Steps finished. */
  done: number;
  /** sha256 of the bytes read so far of the shard that the last finished step belongs to. */
  source: string;
  /** sha256 of the output tensors finished since the entry before. */
  hashes: Record<string, string>;
}

const PREFIX = ".convert-";

/**
 * An output file in the making and the record of what is finished in it. Both carry the identity of the conversion in
 * their names, so that nothing else is ever mistaken for its beginning. After a crash the entries tell which tensors are
 * safely on disk: an entry is written only after the data it speaks of was fsynced.
 */
export class PartialFile {
  readonly path: string;
  readonly file: FileHandle;
  /** What an interrupted conversion had finished; empty for a fresh start. */
  readonly finished: readonly JournalEntry[];
  readonly #journal: FileHandle;
  readonly #journalPath: string;

  private constructor(
    path: string,
    file: FileHandle,
    journalPath: string,
    journal: FileHandle,
    finished: readonly JournalEntry[],
  ) {
    this.path = path;
    this.file = file;
    this.#journalPath = journalPath;
    this.#journal = journal;
    this.finished = finished;
  }

  /** Opens what an interrupted conversion `identity` left in `dir`, or begins anew; removes what other ones left. */
  static async open(dir: string, identity: string, resume: boolean): Promise<PartialFile> {
    const path = join(dir, `${PREFIX}${identity}.partial`);
    const journalPath = join(dir, `${PREFIX}${identity}.journal`);
    const left = await readdir(dir);
    const resumable = resume && left.includes(basename(path));
    const finished = resumable ? await readEntries(journalPath) : [];
    for (const name of left) {
      const kept = finished.length > 0 && join(dir, name) === path;
      if (name.startsWith(PREFIX) && !kept) await rm(join(dir, name), { force: true });
    }
    const file = await open(path, finished.length > 0 ? "r+" : "wx+");
    const journal = await open(journalPath, "wx");
    await journal.appendFile(finished.map(toLine).join(""));
    return new PartialFile(path, file, journalPath, journal, finished);
  }

  /** Makes everything written so far durable, and then says so. */
  async record(entry: JournalEntry): Promise<void> {
    await this.file.datasync();
    await this.#journal.appendFile(toLine(entry));
    await this.#journal.sync();
  }

  /** Closes both files. Without `keep` nothing of them stays, but for what was renamed away. */
  async close(keep: boolean): Promise<void> {
    await this.file.close().catch(() => undefined);
    await this.#journal.close();
    if (keep) return;
    for (const path of [this.path, this.#journalPath]) await rm(path, { force: true });
  }
}

const toLine = (entry: JournalEntry): string => `${JSON.stringify(entry)}\n`;

/** Entries up to the first that was not written whole. */
async function readEntries(path: string): Promise<JournalEntry[]> {
  const lines = (await readFile(path, "utf8").catch(() => "")).split("\n").slice(0, -1);
  const entries: JournalEntry[] = [];
  for (const line of lines) {
    try {
      entries.push(JSON.parse(line) as JournalEntry);
    } catch {
      break;
    }
  }
  return entries;
}
