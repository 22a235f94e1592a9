import { open, readdir, readFile, rm, stat, type FileHandle } from "node:fs/promises";
import { join } from "node:path";
import type { DType } from "../formats/dtypes.ts";
import type { PredictorKind } from "../formats/predictors.ts";
import { readSafetensors, readTensorBytes, writeSafetensors } from "../io/safetensors-file.ts";
import type { TrainerState } from "../native/index.ts";
import type { OperatingPoint } from "./curve.ts";
import type { Attempts, SizedPredictor, Trial } from "./size-layer.ts";
import type { TrainingState } from "./train.ts";

/** A finished layer: its predictor's tensors in the partial file, and its points. */
export interface FinishedLayer {
  kind: PredictorKind;
  rank: number;
  bytes: number;
  points: OperatingPoint[];
  tensors: Record<string, { dtype: DType; offset: number; length: number }>;
}

/** One line of the journal: something that was computed and need not be again. `size` is the partial file's then. */
type Entry =
  | { trial: Trial; key: string }
  | { layer: FinishedLayer; key: string; size: number }
  | { measured: unknown; key: string };

const PREFIX = ".train-predictor-";

/** What a journal belongs to. */
interface Run {
  identity: string;
  /** Seconds of training that an interruption may cost, plus a pass. */
  saveSeconds: number;
}

/**
 * What an interrupted run had finished: `ID.partial` holds the tensors of finished layers, `ID.journal` says what is in
 * there, and what was tried and measured, one JSON line each, written after what it speaks of was made durable;
 * `ID.state` is the training under way. `ID.rows` (the rows it reads) and `ID.candidate` (predictors to be measured) are
 * made anew. ID stands for everything that decides the output, so nothing else is ever mistaken for its beginning.
 */
export class TrainingJournal {
  readonly #dir: string;
  readonly #identity: string;
  readonly #saveSeconds: number;
  readonly #partial: FileHandle;
  readonly #journal: FileHandle;
  readonly #trials = new Map<string, Trial>();
  readonly #layers = new Map<string, FinishedLayer>();
  readonly #measured = new Map<string, unknown>();
  #size = 0;
  #entries = 0;

  private constructor(dir: string, { identity, saveSeconds }: Run, partial: FileHandle, journal: FileHandle) {
    this.#dir = dir;
    this.#identity = identity;
    this.#partial = partial;
    this.#saveSeconds = saveSeconds;
    this.#journal = journal;
  }

  /** Opens what the interrupted run `identity` left in `dir`, or begins anew; removes what other ones left. */
  static async open(dir: string, run: Run, resume: boolean): Promise<TrainingJournal> {
    const path = (kind: string) => join(dir, `${PREFIX}${run.identity}.${kind}`);
    const entries = resume ? await readEntries(path("journal")) : [];
    const kept = resume ? [path("partial"), path("state")] : [];
    for (const name of await readdir(dir)) {
      // A state that was being written has a point more.
      const ours = name.startsWith(PREFIX) || name.startsWith(`.${PREFIX}`);
      if (ours && !kept.includes(join(dir, name))) await rm(join(dir, name), { force: true });
    }
    const partial = await open(path("partial"), "a+");
    const { size } = await partial.stat();
    const journal = await open(path("journal"), "wx");
    const opened = new TrainingJournal(dir, run, partial, journal);
    for (const entry of entries) {
      // The rest was never written, or belongs to another file.
      if ("layer" in entry && entry.size > size) break;
      await opened.#take(entry);
    }
    await partial.truncate(opened.#size);
    await journal.sync();
    return opened;
  }

  layer(key: string): FinishedLayer | undefined {
    return this.#layers.get(key);
  }

  /** Keeps a finished layer; the training that led to it is forgotten. */
  async finish(key: string, { stored, points }: SizedPredictor): Promise<FinishedLayer> {
    const tensors: FinishedLayer["tensors"] = {};
    let offset = this.#size;
    for (const [part, { dtype, bytes }] of Object.entries(stored.tensors)) {
      await this.#partial.appendFile(bytes);
      tensors[part] = { dtype, offset, length: bytes.length };
      offset += bytes.length;
    }
    await this.#partial.datasync();
    const layer = { kind: stored.kind, rank: stored.rank, bytes: stored.bytes, points, tensors };
    await this.#record({ layer, key, size: offset });
    await rm(this.path("state"), { force: true });
    return layer;
  }

  /** Stored bytes of a finished layer's tensor. */
  async tensor({ tensors }: FinishedLayer, part: string): Promise<Uint8Array> {
    const { offset, length } = tensors[part]!;
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length;) {
      const { bytesRead } = await this.#partial.read(bytes, done, length - done, offset + done);
      if (bytesRead === 0) throw new Error(`${this.path("partial")}: ends after ${offset + done} bytes`);
      done += bytesRead;
    }
    return bytes;
  }

