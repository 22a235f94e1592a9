import { availableParallelism } from "node:os";
import { rowBytes, WEIGHT_DTYPES, type WeightDType } from "../formats/dtypes.ts";
import type { AttentionCost, CpuWork, ReadCosts, RowCost, RowCosts } from "../formats/hardware.ts";
import { describeMachine } from "../io/hardware.ts";
import { median } from "./measure.ts";
import { KV_TYPES, native, type KernelProbe, type KvType } from "../native/index.ts";
import { DEFAULT_WORK } from "./default-work.ts";

/** What to measure of a CPU. Of types that are left out the {@link DEFAULT_WORK} stays. Signs are always measured. */
export interface CpuMeasurement {
  threads: number;
  /** For each probe; there are seven a type and memory. */
  seconds: number;
  /** How often everything is measured: of each probe the fastest counts. Default 1. */
  passes?: number;
  /**
   * A buffer beyond any cache, best as large as the model: the more memory is in use, the slower it is read. And the
   * last-level cache, where there is one to measure.
   */
  memoryBytes: number;
  cacheBytes: number | null;
  types?: readonly WeightDType[];
  kvTypes?: readonly KvType[];
}

/**
 * Bytes to measure with: as many as a model has, or without one a gigabyte, the more memory is in use the slower it is
 * read; beyond any cache, and no more than a quarter of what is free.
 */
const PROBE_BYTES = { usual: 1 << 30, least: 128 << 20, most: 2 ** 31 };
const PROBE_SECONDS = 0.04;

/** How this machine is measured for a model of `modelBytes`. */
export async function measurement(modelBytes: number = PROBE_BYTES.usual): Promise<CpuMeasurement> {
  const { caches, memory } = await describeMachine();
  const { least, most } = PROBE_BYTES;
  const free = Math.max(least, memory.available / 4);
  return {
    threads: availableParallelism(),
    seconds: PROBE_SECONDS,
    memoryBytes: Math.floor(Math.min(most, free, Math.max(least, modelBytes))),
    cacheBytes: caches.at(-1)?.size ?? null,
  };
}

/** Row lengths, in elements, between which a row's costs are taken to lie on a line. */
const PROJECT_COLS = { short: 128, long: 2048 };
const NEURON_COLS = { short: 512, long: 2048 };
/** One neuron in ten is what `sparse` means. */
const SPARSE = 10;

const HEAD_DIM = 64;
const POSITIONS = { few: 32, many: 512 };
const GROUP = 4;

const STREAM_COLS = 2048;
const SCANNED = 8192;
const VOCABULARY = 32_768;
const CROSSINGS = 100;

/** Half of a cache, so that neighbours leave room. */
export const usableCache = (bytes: number): number => bytes / 2;

/**
 * Measures what decoding costs on this machine: the engine's own loops over made-up weights. Returns it with main memory's
 * bandwidth, measured in between.
 */
export async function measureCpu(what: CpuMeasurement): Promise<{ bandwidth: number; work: CpuWork }> {
  const { threads, memoryBytes, cacheBytes } = what;
  const memory = await measureReads(memoryBytes, what);
  const cached = cacheBytes === null ? null : await measureReads(usableCache(cacheBytes), what);
  const [alone] = await probe([{ kind: "read" }], memoryBytes, { ...what, threads: 1 });
  const loops: KernelProbe[] = [
    { kind: "loop" },
    { kind: "stream", cols: STREAM_COLS },
    { kind: "scan", cols: SCANNED },
    { kind: "vocabulary", cols: VOCABULARY },
    { kind: "rank", cols: VOCABULARY },
  ];
  const [loopSeconds, streamSeconds, scanSeconds, vocabularySeconds, rankSeconds] = await probe(
    loops,
    CROSSING_BYTES,
    what,
  );
  return {
    bandwidth: memory.bandwidth,
    work: {
      threads,
      threadBandwidth: Math.round(1 / alone!),
      loopSeconds: loopSeconds!,
      tokenSeconds: await measureCrossing(threads),
      streamSeconds: streamSeconds!,
      scanSeconds: scanSeconds!,
      vocabularySeconds: vocabularySeconds!,
      rankSeconds: rankSeconds!,
      memory: memory.costs,
      cache: cached && { bytes: cacheBytes!, bandwidth: cached.bandwidth, ...cached.costs },
    },
  };
}

/** Seconds of each probe. */
async function probe(
  probes: readonly KernelProbe[],
  bytes: number,
  { threads, seconds, passes = 1 }: Pick<CpuMeasurement, "threads" | "seconds" | "passes">,
): Promise<number[]> {
  let fastest: number[] | undefined;
  for (let pass = 0; pass < passes; pass++) {
    const found = [...(await native().probeKernels(probes, bytes, threads, seconds))];
    fastest = fastest?.map((best, i) => Math.min(best, found[i]!)) ?? found;
  }
  if (passes === 1) return fastest!;
  // Times of several passes did not run beside the reads of their own: all are measured by the fastest.
  const read = Math.min(...fastest!.filter((_, i) => probes[i]!.kind === "read"));
  return fastest!.map((time, i) => (probes[i]!.kind === "read" ? read : time));
}

