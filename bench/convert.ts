/**
 * How fast `pi convert` is, on a generated f16 checkpoint of about 1 GB that the page cache holds. Usage:
 * tsx bench/convert.ts [DIR]; DIR (default: the system's temporary directory) decides which disk is written to.
 * Prints a line a type, and one line of JSON at the end.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { convert } from "../convert/convert.ts";
import type { WeightDType } from "../formats/dtypes.ts";
import { silentContext } from "../io/progress.ts";
import { writeLlamaCheckpoint } from "./checkpoint.ts";

const SIZE = { dim: 2048, nNeurons: 8192, nLayers: 6, vocabSize: 16_384 };
const TYPES: readonly WeightDType[] = ["f16", "bf16", "f32", "q8_0", "q4_0"];

const folder = await mkdtemp(join(process.argv[2] ?? tmpdir(), "pi-bench-"));
try {
  const source = join(folder, "source");
  await writeLlamaCheckpoint(source, SIZE);
  const results: Record<
    string,
    { megabytesPerSecond: number; seconds: number; cpuSeconds: number; outputBytes: number }
  > = {};
  for (const dtype of TYPES) {
    const before = process.cpuUsage();
    const { sourceBytes, outputBytes, seconds } = await convert(
      { source, output: join(folder, dtype), dtype },
      { ...silentContext, warn: () => undefined },
    );
    const megabytesPerSecond = Math.round(sourceBytes / 1e6 / seconds);
    const { user, system } = process.cpuUsage(before);
    const cpuSeconds = (user + system) / 1e6;
    results[dtype] = { megabytesPerSecond, seconds, cpuSeconds, outputBytes };
    console.error(
      `${dtype}: ${(sourceBytes / 1e6).toFixed(0)} MB in ${seconds.toFixed(2)} s (${cpuSeconds.toFixed(2)} s of CPU), ${megabytesPerSecond} MB/s of source`,
    );
    await rm(join(folder, dtype), { recursive: true });
  }
  console.log(
    JSON.stringify({ bench: "convert", from: "f16", results, maxResidentBytes: process.resourceUsage().maxRSS * 1024 }),
  );
} finally {
  await rm(folder, { recursive: true });
}
