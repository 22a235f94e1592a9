import type { Command } from "commander";
import { cpus } from "node:os";
import type { Hardware } from "../formats/hardware.ts";
import { describeMachine, type Machine } from "../io/hardware.ts";
import { addonPath, native } from "../native/index.ts";
import { REFERENCE_LINK } from "../place/hardware.ts";
import { formatBytes, formatNumber, printJson, printTable } from "./output.ts";
import { parseNumber, parseSize } from "./sizes.ts";

interface Options {
  buffer: number;
  seconds: number;
  json?: boolean;
}

/** Read bandwidth of a buffer, bytes per second. */
interface Bandwidth {
  what: string;
  bytes: number;
  threads: number;
  bytesPerSecond: number;
}

export function define(command: Command): void {
  command
    .option("--buffer <SIZE>", "buffer for the memory bandwidth, beyond any cache", parseSize, 512 << 20)
    .option("--seconds <S>", "time for each bandwidth", parseNumber(0.01, 60), 1)
    .option("--json", "print one JSON document; its member `hardware` is a hardware file for pi place")
    .action(async ({ buffer, seconds, json }: Options) => {
      const machine = await describeMachine();
      const addon = describeAddon();
      const bandwidth = "isa" in addon ? await measure(machine, buffer, seconds) : [];
      const report = {
        ...machine,
        node: process.version,
        addon,
        bandwidth,
        hardware: hardwareFile(machine, bandwidth),
      };
      if (json) printJson(report);
      else print(report);
      if (!("isa" in addon)) process.exitCode = 1;
    });
}

type Addon = { path: string; isa: { active: string; available: string[] } } | { path: string; problem: string };

function describeAddon(): Addon {
  const path = addonPath();
  try {
    return { path, isa: native().isa() };
  } catch (error) {
    return { path, problem: (error as Error).message };
  }
}

/** Memory and last-level cache (half of it, so that neighbours leave room), with one thread and with all. */
async function measure({ caches, threads }: Machine, buffer: number, seconds: number): Promise<Bandwidth[]> {
  const last = caches.at(-1);
  const buffers = [
    { what: "memory", bytes: buffer },
    ...(last ? [{ what: `level ${last.level} cache`, bytes: last.size / 2 }] : []),
  ];
  const found: Bandwidth[] = [];
  for (const { what, bytes } of buffers) {
    for (const n of new Set([1, threads])) {
      found.push({ what, bytes, threads: n, bytesPerSecond: await native().readBandwidth(bytes, n, seconds) });
    }
  }
  return found;
}

/** This machine as `pi place --hardware` takes it; null when nothing could be measured. */
function hardwareFile({ cpu, threads }: Machine, bandwidth: Bandwidth[]): Hardware | null {
  const memory = bandwidth.findLast(({ what }) => what === "memory");
  if (!memory) return null;
  return {
    name: `${cpu} (${threads} threads)`,
    cpu: { bandwidth: Math.round(memory.bytesPerSecond) },
    gpu: null,
    link: REFERENCE_LINK,
    source: "CPU bandwidth measured by pi doctor; link: an estimate",
  };
}

function print(report: Machine & { node: string; addon: Addon; bandwidth: Bandwidth[] }): void {
  const { addon, caches, memory } = report;
  const lines = [
    ["CPU", `${report.cpu}, ${report.threads} of ${cpus().length} threads`],
    ["caches", caches.map(({ level, size }) => `level ${level} ${formatBytes(size)}`).join(", ") || "unknown"],
    ["memory", `${formatBytes(memory.total)}, ${formatBytes(memory.available)} available`],
    ["GPU", `none: ${report.gpu.reason}`],
    ["Node", report.node],
    ["addon", addon.path],
    ["ISA", "isa" in addon ? `${addon.isa.active} of ${addon.isa.available.join(", ")}` : `unknown: ${addon.problem}`],
  ];
  for (const [what, value] of lines) process.stdout.write(`${what!.padEnd(8)}${value}\n`);
  if (report.bandwidth.length === 0) return;
  process.stdout.write("\n");
  printTable(
    ["read from", "buffer", "threads", "GB/s"],
    report.bandwidth.map(({ what, bytes, threads, bytesPerSecond }) => {
      return [what, formatBytes(bytes), threads, formatNumber(bytesPerSecond / 1e9)];
    }),
  );
}