/** Costs of reading from a memory that `bytes` stay in, and its bandwidth, measured before each type. */
async function measureReads(bytes: number, what: CpuMeasurement): Promise<{ bandwidth: number; costs: ReadCosts }> {
  const { types = WEIGHT_DTYPES, kvTypes = KV_TYPES } = what;
  const probes = [...types.flatMap(rowProbes), ...SIGN_PROBES, ...kvTypes.flatMap(attentionProbes)];
  const found = await probe(probes, bytes, what);
  const { rows, attention } = DEFAULT_WORK.memory;
  const costs: ReadCosts = { rows: { ...rows }, attention: { ...attention } };
  const bandwidths: number[] = [];
  for (const type of types) {
    const [read, ...times] = found.splice(0, 1 + 2 * 3);
    bandwidths.push(1 / read!);
    costs.rows[type] = rowCosts(type, times, bandwidths.at(-1)!);
  }
  costs.signs = signCost(found.splice(0, SIGN_PROBES.length), median(bandwidths));
  for (const type of kvTypes) costs.attention[type] = attentionCost(found.splice(0, 3));
  return { bandwidth: Math.round(median(bandwidths)), costs };
}

function rowProbes(type: WeightDType): KernelProbe[] {
  return [
    { kind: "read" },
    ...[PROJECT_COLS.short, PROJECT_COLS.long].map((cols) => ({ kind: "project" as const, type, cols })),
    ...[1, SPARSE].flatMap((every) =>
      [NEURON_COLS.short, NEURON_COLS.long].map((cols) => ({ kind: "neurons" as const, type, cols, every })),
    ),
  ];
}

const SIGN_PROBES: readonly KernelProbe[] = [PROJECT_COLS.short, PROJECT_COLS.long].map((cols) => {
  return { kind: "project", type: "bit", cols };
});

/** From the seconds of {@link SIGN_PROBES}. */
function signCost([short, long]: readonly number[], bandwidth: number): RowCost {
  const [few, many] = [PROJECT_COLS.short, PROJECT_COLS.long].map((cols) => rowBytes("bit", cols));
  return rowCost({ bytes: few!, seconds: short! }, { bytes: many!, seconds: long! }, bandwidth);
}

/** From the seconds of {@link rowProbes}. */
function rowCosts(type: WeightDType, times: readonly number[], bandwidth: number): RowCosts {
  const cost = (at: number, { short, long }: { short: number; long: number }): RowCost =>
    rowCost(
      { bytes: rowBytes(type, short), seconds: times[at]! },
      { bytes: rowBytes(type, long), seconds: times[at + 1]! },
      bandwidth,
    );
  return { project: cost(0, PROJECT_COLS), dense: cost(2, NEURON_COLS), sparse: cost(4, NEURON_COLS) };
}

/** The line through two rows; through the longer one and the origin where noise left no fixed cost, or nothing but. */
export function rowCost(
  short: { bytes: number; seconds: number },
  long: { bytes: number; seconds: number },
  bandwidth: number,
): RowCost {
  const perByte = (long.seconds - short.seconds) / (long.bytes - short.bytes);
  const seconds = short.seconds - perByte * short.bytes;
  if (perByte > 0 && seconds > 0) return { seconds, share: 1 / (perByte * bandwidth) };
  return { seconds: 0, share: long.bytes / (long.seconds * bandwidth) };
}

function attentionProbes(kvType: KvType): KernelProbe[] {
  const { few, many } = POSITIONS;
  const shapes = [
    [few, 1],
    [many, 1],
    [many, GROUP],
  ] as const;
  return shapes.map(([positions, queries]) => ({ kind: "attention", kvType, cols: HEAD_DIM, positions, queries }));
}

/** From the seconds of {@link attentionProbes}. */
function attentionCost([short, long, shared]: readonly number[]): AttentionCost {
  const { few, many } = POSITIONS;
  const slope = Math.max(0, long! - short!) / (HEAD_DIM * (many - few));
  const querySeconds = Math.min(slope, Math.max(0, shared! - long!) / ((GROUP - 1) * HEAD_DIM * many));
  return { headSeconds: Math.max(0, long! - slope * HEAD_DIM * many), readSeconds: slope - querySeconds, querySeconds };
}

/** The fewest bytes that can be probed: enough where none are read. */
const CROSSING_BYTES = 4096;

/** From JavaScript to a native thread, with threads to start beside it, as those of a pool are woken, and back. */
async function measureCrossing(threads: number): Promise<number> {
  const found: number[] = [];
  for (let i = 0; i < CROSSINGS; i++) {
    const start = performance.now();
    await native().probeKernels([], CROSSING_BYTES, threads, 0);
    found.push((performance.now() - start) / 1000);
  }
  // Starting threads takes many times as long when others hold the processors; a pool's spin meanwhile.
  return found.toSorted((a, b) => a - b)[CROSSINGS / 4]!;
}
