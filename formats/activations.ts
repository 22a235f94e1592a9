import {
  Field,
  Int32,
  makeData,
  RecordBatchFileWriter,
  RecordBatchReader,
  Schema,
  Uint64,
  type Data,
  type RecordBatch,
  type RecordBatchFileReader,
} from "apache-arrow";
import { createHash } from "node:crypto";
import {
  ARROW_END_BYTES,
  checkArrowEnds,
  checkSchema,
  columnValues,
  makeBatch,
  metadataJson,
  metadataNumber,
  metadataProvenance,
  metadataText,
  readingArrow,
} from "./arrow.ts";
import { check } from "./errors.ts";
import { provenance, type Provenance } from "./provenance.ts";

/** A text that was profiled: `tokens` counts all of it that was read, held-out windows included. */
export interface Corpus {
  name: string;
  bytes: number;
  sha256: string;
  tokens: number;
}

/** Sums over the profiled rows of one layer, one entry a neuron; `magnitude` and `contribution` in units of 2^-20. */
export interface LayerActivations {
  count: BigUint64Array;
  magnitude: BigUint64Array;
  contribution: BigUint64Array;
}

/** `activations.arrow` in memory; see docs/formats.md. */
export interface Activations {
  layers: LayerActivations[];
  nNeurons: number;
  /** Rows the counts sum over. */
  tokens: number;
  heldoutTokens: number;
  /** Share of the profiled rows that were sampled, in [0, 1]. */
  sampleRate: number;
  corpora: Corpus[];
  provenance: Provenance;
  /** Of the file this was decoded from: what later stages quote as input `activations`. */
  sha256?: string;
}

const SUMS = ["count", "magnitude", "contribution"] as const;

function schemaOf(
  a: Pick<Activations, "tokens" | "heldoutTokens" | "sampleRate" | "corpora" | "provenance">,
  checksum: string,
): Schema {
  return new Schema(
    [
      new Field("layer", new Int32(), false),
      new Field("neuron", new Int32(), false),
      ...SUMS.map((name) => new Field(name, new Uint64(), false)),
    ],
    new Map([
      ["pi.format", "activations"],
      ["pi.version", "1"],
      ["pi.tokens", String(a.tokens)],
      ["pi.heldout_tokens", String(a.heldoutTokens)],
      ["pi.sample_rate", String(a.sampleRate)],
      ["pi.corpora", JSON.stringify(a.corpora)],
      ["pi.checksum", checksum],
      ["pi.provenance", JSON.stringify(a.provenance)],
    ]),
  );
}

const EMPTY = { tokens: 0, heldoutTokens: 0, sampleRate: 0, corpora: [], provenance: provenance("profile", {}, {}) };

/** Bytes of `activations.arrow`: one record batch a layer. Equal values give equal bytes. */
export function encodeActivations(a: Activations): Uint8Array {
  const schema = schemaOf(a, checksumOf(a.layers));
  const neuron = Int32Array.from({ length: a.nNeurons }, (_, i) => i);
  const int32 = (data: Int32Array) => makeData({ type: new Int32(), length: a.nNeurons, nullCount: 0, data });
  const uint64 = (data: BigUint64Array) => makeData({ type: new Uint64(), length: a.nNeurons, nullCount: 0, data });
  const writer = new RecordBatchFileWriter().reset(undefined, schema);
  for (const [index, layer] of a.layers.entries()) {
    const columns: Data[] = [int32(new Int32Array(a.nNeurons).fill(index)), int32(neuron)];
    writer.write(makeBatch(schema, a.nNeurons, [...columns, ...SUMS.map((name) => uint64(layer[name]))]));
  }
  return writer.finish().toUint8Array(true);
}

/**
 * Reads the bytes of `path`. Throws `E_ARROW` or `E_CHECKSUM` when they are damaged or truncated, `E_SCHEMA` when
 * they are an Arrow file of something else, all naming `path`, what was expected and what was found.
 */
export function decodeActivations(bytes: Uint8Array, path: string): Activations {
  checkArrowEnds(bytes.subarray(0, ARROW_END_BYTES), bytes.subarray(-ARROW_END_BYTES), bytes.length, path);
  return readingArrow(path, () => {
    const reader = RecordBatchReader.from(bytes).open();
    const { schema } = reader;
    checkSchema(schema, schemaOf(EMPTY, ""), path);
    const version = metadataNumber(schema, "pi.version", path);
    check(version === 1, "E_SCHEMA", `${path}: expected pi.version 1, found ${version}`);
    const tokens = metadataNumber(schema, "pi.tokens", path);
    const batches = recordBatches(reader as RecordBatchFileReader, path);
    const layers = batches.map((batch, index) => decodeLayer(batch, index, batches[0]!.numRows, tokens, path));
    const [expected, actual] = [metadataText(schema, "pi.checksum", path), checksumOf(layers)];
    check(
      actual === expected,
      "E_CHECKSUM",
      `${path}: counts are damaged: expected sha256 ${expected}, found ${actual}`,
    );
    return {
      layers,
      nNeurons: batches[0]!.numRows,
      tokens,
      heldoutTokens: metadataNumber(schema, "pi.heldout_tokens", path),
      sampleRate: metadataNumber(schema, "pi.sample_rate", path, 1),
      corpora: metadataJson(schema, "pi.corpora", path) as Corpus[],
      provenance: metadataProvenance(schema, path),
      sha256: sha256(bytes),
    };
  });
}

