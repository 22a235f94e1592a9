import { readFile } from "node:fs/promises";
import { availableParallelism, cpus } from "node:os";
import { PiError } from "../formats/errors.ts";
import { parseHardware, type Hardware } from "../formats/hardware.ts";
import { native } from "../native/index.ts";
import type { GpuHardware } from "./plan.ts";

/**
 * The GPU that splits are made for where the machine has none and no file describes one: the card of the paper's larger
 * machine, with a runtime context of 0 because there is no runtime to hold one. Compared with its hardware file by a test.
 */
export const REFERENCE = {
  gpu: { name: "NVIDIA GeForce RTX 4090 (reference)", vramBytes: 24 * 2 ** 30, bandwidth: 1008e9, reservedBytes: 0 },
  link: { bandwidth: 25e9, syncSeconds: 20e-6 },
};

/** Far larger than any last-level cache. */
const PROBE_BYTES = 512 << 20;
const PROBE_SECONDS = 1;

/** Name of this machine's processors, e.g. "AMD EPYC (2 threads)". */
export function machineName(): string {
  return `${cpus()[0]?.model.trim() ?? process.arch} (${availableParallelism()} threads)`;
}

/** This machine: its memory's read bandwidth as measured now, with the {@link REFERENCE} GPU. Takes over a second. */
export async function measureHardware(): Promise<GpuHardware> {
  const bandwidth = await native().readBandwidth(PROBE_BYTES, availableParallelism(), PROBE_SECONDS);
  return {
    name: machineName(),
    cpu: { bandwidth: Math.round(bandwidth) },
    ...REFERENCE,
    source: "CPU bandwidth measured on this machine; it has no GPU, so the GPU is a reference card",
  };
}

/** Reads a hardware file. Throws `E_FILE`, `E_HARDWARE`; a machine without a GPU gets the {@link REFERENCE} one. */
export async function readHardwareFile(path: string): Promise<{ hardware: GpuHardware; text: string }> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    throw new PiError("E_FILE", `${path}: expected a hardware file, found ${error.code}`);
  });
  return { hardware: withGpu(parseHardware(text, path)), text };
}

const withGpu = (hardware: Hardware): GpuHardware => ({ ...hardware, gpu: hardware.gpu ?? REFERENCE.gpu });
