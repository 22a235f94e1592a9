/** The CPU that predictors are chosen for: the one that a hardware file describes, or this one. */
import { availableParallelism } from "node:os";
import { WEIGHT_DTYPES, type WeightDType } from "../formats/dtypes.ts";
import type { Cpu } from "../formats/hardware.ts";
import { machineName, readHardwareText } from "../io/hardware.ts";
import { sha256 } from "../io/hash.ts";
import { measureCpu, measurement } from "../model/measure-cpu.ts";
import type { ModelFile } from "../model/model-file.ts";
import { PREDICTOR_DTYPES } from "./store.ts";

export interface Machine {
  /** What the provenance calls it: sha256 of a file, or this machine's name. */
  machine: string;
  /** Undefined: it is to be measured. */
  cpu: Cpu | undefined;
}

/** Throws `E_FILE`, `E_HARDWARE`. */
export async function machineOf(hardware: string | undefined): Promise<Machine> {
  if (hardware === undefined) return { machine: machineName(), cpu: undefined };
  const { text, hardware: described } = await readHardwareText(hardware);
  return { machine: sha256(text), cpu: described.cpu };
}

/** For each probe, and how often each is run: the fastest counts, as it is least disturbed by neighbours. */
const PROBE = { seconds: 0.005, passes: 3 };

/** Significant digits that are kept: more would be noise. */
const DIGITS = 3;

/**
 * Measures what choosing needs: rows of the model's types, and of those that predictors are stored in. Takes a second or
 * two.
 */
export async function measureHere({ tensors }: ModelFile, modelBytes: number): Promise<Cpu> {
  const types = new Set<WeightDType>(PREDICTOR_DTYPES);
  for (const { dtype } of tensors.values()) for (const type of WEIGHT_DTYPES) if (type === dtype) types.add(type);
  const usual = await measurement(modelBytes);
  const cacheBytes = usual.cacheBytes !== null && modelBytes <= usual.cacheBytes ? usual.cacheBytes : null;
  const what = { ...usual, ...PROBE, cacheBytes, threads: availableParallelism(), types: [...types], kvTypes: [] };
  return rounded(await measureCpu(what));
}

/** `value`, JSON, with its fractions rounded. */
const rounded = <T>(value: T): T =>
  JSON.parse(JSON.stringify(value), (_key, v: unknown) =>
    typeof v === "number" && !Number.isInteger(v) ? Number(v.toPrecision(DIGITS)) : v,
  ) as T;
