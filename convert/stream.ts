import { createHash, type Hash } from "node:crypto";
import { tensorBytes } from "../formats/dtypes.ts";
import { check, PiError } from "../formats/errors.ts";
import { hashRange } from "../io/hash.ts";
import type { StageContext } from "../io/progress.ts";
import { readTensorBytes, type SafetensorsWriter } from "../io/safetensors-file.ts";
import { native } from "../native/index.ts";
import type { Shard } from "./checkpoint.ts";
import type { PartialFile } from "./journal.ts";
import type { Plan, PlannedOutput, Step } from "./plan.ts";

/** Source bytes between two journal entries: what an interruption costs at most, and what a flush is spread over. */
const RECORD_BYTES = 512 * 2 ** 20;

/**
 * Reads the shards once, front to back, and writes what is made of their tensors. (Bytes that tensors of torch share are
 * read for each.) Three tensors are in memory at most: one source, what it becomes, and the next source, which is read
 * meanwhile. Steps that `partial` has already are only read for the hash.
 */
export class TensorStream {
  /** sha256 of every shard that was read to its end, by name. */
  readonly shardHashes = new Map<string, string>();
  readonly #plan: Plan;
  readonly #writer: SafetensorsWriter;
  readonly #partial: PartialFile;
  readonly #context: StageContext;
  /** Room for the tensor at work and the next one, and for what becomes of one: fresh memory costs more than converting. */
  readonly #sources: readonly [Buffer, Buffer];
  readonly #output: Buffer;
  #hash: Hash = createHash("sha256");
  /** Bytes of the shard at work that are hashed: tensors may have gaps between them (torch), and may overlap. */
  #hashed = 0;
  #bytes = 0;
  #unrecorded = { bytes: 0, outputs: [] as string[] };

  constructor(plan: Plan, writer: SafetensorsWriter, partial: PartialFile, context: StageContext) {
    this.#plan = plan;
    this.#writer = writer;
    this.#partial = partial;
    this.#context = context;
    const largest = plan.steps.reduce((most, { entry }) => Math.max(most, entry.end - entry.begin), 0);
    this.#sources = [Buffer.allocUnsafeSlow(largest), Buffer.allocUnsafeSlow(largest)];
    const bytes = plan.outputs.map(({ dtype, shape }) => tensorBytes(dtype, shape));
    this.#output = Buffer.allocUnsafeSlow(bytes.reduce((most, n) => Math.max(most, n), 0));
  }

  /** Throws the signal's reason when aborted, `E_VALUE` for weights that the output type cannot hold, `E_SOURCE` when the source changed. */
  async run(): Promise<void> {
    const { steps } = this.#plan;
    const finished = this.#restore();
    let ahead = this.#read(finished);
    for (const [i, step] of steps.entries()) {
      this.#context.signal.throwIfAborted();
      if (step.shard !== steps[i - 1]?.shard) this.#beginShard();
      if (i < finished) {
        await this.#hashUpTo(step.shard, step.entry.end);
      } else {
        const source = await ahead;
        ahead = this.#read(i + 1);
        await this.#convert(step, source!);
      }
      const endsShard = step.shard !== steps[i + 1]?.shard;
      if (endsShard) await this.#hashUpTo(step.shard, step.shard.file.size);
      if (i < finished) this.#checkUnchanged(step, i);
      if (i >= finished && (endsShard || this.#unrecorded.bytes >= RECORD_BYTES)) await this.#record(i + 1);
      if (endsShard) this.shardHashes.set(step.shard.name, this.#hash.digest("hex"));
    }
  }

  /** Takes over the hashes of an interrupted conversion; returns how many steps it had finished. */
  #restore(): number {
    for (const { hashes } of this.#partial.finished) {
      for (const [name, hash] of Object.entries(hashes)) this.#writer.hashes.set(name, hash);
    }
    return this.#partial.finished.at(-1)?.done ?? 0;
  }

  /** Starts to read the tensor of step `i`, if there is one, into the buffer that step `i - 2` is done with. */
  #read(i: number): Promise<Uint8Array | undefined> {
    const step = this.#plan.steps[i];
    if (!step) return Promise.resolve(undefined);
    const bytes = readTensorBytes(step.shard.file, step.name, this.#sources[i % 2]!);
    bytes.catch(() => undefined); // a failure waits until the bytes are asked for
    return bytes;
  }

  #beginShard(): void {
    this.#hash = createHash("sha256");
    this.#hashed = 0;
  }

  /** Reads and hashes what of the shard was not yet, up to `end`. */
  async #hashUpTo({ file }: Shard, end: number): Promise<void> {
    await hashRange(this.#hash, file.path, this.#hashed, end, (n) => this.#advance(n));
    this.#hashed = Math.max(this.#hashed, end);
  }

  /** Checks that what was converted before the interruption still is what it was. */
  #checkUnchanged({ shard }: Step, i: number): void {
    const recorded = this.#partial.finished.find(({ done }) => done === i + 1);
    check(
      recorded === undefined || recorded.source === this.#digest(),
      "E_SOURCE",
      `${shard.file.path}: changed since the interrupted conversion began; run again to start afresh`,
    );
  }

