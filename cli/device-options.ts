import { type Command, Option } from "commander";
import { DEVICES, type DeviceChoice, type DeviceOptions, type DeviceUse } from "../model/device.ts";
import { formatBytes, formatNumber } from "./output.ts";
import { parseSize } from "./sizes.ts";

/** Where a model is computed, as all commands that open one take it. */
export interface DeviceFlags {
  device: DeviceChoice;
  vram?: number;
  adapt?: boolean;
}

export const deviceOption = (): Option =>
  new Option("--device <NAME>", "auto: the GPU, if there is one and the artifact was placed for one").choices(DEVICES);

export function addDeviceOptions(command: Command): Command {
  return addVramOption(command.addOption(deviceOption().default("auto")));
}

export function addVramOption(command: Command): Command {
  return command.option(
    "--vram <SIZE>",
    "GPU memory that this process may take, all told, e.g. 8G; 0: none (default: what it was placed for)",
    parseSize,
  );
}

export function addAdaptOption(command: Command): Command {
  return command.option(
    "--adapt",
    "move what is asked for most to the GPU while running; texts then depend, in rare ties, on what ran before",
  );
}

export function deviceOptions({ device, vram, adapt }: DeviceFlags): DeviceOptions {
  return { device, ...(vram !== undefined && { vram }), ...(adapt && { adapt }) };
}

/** One line on stderr about the GPU, or why there is none, where an artifact was placed for one. */
export function reportDevice(device: DeviceUse): void {
  const text = describeDevice(device);
  if (text !== undefined) console.error(`pi: ${text}`);
}

export function describeDevice({ gpu, missing }: DeviceUse): string | undefined {
  if (missing !== undefined) return `${missing}; the CPU computes everything`;
  if (!gpu) return undefined;
  const { name, memory, budget, split, reduced } = gpu;
  const { layers, head } = split;
  const count = (some: (layer: (typeof layers)[number]) => boolean): number => layers.filter(some).length;
  const neurons = layers.reduce((sum, layer) => sum + layer.neurons, 0);
  const parts = [
    `${formatNumber(neurons)} neurons`,
    `attention of ${count(({ attention }) => attention)} of ${layers.length} layers`,
    ...(head ? ["the head"] : []),
  ];
  const less = reduced ? "; less than was placed, to fit" : "";
  return `${name}: ${formatBytes(memory.total)} of ${formatBytes(budget)} for ${parts.join(", ")}${less}`;
}
