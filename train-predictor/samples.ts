import { check } from "../formats/errors.ts";
import { checkSameInput } from "../formats/provenance.ts";
import { openSamples, readSamples } from "../io/samples-file.ts";

/** Training rows of one layer in memory, as the native trainer takes them. */
export interface LayerSamples {
  dim: number;
  nNeurons: number;
  /** f16 [rows, dim] */
  hidden: Uint16Array;
  /** u8 [rows, nNeurons] */
  contributions: Uint8Array;
  /** Rows to learn from, and rows to calibrate and measure on; disjoint. */
  train: Int32Array;
  heldout: Int32Array;
}

/** One row in this many is held out. */
const HELDOUT_EVERY = 8;

/** Fewest rows that can be split into something to learn from and something to measure on. */
const MIN_ROWS = 2 * HELDOUT_EVERY;

/**
 * Reads the rows of `path` with the `maxRows` lowest keys. Keys are hashes of tokens, so that is a random sample that
 * depends on neither the order of the file nor how it was sharded; neither does the split, which goes by key as well.
 * Reads the file twice and holds `maxRows` rows. Throws `E_SAMPLES` when there are too few rows, `E_MISMATCH` when they
 * are of other weights than `weights`.
 */
export async function loadSamples(path: string, weights: string, maxRows: number): Promise<LayerSamples> {
  const reader = await openSamples(path);
  const { header, rows: available } = reader;
  await reader.close();
  checkSameInput("weights", path, weights, header.provenance.inputs["model"]);
  check(available >= MIN_ROWS, "E_SAMPLES", () => {
    return `${path}: expected at least ${MIN_ROWS} sampled rows, found ${available}; profile more text or raise the sample rate`;
  });
  const { dim, nNeurons } = header;
  const { limit, rows } = await lowestKeys(path, available, maxRows);
  const keys = new BigUint64Array(rows);
  const hidden = new Uint16Array(rows * dim);
  const contributions = new Uint8Array(rows * nNeurons);
  let row = 0;
  for await (const batch of readSamples(path)) {
    for (let i = 0; i < batch.rows; i++) {
      if (batch.keys[i]! > limit) continue;
      keys[row] = batch.keys[i]!;
      hidden.set(batch.hidden.subarray(i * dim, (i + 1) * dim), row * dim);
      contributions.set(batch.contributions.subarray(i * nNeurons, (i + 1) * nNeurons), row * nNeurons);
      row++;
    }
  }
  return { dim, nNeurons, hidden, contributions, ...split(keys) };
}

/** The highest key to keep, and how many rows have a key up to it (a few more than `maxRows` when keys repeat). */
async function lowestKeys(path: string, available: number, maxRows: number): Promise<{ limit: bigint; rows: number }> {
  const keys = new BigUint64Array(available);
  let row = 0;
  for await (const batch of readSamples(path)) {
    keys.set(batch.keys, row);
    row += batch.rows;
  }
  keys.sort();
  let rows = Math.min(available, maxRows);
  const limit = keys[rows - 1]!;
  while (rows < available && keys[rows] === limit) rows++;
  return { limit, rows };
}

/** Row numbers in ascending order of key, every {@link HELDOUT_EVERY}th of them held out. */
function split(keys: BigUint64Array): { train: Int32Array; heldout: Int32Array } {
  const order = Int32Array.from(keys, (_, i) => i).sort((a, b) =>
    keys[a]! < keys[b]! ? -1 : keys[a]! > keys[b]! ? 1 : a - b,
  );
  return {
    train: order.filter((_, i) => i % HELDOUT_EVERY !== 0),
    heldout: order.filter((_, i) => i % HELDOUT_EVERY === 0),
  };
}
