import { open, rm } from "node:fs/promises";
import { check } from "../formats/errors.ts";
import { checkSameInput } from "../formats/provenance.ts";
import type { Samples } from "../formats/samples.ts";
import { openSamples, readSamples } from "../io/samples-file.ts";
import { KeyedRows, type Rows, type RowShape } from "./keyed-rows.ts";

/** One layer's samples: what a predictor learns from, a chunk at a time, and what it is measured on. */
export interface LayerSamples extends RowShape {
  /** Rows to calibrate and measure on; never learnt from. */
  heldout: Rows;
  /** Rows of each chunk to learn from. Every chunk is a random sample of the layer's rows. */
  chunks: readonly number[];
  chunk(index: number): Promise<Rows>;
  close(): Promise<void>;
}

/** Bounds of what is in memory. */
export interface SampleMemory {
  /** Of a chunk; training holds two. */
  chunkBytes: number;
  heldoutBytes: number;
}

export const SAMPLE_MEMORY: SampleMemory = { chunkBytes: 64 << 20, heldoutBytes: 64 << 20 };

/** One row in this many is held out, or fewer when that would be more than fits. */
const HELDOUT_EVERY = 8;

/** Fewest rows that can be split into something to learn from and something to measure on. */
const MIN_ROWS = 2 * HELDOUT_EVERY;

/**
 * Opens the samples of a layer, about `maxRows` of them. The rows are dealt to chunks by a hash of their keys and written
 * to the new file `scratch`, which goes away again on `close`: so a chunk is one sequential read, memory does not grow
 * with the number of samples, and neither the order of the file nor how a corpus was sharded changes what is learnt, or
 * when. Reads `path` twice. Throws `E_SAMPLES` when there are too few rows, `E_MISMATCH` when they are of other weights
 * than `weights`.
 */
export async function openLayerSamples(
  path: string,
  weights: string,
  maxRows: number,
  scratch: string,
  memory: SampleMemory = SAMPLE_MEMORY,
): Promise<LayerSamples> {
  const reader = await openSamples(path);
  const { header, rows: available } = reader;
  await reader.close();
  checkSameInput("weights", path, weights, header.provenance.inputs["model"]);
  check(available >= MIN_ROWS, "E_SAMPLES", () => {
    return `${path}: expected at least ${MIN_ROWS} sampled rows, found ${available}; profile more text or raise the sample rate`;
  });
  const { dim, nNeurons } = header;
  const deal = dealer({ dim, nNeurons }, available, maxRows, memory);
  const counts = await countRows(path, deal);
  const [heldoutRows, ...chunks] = counts as [number, ...number[]];
  check(heldoutRows > 0 && Math.max(0, ...chunks) > 0, "E_SAMPLES", () => {
    return `${path}: expected rows to learn from and rows to measure on, found too few of ${available}; profile more text`;
  });
  const file = await open(scratch, "wx+");
  const close = async () => {
    await file.close();
    await rm(scratch, { force: true });
  };
  try {
    const rows = new KeyedRows(file, { dim, nNeurons }, counts);
    for await (const batch of readSamples(path)) await distribute(batch, deal, rows);
    await rows.flush();
    const heldout = await rows.read(0);
    return { dim, nNeurons, heldout, chunks, chunk: (index) => rows.read(index + 1), close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Rows that are in memory as a single chunk: the last `heldout` of them are held out. */
export function samplesInMemory(shape: RowShape, rows: Rows, heldout: number): LayerSamples {
  const { dim, nNeurons } = shape;
  const slice = (from: number, to: number): Rows => ({
    rows: to - from,
    hidden: rows.hidden.subarray(from * dim, to * dim),
    contributions: rows.contributions.subarray(from * nNeurons, to * nNeurons),
  });
  const learnt = slice(0, rows.rows - heldout);
  return {
    dim,
    nNeurons,
    heldout: slice(learnt.rows, rows.rows),
    chunks: [learnt.rows],
    chunk: () => Promise.resolve(learnt),
    close: () => Promise.resolve(),
  };
}

/** Says for a row's key, given as two halves, where it belongs: 0 held out, 1 … a chunk, or -1 nowhere. */
type Deal = ((low: number, high: number) => number) & { groups: number };

/**
 * A key's hash is a place in [0, 1): first those held out, then equal parts for the chunks, and past the end what is more
 * than `maxRows`.
 */
function dealer({ dim, nNeurons }: RowShape, available: number, maxRows: number, memory: SampleMemory): Deal {
  const rowBytes = 2 * dim + nNeurons;
  const rows = Math.min(available, maxRows);
  const heldout = Math.min(1 / HELDOUT_EVERY, memory.heldoutBytes / (rows * rowBytes));
  const chunks = Math.max(1, Math.ceil(((1 - heldout) * rows * rowBytes) / memory.chunkBytes));
  const deal = (low: number, high: number) => {
    const place = (uniform(low, high) * available) / rows;
    if (place >= 1) return -1;
    return place < heldout ? 0 : 1 + Math.min(chunks - 1, Math.floor(((place - heldout) / (1 - heldout)) * chunks));
  };
  return Object.assign(deal, { groups: 1 + chunks });
}

/** Keys are hashes already, but of a limited range; this spreads them over [0, 1) (MurmurHash3's finaliser, twice). */
function uniform(low: number, high: number): number {
  return scramble(low ^ scramble(high)) / 2 ** 32;
}

function scramble(value: number): number {
  let x = Math.imul(value ^ (value >>> 16), 0x85ebca6b);
  x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35);
  return (x ^ (x >>> 16)) >>> 0;
}

/** Where each row of `batch` belongs. */
function places({ keys, rows }: Samples, deal: Deal): Int32Array {
  const halves = new Uint32Array(keys.buffer, keys.byteOffset, 2 * rows);
  return Int32Array.from({ length: rows }, (_, i) => deal(halves[2 * i]!, halves[2 * i + 1]!));
}

async function countRows(path: string, deal: Deal): Promise<number[]> {
  const counts = Array.from({ length: deal.groups }, () => 0);
  for await (const batch of readSamples(path)) {
    for (const place of places(batch, deal)) if (place >= 0) counts[place]!++;
  }
  return counts;
}

async function distribute(batch: Samples, deal: Deal, rows: KeyedRows): Promise<void> {
  for (const [i, place] of places(batch, deal).entries()) if (place >= 0) await rows.append(place, batch, i);
}
