import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import type { DType } from "../../formats/dtypes.ts";
import type { StageContext } from "../../io/progress.ts";
import { readSafetensors, readTensorBytes, writeSafetensors } from "../../io/safetensors-file.ts";
import type { ModelFile } from "../../model/model-file.ts";
import { native } from "../../native/index.ts";

const fixtures = join(dirname(fileURLToPath(import.meta.url)), "..", "fixtures");
export const fixture = (name: string): string => join(fixtures, name);

/** A context that keeps what it is told. */
export function listeningContext(signal = new AbortController().signal) {
  const warnings: string[] = [];
  const progress: Parameters<StageContext["progress"]>[0][] = [];
  return {
    warnings,
    progress: (p: (typeof progress)[0]) => void progress.push(p),
    warn: (w: string) => void warnings.push(w),
    signal,
    seen: progress,
  };
}

export interface SourceTensor {
  dtype: DType;
  shape: number[];
  bytes: Uint8Array;
}

/** A checkpoint in memory, to be changed and written again. */
export interface SourceModel {
  config: Record<string, unknown>;
  tensors: Map<string, SourceTensor>;
}

export async function loadFixture(name: string): Promise<SourceModel> {
  const config = JSON.parse(await readFile(join(fixture(name), "config.json"), "utf8")) as Record<string, unknown>;
  const file = await readSafetensors(join(fixture(name), "model.safetensors"));
  const tensors = new Map<string, SourceTensor>();
  for (const [tensor, { dtype, shape }] of file.tensors) {
    tensors.set(tensor, { dtype: dtype.toLowerCase() as DType, shape, bytes: await readTensorBytes(file, tensor) });
  }
  return { config, tensors };
}

export async function writeWeights(path: string, tensors: Map<string, SourceTensor>): Promise<void> {
  const outputs = [...tensors].map(([name, { dtype, shape }]) => ({ name, dtype, shape }));
  await writeSafetensors(path, outputs, {
    metadata: () => ({}),
    produce: async ({ name }) => tensors.get(name)!.bytes,
  });
}

export async function writeSource(folder: string, { config, tensors }: SourceModel): Promise<string> {
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "config.json"), JSON.stringify(config));
  await writeWeights(join(folder, "model.safetensors"), tensors);
  return folder;
}

/** Values of a tensor of a source model, which is f32. */
export function sourceValues(model: SourceModel, name: string): number[] {
  const { bytes } = model.tensors.get(name)!;
  return [...new Float32Array(bytes.slice().buffer)];
}

/** Values of a converted tensor, decoded. */
export async function storedValues(file: ModelFile, name: string): Promise<number[]> {
  const { dtype, shape } = file.tensors.get(name)!;
  const bytes = await readTensorBytes(await readSafetensors(file.path), name);
  const [rows, cols] = shape.length === 1 ? [1, shape[0]!] : [shape[0]!, shape[1]!];
  return [...(await native().dequantize(bytes, dtype, rows, cols))];
}
