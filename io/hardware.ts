/** What the operating system says of this machine, or a file of another. */
import { readdir, readFile } from "node:fs/promises";
import { availableParallelism, cpus, freemem, totalmem } from "node:os";
import { join } from "node:path";
import { PiError } from "../formats/errors.ts";
import { parseHardware, type Hardware } from "../formats/hardware.ts";

export interface Machine {
  /** The processor's name, and how many threads this process may use. */
  cpu: string;
  threads: number;
  caches: Cache[];
  /** Bytes. */
  memory: { total: number; available: number };
}

/** A data or unified cache of the first core. */
export interface Cache {
  level: number;
  /** Bytes. */
  size: number;
}

export async function describeMachine(): Promise<Machine> {
  return {
    cpu: cpuName(),
    threads: availableParallelism(),
    caches: await readCaches(),
    memory: { total: totalmem(), available: await availableMemory() },
  };
}

/** Name of the processor, e.g. "AMD EPYC". */
export const cpuName = (): string => cpus()[0]?.model.trim() ?? process.arch;

/** Name of this machine's processors, e.g. "AMD EPYC (2 threads)". */
export function machineName(): string {
  return `${cpuName()} (${availableParallelism()} threads)`;
}

/** Reads a hardware file. Throws `E_FILE`, `E_HARDWARE`. */
export async function readHardwareText(path: string): Promise<{ hardware: Hardware; text: string }> {
  const text = await readFile(path, "utf8").catch((error: NodeJS.ErrnoException) => {
    throw new PiError("E_FILE", `${path}: expected a hardware file, found ${error.code}`);
  });
  return { hardware: parseHardware(text, path), text };
}

const CACHES = "/sys/devices/system/cpu/cpu0/cache";

/** Caches by level; empty where the system does not tell. */
export async function readCaches(folder = CACHES): Promise<Cache[]> {
  const names = await readdir(folder).catch(() => []);
  const read = async (name: string, file: string) => (await readFile(join(folder, name, file), "utf8")).trim();
  const caches: Cache[] = [];
  for (const name of names.filter((n) => /^index\d+$/.test(n))) {
    if ((await read(name, "type")) === "Instruction") continue;
    const [, size, unit = ""] = /^(\d+)([KM]?)$/.exec(await read(name, "size")) ?? [];
    const scale = { "": 1, K: 2 ** 10, M: 2 ** 20 }[unit]!;
    caches.push({ level: Number(await read(name, "level")), size: Number(size) * scale });
  }
  return caches.sort((a, b) => a.level - b.level);
}

/** Memory that can be had without swapping: on Linux more than what is free. */
async function availableMemory(): Promise<number> {
  const info = await readFile("/proc/meminfo", "utf8").catch(() => "");
  const kibibytes = /^MemAvailable:\s+(\d+) kB$/m.exec(info)?.[1];
  return kibibytes === undefined ? freemem() : Number(kibibytes) * 1024;
}
