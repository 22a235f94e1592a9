import { readFile } from "node:fs/promises";
import { availableParallelism } from "node:os";
import { PiError } from "../formats/errors.ts";
import { parseHardware, type Gpu } from "../formats/hardware.ts";
import { cpuName } from "../io/hardware.ts";
import { native } from "../native/index.ts";
import type { GpuHardware } from "./plan.ts";

/**
 * The GPU that splits are made for where the machine has none and no file describes one: as fast as the card of the
 * paper's larger machine (examples/hardware/rtx-4090-ddr5.json; a test compares), with as much memory as the budget
 * says and no runtime context, as there is no runtime to hold one.
 */
export const REFERENCE = { name: "reference GPU (as fast as an RTX 4090)", bandwidth: 1008e9 };
export const REFERENCE_LINK = { bandwidth: 25e9, syncSeconds: 20e-6 };

const referenceGpu = (vramBytes: number): Gpu => ({ ...REFERENCE, vramBytes, reservedBytes: 0 });

/** Far larger than any last-level cache. */
const PROBE_BYTES = 512 << 20;
const PROBE_SECONDS = 1;

/** Name of this machine's processors, e.g. "AMD EPYC (2 threads)". */
export function machineName(): string {
  return `${cpuName()} (${availableParallelism()} threads)`;
}

/** This machine: its memory's read bandwidth as measured now, with the {@link REFERENCE} GPU. Takes over a second. */
export async function measureHardware(vramBytes: number): Promise<GpuHardware> {
  const bandwidth = await native().readBandwidth(PROBE_BYTES, availableParallelism(), PROBE_SECONDS);
  return {
    name: machineName(),
    cpu: { bandwidth: Math.round(bandwidth) },
    gpu: referenceGpu(vramBytes),
    link: REFERENCE_LINK,
    source: "CPU bandwidth measured here; no GPU found, so splits are made for the reference one",
  };
}

/** Reads a hardware file. Throws `E_FILE`, `E_HARDWARE`; a machine without a GPU gets the {@link REFERENCE} one. */
export async function readHardwareFile(
  path: string,
  vramBytes: number,
): Promise<{ hardware: GpuHardware; text: string }> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    throw new PiError("E_FILE", `${path}: expected a hardware file, found ${error.code}`);
  });
  const hardware = parseHardware(text, path);
  return { hardware: { ...hardware, gpu: hardware.gpu ?? referenceGpu(vramBytes) }, text };
}
