/** What `pi profile` leaves in a working directory, besides the samples themselves (io/samples-file.ts). */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { decodeActivations, type Activations } from "../formats/activations.ts";
import { check, PiError } from "../formats/errors.ts";
import { parseProvenance, type Provenance } from "../formats/provenance.ts";
import { readSafetensors, readTensorBytes, writeSafetensors } from "./safetensors-file.ts";

/** Written last: where it stands, the samples beside it are whole and its own. */
export const activationsPath = (dir: string): string => join(dir, "activations.arrow");
export const samplesDir = (dir: string): string => join(dir, "samples");
export const samplesPath = (dir: string, layer: number): string =>
  join(samplesDir(dir), `layer-${String(layer).padStart(3, "0")}.arrow`);
export const heldoutPath = (dir: string): string => join(samplesDir(dir), "heldout.safetensors");

/** Reads `activations.arrow`. Throws `E_FILE` when there is none, else what `decodeActivations` throws. */
export async function readActivations(path: string): Promise<Activations> {
  const bytes = await readFile(path).catch((error: NodeJS.ErrnoException) => {
    throw new PiError("E_FILE", `${path}: expected the output of pi profile, found ${error.code}`);
  });
  return decodeActivations(bytes, path);
}

/** Windows of the corpus that were not profiled; each begins with BOS if the model has one. */
export interface Heldout {
  windows: Int32Array[];
  /** Tokens of the longest window. */
  window: number;
  provenance: Provenance;
}

/** Fills the rows of windows that a document's end cut short. */
const NO_TOKEN = -1;

/** Reads held-out windows, each as long as it was. Throws `E_FILE`, `E_SAFETENSORS`, `E_FORMAT`. */
export async function readHeldout(path: string): Promise<Heldout> {
  const file = await readSafetensors(path);
  const entry = file.tensors.get("tokens");
  const found = `${file.metadata["pi.format"]} ${entry?.dtype} [${entry?.shape}]`;
  const fits = file.metadata["pi.format"] === "heldout" && entry?.dtype === "I32" && entry.shape.length === 2;
  check(fits, "E_FORMAT", `${path}: expected heldout I32 [windows, window], found ${found}`);
  const [count, window] = entry.shape as [number, number];
  const bytes = await readTensorBytes(file, "tokens");
  const tokens = new Int32Array(bytes.buffer, bytes.byteOffset, count * window);
  const windows = Array.from({ length: count }, (_, row) => {
    const padded = tokens.subarray(row * window, (row + 1) * window);
    const end = padded.indexOf(NO_TOKEN);
    return end < 0 ? padded : padded.subarray(0, end);
  });
  return { windows, window, provenance: parseProvenance(file.metadata["pi.provenance"], path, "E_FORMAT") };
}

/** Writes held-out windows, all or nothing. */
export async function writeHeldout(path: string, { windows, window, provenance }: Heldout): Promise<void> {
  const tokens = new Int32Array(windows.length * window).fill(NO_TOKEN);
  windows.forEach((ids, row) => tokens.set(ids, row * window));
  const metadata = { "pi.format": "heldout", "pi.version": "1", "pi.provenance": JSON.stringify(provenance) };
  await writeSafetensors(path, [{ name: "tokens", dtype: "i32", shape: [windows.length, window] }], {
    metadata: () => metadata,
    produce: () => Promise.resolve(new Uint8Array(tokens.buffer)),
  });
}
