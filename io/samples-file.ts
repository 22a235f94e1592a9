import {
  AsyncByteQueue,
  RecordBatchFileWriter,
  RecordBatchReader,
  type AsyncRecordBatchFileReader,
} from "apache-arrow";
import { open, type FileHandle } from "node:fs/promises";
import { ARROW_END_BYTES, arrowError, checkArrowEnds, metadataNumber } from "../formats/arrow.ts";
import { check } from "../formats/errors.ts";
import {
  decodeSamples,
  encodeSamples,
  samplesHeader,
  samplesSchema,
  type Samples,
  type SamplesHeader,
} from "../formats/samples.ts";

/** Bytes of rows that a writer gathers before it writes a record batch; its memory is about twice this. */
const BATCH_BYTES = 1 << 20;

/** Metadata: rows of the file. The only schema in a file is the footer's, so it can tell what was written before it. */
const ROWS = "pi.rows";

/** Takes what the Arrow writer produces until it is written to the file; the library's own queue has no bound. */
class Chunks extends AsyncByteQueue {
  private pending: Uint8Array[] = [];
  override write(chunk: Uint8Array): void {
    this.pending.push(chunk);
  }
  take(): Uint8Array[] {
    const chunks = this.pending;
    this.pending = [];
    return chunks;
  }
}

/** Streams `samples/layer-NNN.arrow` into a new file, batch by batch. Made by {@link createSamples}. */
export class SamplesWriter {
  private readonly file: FileHandle;
  private readonly header: SamplesHeader;
  private readonly chunks = new Chunks();
  private readonly arrow: RecordBatchFileWriter;
  private readonly schema: ReturnType<typeof samplesSchema>;
  private readonly batchRows: number;
  private batch: Samples;
  private rows = 0;

  constructor(file: FileHandle, header: SamplesHeader) {
    this.file = file;
    this.header = header;
    this.schema = samplesSchema(header);
    this.arrow = new RecordBatchFileWriter().reset(this.chunks, this.schema);
    this.batchRows = Math.max(1, Math.floor(BATCH_BYTES / (8 + 2 * header.dim + header.nNeurons)));
    this.batch = emptyBatch(this.batchRows, header);
  }

  /** Appends rows; the arrays may be reused once the promise settles. How rows are grouped leaves no trace in the file. */
  async append(samples: Samples): Promise<void> {
    const { dim, nNeurons } = this.header;
    for (let from = 0; from < samples.rows;) {
      const to = Math.min(samples.rows, from + this.batchRows - this.batch.rows);
      this.batch.keys.set(samples.keys.subarray(from, to), this.batch.rows);
      this.batch.hidden.set(samples.hidden.subarray(from * dim, to * dim), this.batch.rows * dim);
      this.batch.contributions.set(
        samples.contributions.subarray(from * nNeurons, to * nNeurons),
        this.batch.rows * nNeurons,
      );
      this.batch.rows += to - from;
      from = to;
      if (this.batch.rows === this.batchRows) await this.flush();
    }
  }

  /** Writes the footer, makes the file durable and closes it. */
  async finish(): Promise<void> {
    await this.flush();
    this.schema.metadata.set(ROWS, String(this.rows));
    this.arrow.finish();
    await this.drain();
    await this.file.sync();
    await this.file.close();
  }

  /** Closes the file as it is: not readable, unless it was finished. */
  async abort(): Promise<void> {
    await this.file.close();
  }

  private async flush(): Promise<void> {
    if (this.batch.rows > 0) this.arrow.write(encodeSamples(this.schema, firstRows(this.batch, this.header)));
    await this.drain();
    this.rows += this.batch.rows;
    this.batch.rows = 0;
  }

  private async drain(): Promise<void> {
    const chunks = this.chunks.take();
    await this.file.appendFile(Buffer.concat(chunks));
  }
}

/** A writer of the new file `path`; the caller moves it into place once {@link SamplesWriter.finish} returned. */
export async function createSamples(path: string, header: SamplesHeader): Promise<SamplesWriter> {
  return new SamplesWriter(await open(path, "wx"), header);
}

function emptyBatch(rows: number, { dim, nNeurons }: SamplesHeader): Samples {
  return {
    rows: 0,
    keys: new BigUint64Array(rows),
    hidden: new Uint16Array(rows * dim),
    contributions: new Uint8Array(rows * nNeurons),
  };
}

function firstRows({ rows, keys, hidden, contributions }: Samples, { dim, nNeurons }: SamplesHeader): Samples {
  return {
    rows,
    keys: keys.subarray(0, rows),
    hidden: hidden.subarray(0, rows * dim),
    contributions: contributions.subarray(0, rows * nNeurons),
  };
}

/** An open file of samples, of which one record batch is in memory at a time. Made by {@link openSamples}. */
export class SamplesReader {
  readonly path: string;
  readonly header: SamplesHeader;
  readonly rows: number;
  readonly batches: number;
  private readonly file: FileHandle;
  private readonly arrow: AsyncRecordBatchFileReader;

  constructor(path: string, file: FileHandle, arrow: AsyncRecordBatchFileReader) {
    this.path = path;
    this.file = file;
    this.arrow = arrow;
    this.header = samplesHeader(arrow.schema, path);
    this.rows = metadataNumber(arrow.schema, ROWS, path);
    this.batches = arrow.numRecordBatches;
  }

  /** Record batch `index` in `[0, batches)`. Throws `E_ARROW` when it is damaged. */
  async read(index: number): Promise<Samples> {
    try {
      const batch = await this.arrow.readRecordBatch(index);
      check(batch, "E_ARROW", `${this.path}: record batch ${index} of ${this.batches} is missing`);
      return decodeSamples(batch, this.header, this.path);
    } catch (error) {
      throw arrowError(this.path, error);
    }
  }

  async close(): Promise<void> {
    await this.file.close();
  }
}

/** Opens `path`; throws `E_ARROW` when it is truncated or damaged, `E_SCHEMA` when it holds something else. */
export async function openSamples(path: string): Promise<SamplesReader> {
  const file = await open(path, "r");
  try {
    const { size } = await file.stat();
    const ends = Math.min(size, ARROW_END_BYTES);
    checkArrowEnds(await bytesAt(file, 0, ends), await bytesAt(file, size - ends, ends), size, path);
    const arrow = (await RecordBatchReader.from(file)) as AsyncRecordBatchFileReader;
    await arrow.open();
    return new SamplesReader(path, file, arrow);
  } catch (error) {
    await file.close();
    throw arrowError(path, error);
  }
}

async function bytesAt(file: FileHandle, position: number, length: number): Promise<Uint8Array> {
  const { bytesRead, buffer } = await file.read(new Uint8Array(length), 0, length, position);
  return buffer.subarray(0, bytesRead);
}

/** Every batch of `path` in turn. Throws what {@link openSamples} and {@link SamplesReader.read} throw. */
export async function* readSamples(path: string): AsyncGenerator<Samples> {
  const reader = await openSamples(path);
  try {
    let rows = 0;
    for (let index = 0; index < reader.batches; index++) {
      const batch = await reader.read(index);
      rows += batch.rows;
      yield batch;
    }
    check(rows === reader.rows, "E_ARROW", `${path}: expected ${reader.rows} rows, found ${rows}`);
  } finally {
    await reader.close();
  }
}
