/** The artifact: every tensor of the model and its predictors in one file, the rows of neurons hot first. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { check } from "../formats/errors.ts";
import type { StageContext } from "../io/progress.ts";
import { writeSafetensors, type OutputTensor } from "../io/safetensors-file.ts";
import type { StoredTensor } from "../model/model-file.ts";
import { layerTensor, PREDICTOR_NEURON_PARTS } from "../model/tensors.ts";

/** A file to copy tensors from. */
export interface PackSource {
  path: string;
  tensors: Map<string, StoredTensor>;
}

/** Parts of a layer whose rows (or elements) are neurons. */
const NEURON_PARTS = new Set([
  ...["gate", "up"].flatMap((part) => [`ffn.${part}.weight`, `ffn.${part}.bias`]),
  "ffn.down_t.weight",
  ...PREDICTOR_NEURON_PARTS,
]);

/** Bytes copied at once. */
const CHUNK = 16 << 20;

/** Where a tensor of the artifact comes from: copied from a file, or made here. */
type Origin = { path: string; tensor: StoredTensor; order: Int32Array | undefined } | { bytes: Uint8Array };

/**
 * Writes the artifact, all or nothing, holding at most one tensor in memory. Every byte read is checked against the
 * hash its file records: throws `E_CHECKSUM` naming the tensor that differs.
 * @param orders per layer, the checkpoint's index of each row
 */
export async function pack(
  out: string,
  sources: readonly PackSource[],
  orders: readonly Int32Array[],
  metadata: Record<string, string>,
  context: StageContext,
): Promise<void> {
  const origins = new Map(collectOrigins(sources, orders));
  const tensors = [...origins].map(([name, origin]) => describe(name, origin));
  const total = [...origins.values()].reduce((sum, o) => sum + ("bytes" in o ? o.bytes.length : o.tensor.bytes), 0);
  let done = 0;
  const report = (bytes: number): void => {
    done += bytes;
    context.progress({ label: "pack", done, total, unit: "bytes" });
  };
  await writeSafetensors(out, tensors, {
    dataAlign: 4096,
    metadata: () => metadata,
    produce: ({ name }) => counted(produce(name, origins.get(name)!), report),
    signal: context.signal,
  });
}

/**
 * Tensors by layer, so that what one layer needs lies together: what comes before the layers, each layer with its
 * neurons, the rest.
 */
function collectOrigins(sources: readonly PackSource[], orders: readonly Int32Array[]): [string, Origin][] {
  const before: [string, Origin][] = [];
  const layers = orders.map((): [string, Origin][] => []);
  const after: [string, Origin][] = [];
  for (const { path, tensors } of sources) {
    for (const [name, tensor] of tensors) {
      const [, layer, part] = /^layers\.(\d+)\.(.*)$/.exec(name) ?? [];
      const order = part !== undefined && NEURON_PARTS.has(part) ? orders[Number(layer)] : undefined;
      const place = layer !== undefined ? layers[Number(layer)]! : layers[0]!.length === 0 ? before : after;
      place.push([name, { path, tensor, order }]);
    }
  }
  for (const [layer, { buffer, byteOffset, byteLength }] of orders.entries()) {
    layers[layer]!.push([layerTensor(layer, "neurons"), { bytes: new Uint8Array(buffer, byteOffset, byteLength) }]);
  }
  return [...before, ...layers.flat(), ...after];
}

function describe(name: string, origin: Origin): OutputTensor {
  if ("bytes" in origin) return { name, dtype: "i32", shape: [origin.bytes.length / Int32Array.BYTES_PER_ELEMENT] };
  return { name, dtype: origin.tensor.dtype, shape: origin.tensor.shape };
}

async function* produce(name: string, origin: Origin): AsyncGenerator<Uint8Array> {
  if ("bytes" in origin) return yield origin.bytes;
  const chunks = readChecked(name, origin.path, origin.tensor);
  if (!origin.order) return yield* chunks;
  const rows = new Uint8Array(origin.tensor.bytes);
  let at = 0;
  for await (const chunk of chunks) {
    rows.set(chunk, at);
    at += chunk.length;
  }
  yield* gather(rows, origin.order);
}

/** The bytes of a tensor, chunk by chunk; after the last one their hash is compared. */
async function* readChecked(
  name: string,
  path: string,
  { offset, bytes, sha256 }: StoredTensor,
): AsyncGenerator<Uint8Array> {
  const hash = createHash("sha256");
  const stream = createReadStream(path, { start: offset, end: offset + bytes - 1, highWaterMark: CHUNK });
  for await (const chunk of stream as AsyncIterable<Buffer>) {
    hash.update(chunk);
    yield chunk;
  }
  const actual = hash.digest("hex");
  check(actual === sha256, "E_CHECKSUM", `${path}: tensor ${name}: expected sha256 ${sha256}, found ${actual}`);
}

/** Rows (equal shares of `bytes`) in the given order, a chunk at a time. */
function* gather(bytes: Uint8Array, order: Int32Array): Generator<Uint8Array> {
  const size = bytes.length / order.length;
  const perChunk = Math.max(1, Math.floor(CHUNK / size));
  for (let first = 0; first < order.length; first += perChunk) {
    const rows = order.subarray(first, first + perChunk);
    const chunk = new Uint8Array(rows.length * size);
    rows.forEach((row, i) => chunk.set(bytes.subarray(row * size, (row + 1) * size), i * size));
    yield chunk;
  }
}

async function* counted(
  chunks: AsyncIterable<Uint8Array>,
  report: (bytes: number) => void,
): AsyncGenerator<Uint8Array> {
  for await (const chunk of chunks) {
    yield chunk;
    report(chunk.length);
  }
}
