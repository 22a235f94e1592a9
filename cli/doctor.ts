import type { Command } from "commander";
import { cpus } from "node:os";
import type { AttentionCost, CpuWork, Gpu, Hardware, RowCost } from "../formats/hardware.ts";
import { writeAtomic } from "../io/atomic-file.ts";
import { describeMachine, type Machine } from "../io/hardware.ts";
import { measurement } from "../model/measure-cpu.ts";
import { addonPath, KV_TYPES, native, type DeviceReport } from "../native/index.ts";
import { measureMachine } from "../place/hardware.ts";
import { formatBytes, formatNumber, printJson, printTable } from "./output.ts";
import { percent } from "./place.ts";
import { parseNumber, parseSize } from "./sizes.ts";

interface Options {
  output?: string;
  buffer?: number;
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
    .option("-o, --output <FILE>", "write what pi place --hardware takes")
    .option("--buffer <SIZE>", "buffer in main memory (default: 1 GiB, at most a quarter of what is free)", parseSize)
    .option("--seconds <S>", "time for each bandwidth; loops get a twentieth", parseNumber(0.01, 60), 1)
    .option("--json", "print one JSON document; its member `hardware` is a hardware file for pi place")
    .action(async ({ output, json, ...options }: Options) => {
      const machine = await describeMachine();
      const addon = describeAddon();
      const works = "isa" in addon;
      const bytes = (await measurement(options.buffer)).memoryBytes;
      const bandwidth = works ? await measure(machine, bytes, options.seconds) : [];
      const hardware = works ? await measureLoops(bytes, options.seconds) : null;
      const gpu: DeviceReport = works ? native().device() : { found: false, reason: "unknown without the addon" };
      const report = { ...machine, gpu, node: process.version, addon, bandwidth, hardware };
      if (output !== undefined && hardware)
        await writeAtomic(output, (file) => file.writeFile(`${JSON.stringify(hardware, null, 2)}\n`));
      if (json) printJson(report);
      else print(report);
      if (!works) process.exitCode = 1;
    });
}

/** A loop's share of the time for a bandwidth. */
const LOOP_SHARE = 0.05;

async function measureLoops(memoryBytes: number, seconds: number): Promise<Hardware> {
  return measureMachine({ ...(await measurement()), memoryBytes, seconds: seconds * LOOP_SHARE });
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

interface Report extends Machine {
  gpu: DeviceReport;
  node: string;
  addon: Addon;
  bandwidth: Bandwidth[];
  hardware: Hardware | null;
}

function describeGpu(gpu: DeviceReport): string {
  if (!gpu.found) return `none: ${gpu.reason}`;
  const memory = `${formatBytes(gpu.freeBytes)} of ${formatBytes(gpu.totalBytes)} free (${formatBytes(gpu.contextBytes)} are this process's context)`;
  const interfaceName = gpu.backend === "hip" ? "HIP" : "CUDA";
  const versions =
    gpu.backend === "emulated"
      ? ""
      : `; driver for ${interfaceName} ${gpu.driverVersion}, built with ${gpu.runtimeVersion}`;
  return `${gpu.name}, compute capability ${gpu.compute}, ${gpu.multiprocessors} multiprocessors, ${memory}${versions}`;
}

function print(report: Report): void {
  const { addon, caches, memory } = report;
  const lines = [
    ["CPU", `${report.cpu}, ${report.threads} of ${cpus().length} threads`],
    ["caches", caches.map(({ level, size }) => `level ${level} ${formatBytes(size)}`).join(", ") || "unknown"],
    ["memory", `${formatBytes(memory.total)}, ${formatBytes(memory.available)} available`],
    ["GPU", describeGpu(report.gpu)],
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
  if (report.hardware?.gpu) printGpu(report.hardware.gpu, report.hardware.link);
  if (report.hardware?.cpu.work) printWork(report.hardware.cpu.bandwidth, report.hardware.cpu.work);
}

/** What a split is priced with. */
function printGpu(gpu: Gpu, link: Hardware["link"]): void {
  const speed = (bandwidth: number): string => `${formatNumber(bandwidth / 1e9)} GB/s`;
  const us = (seconds: number): string => `${formatNumber(seconds * 1e6)} µs`;
  const kernel = gpu.launchSeconds === undefined ? "" : `; a kernel ${us(gpu.launchSeconds)} beside what it reads`;
  process.stdout.write(
    `\nGPU memory ${speed(gpu.bandwidth)}; copies to it ${speed(link.bandwidth)}; a meeting with the CPU ${us(link.syncSeconds)}${kernel}\n`,
  );
}

/** What the engine's loops take, in a memory at a time. */
function printWork(bandwidth: number, { memory, cache, ...work }: CpuWork): void {
  const levels = [
    { what: "memory", bandwidth, costs: memory },
    ...(cache ? [{ what: "cache", bandwidth: cache.bandwidth, costs: cache }] : []),
  ];
  const us = (seconds: number): string => `${formatNumber(seconds * 1e6)} µs`;
  const cost = ({ share, seconds }: RowCost): string => `${percent(share)} + ${formatNumber(seconds * 1e9)} ns`;
  process.stdout.write("\nshare of the bandwidth that rows of weights reach, and what each takes besides\n");
  printTable(
    ["in", "type", "projections", "all neurons", "one in ten"],
    levels.flatMap(({ what, costs }) =>
      Object.entries(costs.rows).map(([type, rows]) => [
        what,
        type,
        cost(rows.project),
        cost(rows.dense),
        cost(rows.sparse),
      ]),
    ),
  );
  process.stdout.write(
    `\na token: crossing to the engine ${us(work.tokenSeconds)}; a parallel loop ${us(work.loopSeconds)}; ` +
      `per layer and 1,000 of width ${us(1e3 * work.streamSeconds)}; per 1,000 logits ${us(1e3 * work.vocabularySeconds)}\n`,
  );
  process.stdout.write("\na token's keys and values, a head of 64 at 1,000 tokens of context\n");
  printTable(
    ["in", "f32", "f16", "q8"],
    levels.map(({ what, costs }) => [what].concat(KV_TYPES.map((type) => us(keysAndValues(costs.attention[type]))))),
  );
}

/** Seconds of a head of 64 at 1,000 tokens of context that no other shares. */
const keysAndValues = ({ headSeconds, readSeconds, querySeconds }: AttentionCost): number =>
  headSeconds + 64e3 * (readSeconds + querySeconds);
