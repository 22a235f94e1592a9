/** A CPU on which nothing counts but bytes over bandwidth. */
import { WEIGHT_DTYPES } from "../../formats/dtypes.ts";
import type { CpuWork, ReadCosts } from "../../formats/hardware.ts";
import { KV_TYPES } from "../../native/index.ts";

/** Rows that all reach this share of the bandwidth, and attention that is free. */
export function costsOfShare(share: number): ReadCosts {
  const cost = { seconds: 0, share };
  const free = { headSeconds: 0, readSeconds: 0, querySeconds: 0 };
  const each = <K extends string, V>(keys: readonly K[], value: V) =>
    Object.fromEntries(keys.map((key) => [key, value])) as Record<K, V>;
  return {
    rows: each(WEIGHT_DTYPES, { project: cost, dense: cost, sparse: cost }),
    attention: each(KV_TYPES, free),
  };
}

export const BANDWIDTH_ONLY: CpuWork = {
  threads: 1,
  threadBandwidth: 50e9,
  loopSeconds: 0,
  tokenSeconds: 0,
  streamSeconds: 0,
  scanSeconds: 0,
  vocabularySeconds: 0,
  rankSeconds: 0,
  memory: costsOfShare(1),
  cache: null,
};
