import type { EngineStats, GpuStats } from "../native/index.ts";

/** What a GPU did of it; all but the shares per decoded token. */
export interface GpuSpeed {
  /** Weights and KV that it read. */
  bytes: EngineStats["bytes"];
  bytesPerToken: number;
  /** Of the neurons that were computed, and of those that fired. */
  neuronShare: number;
  firedShare: number;
  transfers: number;
  transferBytes: number;
  waits: number;
  waitSeconds: number;
  launches: number;
  /** And copies: what takes its turn on the GPU. */
  kernels: number;
}

/** Of the counts of `rows` decoded tokens. */
export function gpuSpeed(stats: GpuStats, rows: number): GpuSpeed {
  const share = ({ gpu, cpu }: { gpu: number; cpu: number }): number => (gpu + cpu > 0 ? gpu / (gpu + cpu) : 0);
  const bytes = mapValues(stats.bytes, (sum) => sum / rows);
  return {
    bytes,
    bytesPerToken: totalOf(bytes),
    neuronShare: share(stats.neuronRows),
    firedShare: share(stats.firedRows),
    transfers: stats.transfers / rows,
    transferBytes: stats.transferBytes / rows,
    waits: stats.waits / rows,
    waitSeconds: stats.hostWaitSeconds / rows,
    launches: stats.gpuLaunches / rows,
    kernels: stats.kernels / rows,
  };
}

export function mapValues<K extends string>(values: Record<K, number>, map: (value: number, key: K) => number) {
  const entries = Object.entries<number>(values).map(([key, value]) => [key, map(value, key as K)]);
  return Object.fromEntries(entries) as Record<K, number>;
}

export const totalOf = (values: Record<string, number>): number =>
  Object.values(values).reduce((sum, value) => sum + value, 0);