  async #convert(step: Step, source: Uint8Array): Promise<void> {
    const { begin, end } = step.entry;
    await this.#hashUpTo(step.shard, begin);
    const written = this.#write(step, source); // converts on other threads while this one hashes
    const fresh = source.subarray(Math.min(source.length, this.#hashed - begin));
    this.#hash.update(fresh);
    this.#hashed = Math.max(this.#hashed, end);
    await written;
    this.#unrecorded.bytes += source.length;
    this.#unrecorded.outputs.push(...step.outputs.map(({ name }) => name));
    this.#advance(fresh.length);
  }

  async #write(step: Step, source: Uint8Array): Promise<void> {
    for (const output of step.outputs) {
      await this.#writer.write(output.name, convertOutput(step, output, source, this.#output));
    }
  }

  async #record(done: number): Promise<void> {
    const { hashes } = this.#writer;
    const outputs = this.#unrecorded.outputs.map((name) => [name, hashes.get(name)!]);
    await this.#partial.record({
      done,
      source: this.#digest(),
      hashes: Object.fromEntries(outputs) as Record<string, string>,
    });
    this.#unrecorded = { bytes: 0, outputs: [] };
  }

  #digest(): string {
    return this.#hash.copy().digest("hex");
  }

  #advance(bytes: number): void {
    this.#bytes += bytes;
    this.#context.progress({ label: "convert", done: this.#bytes, total: this.#plan.sourceBytes, unit: "bytes" });
  }
}

/** The stored bytes of one output: part of `tensor` itself, or converted in the first bytes of `into`. */
async function convertOutput(
  { shard, name }: Step,
  { source, from, dtype, shape, scales }: PlannedOutput,
  tensor: Uint8Array,
  into: Uint8Array,
): Promise<Uint8Array> {
  const cols = shape.at(-1)!;
  const rows = shape.length === 1 ? 1 : shape[0]!;
  const bytes = source.ranges ? selectRows(tensor, source.ranges, source.shape[0]!) : tensor;
  if (from === dtype && !source.transpose) return bytes;
  try {
    return await native().convertTensor(bytes, from, dtype, rows, cols, source.transpose, into, scales);
  } catch (error) {
    throw new PiError(
      "E_VALUE",
      `${shard.file.path}: tensor ${name}: cannot be stored as ${dtype}: ${(error as Error).message}`,
    );
  }
}

/** Some rows of a tensor of `rows` rows, one after the other. */
function selectRows(tensor: Uint8Array, ranges: readonly (readonly [number, number])[], rows: number): Uint8Array {
  const rowBytes = tensor.length / rows;
  const parts = ranges.map(([begin, end]) => tensor.subarray(begin * rowBytes, end * rowBytes));
  return parts.length === 1 ? parts[0]! : Buffer.concat(parts);
}
