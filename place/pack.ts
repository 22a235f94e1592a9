/** The artifact: every tensor of the model and its predictors in one file, the rows of neurons hot first. */
import { createHash } from "node:crypto";
import { open, type FileHandle } from "node:fs/promises";
import type { DType } from "../formats/dtypes.ts";
import { check } from "../formats/errors.ts";
import type { StageContext } from "../io/progress.ts";
import { readRange, writeSafetensors, type OutputTensor } from "../io/safetensors-file.ts";
import type { StoredTensor } from "../model/model-file.ts";
import { layerTensor } from "../model/tensors.ts";

/** A file to copy tensors from. */
export interface PackSource {
  path: string;
  tensors: Map<string, StoredTensor>;
}

/** Parts of a layer whose rows (or elements) are neurons. */
const NEURON_PARTS = new Set([
  ...["gate", "up"].flatMap((part) => [`ffn.${part}.weight`, `ffn.${part}.bias`]),
  "ffn.down_t.weight",
  "predictor.fc2.weight",
  "predictor.fc2.bias",
]);

/** Bytes copied at once. */
const CHUNK = 16 << 20;

/** Where a tensor of the artifact comes from: copied from a file, or made here. */
type Origin =
  { path: string; file: FileHandle; tensor: StoredTensor; order: Int32Array | undefined } | { bytes: Uint8Array };

/**
 * Writes the artifact, all or nothing, holding at most one tensor in memory. Every byte read is checked against the hash its file
 * records: throws `E_CHECKSUM` naming the tensor that differs.
 * @param orders per layer, the checkpoint's index of each row
 */
export async function pack(
  out: string,
  sources: readonly PackSource[],
  orders: readonly Int32Array[],
  metadata: Record<string, string>,
  context: StageContext,
): Promise<void> {
  const files = await Promise.all(sources.map(({ path }) => open(path, "r")));
  try {
    const origins = collectOrigins(sources, files, orders);
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
  } finally {
    await Promise.all(files.map((file) => file.close()));
  }
}

/** Tensors in the order of their layers, so that what one layer needs lies together. */
function collectOrigins(
  sources: readonly PackSource[],
  files: FileHandle[],
  orders: readonly Int32Array[],
): Map<string, Origin> {
  const origins = new Map<string, Origin>();
  const byLayer = orders.map((): [string, Origin][] => []);
  const trailing: [string, Origin][] = [];
  for (const [s, { path, tensors }] of sources.entries()) {
    for (const [name, tensor] of tensors) {
      const [, layer, part] = /^layers\.(\d+)\.(.*)$/.exec(name) ?? [];
      const order = part !== undefined && NEURON_PARTS.has(part) ? orders[Number(layer)] : undefined;
      const origin = { path, file: files[s]!, tensor, order };
      if (layer !== undefined) byLayer[Number(layer)]!.push([name, origin]);
      else if (byLayer[0]!.length === 0) origins.set(name, origin);
      else trailing.push([name, origin]);
    }
  }
  for (const [layer, order] of orders.entries()) {
    for (const [name, origin] of byLayer[layer]!) origins.set(name, origin);
    origins.set(layerTensor(layer, "neurons"), {
      bytes: new Uint8Array(order.buffer, order.byteOffset, order.byteLength),
    });
  }
  for (const [name, origin] of trailing) origins.set(name, origin);
  return origins;
}

function describe(name: string, origin: Origin): OutputTensor {
  if ("bytes" in origin) return { name, dtype: "i32" satisfies DType, shape: [origin.bytes.length / 4] };
  return { name, dtype: origin.tensor.dtype, shape: origin.tensor.shape };
}

async function* produce(name: string, origin: Origin): AsyncGenerator<Uint8Array> {
  if ("bytes" in origin) return yield origin.bytes;
  const { path, file, tensor, order } = origin;
  const hash = createHash("sha256");
  if (order) {
    const rows = await readRange(file, tensor.offset, tensor.bytes, path);
    checkHash(path, name, hash.update(rows).digest("hex"), tensor.sha256);
    return yield* gather(rows, order);
  }
  for (let at = 0; at < tensor.bytes; at += CHUNK) {
    const chunk = await readRange(file, tensor.offset + at, Math.min(CHUNK, tensor.bytes - at), path);
    hash.update(chunk);
    yield chunk;
  }
  checkHash(path, name, hash.digest("hex"), tensor.sha256);
}

function checkHash(path: string, name: string, actual: string, expected: string): void {
  check(actual === expected, "E_CHECKSUM", `${path}: tensor ${name}: expected sha256 ${expected}, found ${actual}`);
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