  /** The result of `measure`, which must be JSON, or the one it had before the interruption. */
  async measured<T>(key: string, measure: () => Promise<T>): Promise<T> {
    if (this.#measured.has(key)) return this.#measured.get(key) as T;
    const measured = await measure();
    await this.#record({ measured, key });
    return measured;
  }

  /** What is remembered of sizing the layer `key`. */
  attempts(key: string): Attempts {
    return {
      tried: (rank, epochs) => this.#trials.get(trialKey(key, rank, epochs)),
      record: (trial) => this.#record({ trial, key: trialKey(key, trial.rank, trial.epochs) }),
      training: (rank, epochs) => this.#training(trialKey(key, rank, epochs)),
    };
  }

  /** Closes all files. Without `keep`, or when nothing was finished, nothing of them stays. */
  async close(keep: boolean): Promise<void> {
    await this.#partial.close();
    await this.#journal.close();
    keep &&= this.#entries > 0 || (await stat(this.path("state")).catch(() => undefined)) !== undefined;
    for (const kind of keep
      ? (["rows", "candidate"] as const)
      : (["rows", "candidate", "partial", "journal", "state"] as const)) {
      await rm(this.path(kind), { force: true });
    }
  }

  async #take(entry: Entry): Promise<void> {
    if ("trial" in entry) this.#trials.set(entry.key, entry.trial);
    else if ("measured" in entry) this.#measured.set(entry.key, entry.measured);
    else {
      this.#layers.set(entry.key, entry.layer);
      this.#size = entry.size;
    }
    this.#entries++;
    await this.#journal.appendFile(`${JSON.stringify(entry)}\n`);
  }

  async #record(entry: Entry): Promise<void> {
    await this.#take(entry);
    await this.#journal.sync();
  }

  #training(key: string): TrainingState {
    const path = this.path("state");
    let saved = performance.now();
    return {
      load: () => readState(path, key),
      save: async (epoch, state) => {
        if (performance.now() - saved < 1000 * this.#saveSeconds) return;
        await writeState(path, key, epoch, state());
        saved = performance.now();
      },
    };
  }

  /** `rows` and `candidate` are gone when the journal is closed. */
  path(kind: "partial" | "journal" | "state" | "rows" | "candidate"): string {
    return join(this.#dir, `${PREFIX}${this.#identity}.${kind}`);
  }
}

const trialKey = (layer: string, rank: number, epochs: number) => `${layer}: rank ${rank}, ${epochs} passes`;

const PARTS = ["weights", "mean", "square"] as const;

/** A trainer's state as a safetensors file: it is replaced whole, and its size and hashes are checked when it is read. */
async function writeState(path: string, key: string, epoch: number, state: TrainerState): Promise<void> {
  const tensors = PARTS.map((name) => ({ name, dtype: "f32" as const, shape: [state[name].length] }));
  await writeSafetensors(path, tensors, {
    metadata: () => ({ "pi.format": "training", "pi.state": JSON.stringify({ key, epoch, steps: state.steps }) }),
    produce: ({ name }) => {
      const { buffer, byteOffset, byteLength } = state[name as (typeof PARTS)[number]];
      return Promise.resolve(new Uint8Array(buffer, byteOffset, byteLength));
    },
  });
}

/** The state of the training `key`; undefined when there is none that can be read. */
async function readState(path: string, key: string): Promise<{ epoch: number; state: TrainerState } | undefined> {
  const file = await readSafetensors(path).catch(() => undefined);
  if (file?.metadata["pi.format"] !== "training") return undefined;
  const found = JSON.parse(file.metadata["pi.state"]!) as { key: string; epoch: number; steps: number };
  if (found.key !== key) return undefined;
  const part = async (name: string) => {
    const bytes = await readTensorBytes(file, name);
    return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  };
  const [weights, mean, square] = [await part("weights"), await part("mean"), await part("square")];
  return { epoch: found.epoch, state: { weights, mean, square, steps: found.steps } };
}

/** Entries up to the first that was not written whole. */
async function readEntries(path: string): Promise<Entry[]> {
  const lines = (await readFile(path, "utf8").catch(() => "")).split("\n").slice(0, -1);
  const entries: Entry[] = [];
  for (const line of lines) {
    try {
      entries.push(JSON.parse(line) as Entry);
    } catch {
      break;
    }
  }
  return entries;
}
