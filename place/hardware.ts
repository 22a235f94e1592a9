import type { Gpu, Hardware } from "../formats/hardware.ts";
import { machineName, readHardwareText } from "../io/hardware.ts";
import { DEFAULT_LAUNCH_SECONDS } from "../model/gpu-kernels.ts";
import { measureCpu, measurement, type CpuMeasurement } from "../model/measure-cpu.ts";
import { native } from "../native/index.ts";
import type { GpuHardware } from "./price.ts";

/**
 * The GPU that splits are made for where the machine has none and no file describes one: as fast as the card of the
 * paper's larger machine (examples/hardware/rtx-4090-ddr5.json; a test compares), with as much memory as the budget
 * says and no runtime context, as there is no runtime to hold one.
 */
export const REFERENCE = {
  name: "reference GPU (as fast as an RTX 4090)",
  bandwidth: 1008e9,
  launchSeconds: DEFAULT_LAUNCH_SECONDS,
};
export const REFERENCE_LINK = { bandwidth: 25e9, syncSeconds: 20e-6 };

const referenceGpu = (vramBytes: number): Gpu => ({ ...REFERENCE, vramBytes, reservedBytes: 0 });

/** Bytes of its memory that a GPU is measured with; an emulated one is no faster than its host. */
const GPU_PROBE_BYTES = { cuda: 256 << 20, emulated: 64 << 10 };

/** The GPU and its link, measured, or null where there is none. */
export async function measureGpu(): Promise<Pick<GpuHardware, "gpu" | "link"> | null> {
  const device = native().device();
  if (!device.found) return null;
  const bytes = GPU_PROBE_BYTES[device.backend === "emulated" ? "emulated" : "cuda"];
  const { bandwidth, linkBandwidth, syncSeconds, launchSeconds } = await native().probeDevice(bytes);
  const { name, totalBytes: vramBytes, contextBytes: reservedBytes } = device;
  return {
    gpu: { name, vramBytes, bandwidth, reservedBytes, launchSeconds },
    link: { bandwidth: linkBandwidth, syncSeconds },
  };
}

/** This machine as a hardware file, with its GPU where it has one. Takes several seconds. */
export async function measureMachine(what: CpuMeasurement): Promise<Hardware> {
  const found = await measureGpu();
  return {
    name: machineName(),
    cpu: await measureCpu(what),
    gpu: found?.gpu ?? null,
    link: found?.link ?? REFERENCE_LINK,
    source: found
      ? "CPU and GPU measured by pi doctor"
      : "CPU measured by pi doctor; no GPU found, so link is an estimate (PCIe 4.0 x16)",
  };
}

/** This machine, measured now, with the {@link REFERENCE} GPU where it has none. */
export async function measureHardware(vramBytes: number, modelBytes: number): Promise<GpuHardware> {
  const machine = await measureMachine(await measurement(modelBytes));
  if (machine.gpu) return { ...machine, gpu: machine.gpu, source: "CPU and GPU measured here" };
  return {
    ...machine,
    gpu: referenceGpu(vramBytes),
    source: "CPU measured here; no GPU found, so splits are made for the reference one",
  };
}

/** Reads a hardware file. Throws `E_FILE`, `E_HARDWARE`; a machine without a GPU gets the {@link REFERENCE} one. */
export async function readHardwareFile(
  path: string,
  vramBytes: number,
): Promise<{ hardware: GpuHardware; text: string }> {
  const { hardware, text } = await readHardwareText(path);
  return { hardware: { ...hardware, gpu: hardware.gpu ?? referenceGpu(vramBytes) }, text };
}
