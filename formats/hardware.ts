import { WEIGHT_DTYPES, type WeightDType } from "./dtypes.ts";
import { Fields } from "./fields.ts";

/** What placement needs to know of a machine. Bandwidths in bytes per second, memory in bytes, times in seconds. */
export interface Hardware {
  name: string;
  cpu: Cpu;
  gpu: Gpu | null;
  /**
   * CPU to GPU: bandwidth of a copy, and T_sync, the fixed cost of handing one layer's work over and merging its
   * result.
   */
  link: { bandwidth: number; syncSeconds: number };
  /** Where the numbers come from. */
  source: string;
}

export interface Cpu {
  /** Read bandwidth of main memory over all threads. */
  bandwidth: number;
  /** What the engine's loops make of it, where `pi doctor` measured that. */
  work?: CpuWork;
}

export interface Gpu {
  name: string;
  vramBytes: number;
  bandwidth: number;
  /** Taken by the driver's context and libraries before the first weight is loaded. */
  reservedBytes: number;
  /** What a kernel of a recorded program takes beside what it reads; absent in files of 0.1.0 and data sheets. */
  launchSeconds?: number;
}

/** The costs of decoding on the CPU, all its threads together unless said otherwise. */
export interface CpuWork {
  threads: number;
  /** Read bandwidth of main memory with one thread. */
  threadBandwidth: number;
  /** A parallel loop's fixed cost: threads that wait for one another. */
  loopSeconds: number;
  /** A step's: from JavaScript to the engine and back. */
  tokenSeconds: number;
  /** What one thread does alone, per layer and element of the stream: norms, rounding of activations, sums. */
  streamSeconds: number;
  /** Per layer and neuron, in sparse modes: choosing those to read. */
  scanSeconds: number;
  /** Per vocabulary entry: choosing a token, and choosing the head's shortlist. */
  vocabularySeconds: number;
  rankSeconds: number;
  memory: ReadCosts;
  /** Of models that stay in the last-level cache of `bytes`; null where there is none. */
  cache: (ReadCosts & { bytes: number; bandwidth: number }) | null;
}

/** How keys and values may be kept. */
const KV_TYPES = ["f32", "f16", "q8"] as const;

/** What reading from a memory costs, where it is computed with at once. */
export interface ReadCosts {
  rows: Record<WeightDType, RowCosts>;
  /** Rows of sign bits, in order; files of before this was measured have none. */
  signs?: RowCost;
  attention: Record<(typeof KV_TYPES)[number], AttentionCost>;
}

export interface RowCosts {
  /** Rows of a matrix in order. */
  project: RowCost;
  /** Rows of every neuron, and of one in ten: gate, up and down. */
  dense: RowCost;
  sparse: RowCost;
}

/** A row of `bytes` takes seconds + bytes / (share · bandwidth). */
export interface RowCost {
  seconds: number;
  share: number;
}

/**
 * A KV head takes headSeconds, and for every element of its cached keys (with one of the values)
 * readSeconds + querySeconds · query heads that share it.
 */
export interface AttentionCost {
  headSeconds: number;
  readSeconds: number;
  querySeconds: number;
}

/** Parses a hardware file (`pi place --hardware`); throws `E_HARDWARE` naming file, member, expected and actual. */
export function parseHardware(text: string, file: string): Hardware {
  return readHardware(Fields.parse(text, file, "E_HARDWARE"));
}

/** A {@link Hardware} from the members of a JSON object; unknown members are ignored. */
export function readHardware(fields: Fields): Hardware {
  const gpu = fields.objectOrNull("gpu");
  const link = fields.object("link");
  return {
    name: fields.string("name"),
    cpu: readCpu(fields.object("cpu")),
    gpu: gpu && {
      name: gpu.string("name"),
      vramBytes: gpu.integer("vramBytes"),
      bandwidth: gpu.number("bandwidth", 1),
      reservedBytes: gpu.integer("reservedBytes"),
      ...(gpu.has("launchSeconds") && { launchSeconds: gpu.number("launchSeconds") }),
    },
    link: { bandwidth: link.number("bandwidth", 1), syncSeconds: link.number("syncSeconds") },
    source: fields.string("source"),
  };
}

export function readCpu(cpu: Fields): Cpu {
  return { bandwidth: cpu.number("bandwidth", 1), ...(cpu.has("work") && { work: readWork(cpu.object("work")) }) };
}

function readWork(work: Fields): CpuWork {
  const cache = work.objectOrNull("cache");
  return {
    threads: work.integer("threads", 1),
    threadBandwidth: work.number("threadBandwidth", 1),
    loopSeconds: work.number("loopSeconds"),
    tokenSeconds: work.number("tokenSeconds"),
    streamSeconds: work.number("streamSeconds"),
    scanSeconds: work.number("scanSeconds"),
    vocabularySeconds: work.number("vocabularySeconds"),
    rankSeconds: work.number("rankSeconds"),
    memory: readCosts(work.object("memory")),
    cache: cache && {
      ...readCosts(cache),
      bytes: cache.integer("bytes", 1),
      bandwidth: cache.number("bandwidth", 1),
    },
  };
}

function readCosts(fields: Fields): ReadCosts {
  const [rows, attention] = [fields.object("rows"), fields.object("attention")];
  const row = (of: Fields): RowCost => ({ seconds: of.number("seconds"), share: of.number("share", 1e-6) });
  return {
    rows: eachOf(WEIGHT_DTYPES, (type) => {
      const costs = rows.object(type);
      return {
        project: row(costs.object("project")),
        dense: row(costs.object("dense")),
        sparse: row(costs.object("sparse")),
      };
    }),
    ...(fields.has("signs") && { signs: row(fields.object("signs")) }),
    attention: eachOf(KV_TYPES, (type) => {
      const cost = attention.object(type);
      return {
        headSeconds: cost.number("headSeconds"),
        readSeconds: cost.number("readSeconds"),
        querySeconds: cost.number("querySeconds"),
      };
    }),
  };
}

function eachOf<K extends string, V>(keys: readonly K[], value: (key: K) => V): Record<K, V> {
  return Object.fromEntries(keys.map((key) => [key, value(key)])) as Record<K, V>;
}