/** One batch a layer. The library's own iteration does not end on some damaged files. */
function recordBatches(reader: RecordBatchFileReader, path: string): RecordBatch[] {
  const batches: RecordBatch[] = [];
  for (let index = 0; index < reader.numRecordBatches; index++) {
    const batch = reader.readRecordBatch(index);
    check(batch, "E_ARROW", `${path}: record batch ${index} of ${reader.numRecordBatches} is missing`);
    batches.push(batch);
  }
  check(batches.length > 0, "E_SCHEMA", `${path}: expected at least one layer, found none`);
  return batches;
}

function decodeLayer(
  batch: RecordBatch,
  index: number,
  nNeurons: number,
  tokens: number,
  path: string,
): LayerActivations {
  const where = `${path}: layer ${index}`;
  check(
    batch.numRows === nNeurons,
    "E_SCHEMA",
    `${where}: expected ${nNeurons} neurons as in layer 0, found ${batch.numRows}`,
  );
  const column = <T>(name: string) => {
    return columnValues(batch.getChild(name)!.data[0]!, nNeurons, `${where}: column ${name}`) as T;
  };
  const [layers, neurons] = [column<Int32Array>("layer"), column<Int32Array>("neuron")];
  const stray = neurons.findIndex((neuron, i) => neuron !== i || layers[i] !== index);
  check(stray < 0, "E_SCHEMA", () => {
    return `${where}: expected row ${stray} to be neuron ${stray}, found layer ${layers[stray]} neuron ${neurons[stray]}`;
  });
  const [count, magnitude, contribution] = SUMS.map((name) => column<BigUint64Array>(name));
  const impossible = count!.findIndex((n) => n > BigInt(tokens));
  check(impossible < 0, "E_SCHEMA", () => {
    return `${where}: neuron ${impossible}: expected a count of at most ${tokens} tokens, found ${count![impossible]}`;
  });
  return { count: count!, magnitude: magnitude!, contribution: contribution! };
}

/**
 * The activations of the concatenated corpora of `parts` (shards, machines, days): all sums add. The sample rate is the
 * lowest of the parts; samples above it have to be dropped. `names` are for errors: throws `E_MISMATCH` naming both
 * sides unless the parts are of one model and were profiled with the same options.
 */
export function mergeActivations(parts: Activations[], names = parts.map((_, i) => `part ${i + 1}`)): Activations {
  const first = parts[0];
  check(first, "E_MERGE", "expected at least one file to merge, found none");
  parts.forEach((part, i) => checkMergeable(part, names[i]!, first, names[0]!));
  const sum = (of: (part: Activations) => number) => parts.reduce((total, part) => total + of(part), 0);
  const merged = {
    layers: first.layers.map((_, layer) => addLayers(parts.map((part) => part.layers[layer]!))),
    nNeurons: first.nNeurons,
    tokens: sum((part) => part.tokens),
    heldoutTokens: sum((part) => part.heldoutTokens),
    sampleRate: Math.min(...parts.map((part) => part.sampleRate)),
    corpora: mergeCorpora(parts.flatMap((part) => part.corpora)),
  };
  const hashes = parts.map((part, i) => [`activations:${i}`, part.sha256 ?? sha256(encodeActivations(part))] as const);
  const inputs = { model: first.provenance.inputs["model"] ?? "", ...Object.fromEntries(hashes) };
  return { ...merged, provenance: provenance("profile", { ...mergeOptions(first), merged: parts.length }, inputs) };
}

/** The options that decide what a token's row looks like and which rows are sampled or held out. */
function mergeOptions({ provenance: { options } }: Activations): Record<string, unknown> {
  return { window: options["window"], seed: options["seed"] };
}

function checkMergeable(part: Activations, name: string, first: Activations, firstName: string): void {
  const facts = (a: Activations) => ({
    model: a.provenance.inputs["model"]?.slice(0, 12),
    layers: a.layers.length,
    neurons: a.nNeurons,
    ...mergeOptions(a),
  });
  const expected = Object.entries(facts(first));
  for (const [i, [what, actual]] of Object.entries(facts(part)).entries()) {
    const want = expected[i]![1];
    check(actual === want, "E_MISMATCH", `${name}: expected ${what} ${want} as in ${firstName}, found ${actual}`);
  }
}

function addLayers(layers: LayerActivations[]): LayerActivations {
  const add = (name: (typeof SUMS)[number]) => {
    const total = layers[0]![name].slice();
    for (const layer of layers.slice(1)) layer[name].forEach((value, i) => (total[i]! += value));
    return total;
  };
  return { count: add("count"), magnitude: add("magnitude"), contribution: add("contribution") };
}

/** Shards of one corpus become one entry again. */
function mergeCorpora(corpora: Corpus[]): Corpus[] {
  const merged = new Map<string, Corpus>();
  for (const corpus of corpora) {
    const key = `${corpus.sha256} ${corpus.name}`;
    const seen = merged.get(key);
    merged.set(key, { ...corpus, tokens: corpus.tokens + (seen?.tokens ?? 0) });
  }
  return [...merged.values()];
}

const sha256 = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** sha256 of all sums, layer by layer. */
function checksumOf(layers: LayerActivations[]): string {
  const hash = createHash("sha256");
  for (const layer of layers) for (const name of SUMS) hash.update(layer[name]);
  return hash.digest("hex");
}
