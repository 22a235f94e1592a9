import {
  Field,
  FixedSizeList,
  makeData,
  Schema,
  Uint16,
  Uint64,
  Uint8,
  type Data,
  type DataType,
  type RecordBatch,
} from "apache-arrow";
import { checkSchema, columnValues, makeBatch, metadataNumber, metadataProvenance } from "./arrow.ts";
import type { Provenance } from "./provenance.ts";

/** What a file of training samples says of itself. */
export interface SamplesHeader {
  layer: number;
  dim: number;
  nNeurons: number;
  /** A token was sampled iff its key / 2^64 is below this. */
  sampleRate: number;
  provenance: Provenance;
}

/** Rows of training samples, row-major. */
export interface Samples {
  rows: number;
  /** [rows] hash of the document and the token's place in it. */
  keys: BigUint64Array;
  /** f16 [rows, dim]: the FFN's normed input. */
  hidden: Uint16Array;
  /** u8 [rows, nNeurons]: 0 idle, else 1-255 in proportion to |act| * ||down row|| within the row. */
  contributions: Uint8Array;
}

/** Arrow schema of `samples/layer-NNN.arrow`; see docs/formats.md. */
export function samplesSchema(header: SamplesHeader): Schema {
  return new Schema(
    [
      new Field("key", new Uint64(), false),
      listField("hidden", header.dim, new Uint16()),
      listField("contribution", header.nNeurons, new Uint8()),
    ],
    new Map([
      ["pi.format", "samples"],
      ["pi.version", "1"],
      ["pi.layer", String(header.layer)],
      ["pi.sample_rate", String(header.sampleRate)],
      ["pi.provenance", JSON.stringify(header.provenance)],
    ]),
  );
}

function listField(name: string, size: number, item: DataType): Field {
  return new Field(name, new FixedSizeList(size, new Field("item", item, false)), false);
}

/** Reads a file's schema; throws `E_SCHEMA` when `path` is an Arrow file of something else. */
export function samplesHeader(schema: Schema, path: string): SamplesHeader {
  const size = (column: number) => (schema.fields[column]?.type as Partial<FixedSizeList> | undefined)?.listSize ?? 0;
  const sizes = { dim: size(1), nNeurons: size(2) };
  const probe = { ...sizes, layer: 0, sampleRate: 0, provenance: {} as Provenance };
  checkSchema(schema, samplesSchema(probe), path);
  return {
    ...sizes,
    layer: metadataNumber(schema, "pi.layer", path),
    sampleRate: metadataNumber(schema, "pi.sample_rate", path, 1),
    provenance: metadataProvenance(schema, path),
  };
}

/** `samples` as a record batch; shares their memory. */
export function encodeSamples(schema: Schema, samples: Samples): RecordBatch {
  const { rows, keys, hidden, contributions } = samples;
  const list = (column: number, data: Uint16Array | Uint8Array) => {
    const type = schema.fields[column]!.type as FixedSizeList;
    const child = makeData({ type: type.children[0]!.type as Uint16 | Uint8, length: data.length, nullCount: 0, data });
    return makeData({ type, length: rows, nullCount: 0, child });
  };
  const key = makeData({ type: new Uint64(), length: rows, nullCount: 0, data: keys });
  return makeBatch(schema, rows, [key, list(1, hidden), list(2, contributions)]);
}

/** A record batch as samples, sharing its memory; throws `E_ARROW` when a column is shorter than it should be. */
export function decodeSamples(batch: RecordBatch, header: SamplesHeader, path: string): Samples {
  const [keys, hidden, contributions] = batch.data.children;
  const values = (column: number, data: Data, size: number) => {
    const where = `${path}: column ${batch.schema.fields[column]!.name}`;
    return columnValues(data.children[0] ?? data, batch.numRows * size, where) as unknown;
  };
  return {
    rows: batch.numRows,
    keys: values(0, keys!, 1) as BigUint64Array,
    hidden: values(1, hidden!, header.dim) as Uint16Array,
    contributions: values(2, contributions!, header.nNeurons) as Uint8Array,
  };
}
