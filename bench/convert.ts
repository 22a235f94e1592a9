/**
 * How fast `pi convert` is, on generated checkpoints of about 1 GB that the page cache holds. Usage:
 * tsx bench/convert.ts [DIR]; DIR (default: the system's temporary directory) decides which disk is written to.
 * Prints a line a type, and one line of JSON at the end.
 */
import { existsSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { convert } from "../convert/convert.ts";
import type { WeightDType } from "../formats/dtypes.ts";
import { silentContext } from "../io/progress.ts";
import { SHAPES, writeCheckpoint } from "./synthetic.ts";

const SHAPE = { ...SHAPES["1.26b"], nNeurons: 8192, vocabSize: 16_384 };
const RUNS: readonly (readonly ["f16" | "f32", WeightDType])[] = [
  ["f16", "f16"],
  ["f16", "bf16"],
  ["f16", "f32"],
  ["f16", "q8_0"],
  ["f16", "q4_0"],
  ["f32", "f16"],
];

const folder = await mkdtemp(join(process.argv[2] ?? tmpdir(), "pi-bench-"));
try {
  const quiet = { ...silentContext, warn: () => undefined };
  const results: Record<string, { megabytesPerSecond: number; cpuSecondsPerGigabyte: number }> = {};
  for (const [from, dtype] of RUNS) {
    const source = join(folder, from);
    if (!existsSync(source))
      await writeCheckpoint(source, { ...SHAPE, nLayers: from === "f32" ? 3 : 6 }, { dtype: from });
    const before = process.cpuUsage();
    const { sourceBytes, seconds } = await convert({ source, output: join(folder, "out"), dtype }, quiet);
    const { user, system } = process.cpuUsage(before);
    const megabytesPerSecond = Math.round(sourceBytes / 1e6 / seconds);
    const cpuSecondsPerGigabyte = Math.round(((user + system) / sourceBytes) * 1e5) / 100;
    results[`${from} to ${dtype}`] = { megabytesPerSecond, cpuSecondsPerGigabyte };
    console.error(
      `${from} to ${dtype}: ${megabytesPerSecond} MB/s of source, ${cpuSecondsPerGigabyte} CPU seconds per GB`,
    );
    await rm(join(folder, "out"), { recursive: true });
  }
  const maxResidentBytes = process.resourceUsage().maxRSS * 1024;
  console.log(JSON.stringify({ bench: "convert", results, maxResidentBytes }));
} finally {
  await rm(folder, { recursive: true });
}
