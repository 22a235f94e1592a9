/**
 * From starting a process to its first token, with the model in the page cache, and what memory that takes besides weights
 * and KV cache. Linux only. Usage: tsx bench/load.ts X [ROUNDS], X an artifact or converted model (bench/generate.ts).
 * Prints a line per command, and one line of JSON at the end.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createReadStream, readFileSync } from "node:fs";
import { realpath } from "node:fs/promises";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { readModelFile } from "../model/model-file.ts";
import { KV_BLOCK } from "../native/index.ts";

const PROMPT = "Once upon a time";

const [model, rounds = "5"] = process.argv.slice(2);
const cli = join(dirname(fileURLToPath(import.meta.url)), "..", "dist", "cli", "main.js");
const file = await readModelFile(model!);
const path = await realpath(file.path);
const { nLayers, nKvHeads, headDim } = file.config;
/** Keys and values of the one block that a short prompt and its answer take. */
const kvBytes = 2 * nLayers * nKvHeads * headDim * KV_BLOCK * (file.dtype === "f32" ? 4 : 2);

function start(...args: string[]) {
  const started = performance.now();
  const child = spawn(process.execPath, [cli, ...args], { stdio: ["ignore", "pipe", "inherit"] });
  return { child, seconds: () => (performance.now() - started) / 1000 };
}

/** CPU seconds that a process has used so far, threads that ended included. */
function cpuSeconds(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
  const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
  return (Number(fields[11]) + Number(fields[12])) / 100; // utime, stime
}

/** Resident bytes: all, and of the mapped weights. */
function resident(pid: number): { rss: number; weights: number } {
  const maps = readFileSync(`/proc/${pid}/smaps`, "utf8").split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m);
  const rss = (map: string) => Number(/^Rss: +(\d+) kB/m.exec(map)?.[1] ?? 0) * 1024;
  const sum = (some: string[]) => some.reduce((total, map) => total + rss(map), 0);
  return { rss: sum(maps), weights: sum(maps.filter((map) => map.split("\n", 1)[0]!.endsWith(path))) };
}

/** `pi serve`, and one streamed request as soon as it is ready. */
async function serve() {
  const { child, seconds } = start("serve", model!, "--port", "0", "--quiet");
  const [url] = (await once(createInterface({ input: child.stdout }), "line")) as [string];
  const ready = seconds();
  const body = JSON.stringify({ prompt: PROMPT, max_tokens: 2, temperature: 0, ignore_eos: true, stream: true });
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${url}/v1/completions`, { method: "POST", headers, body });
  const events = response.body![Symbol.asyncIterator]();
  await events.next();
  const measured = { ready, firstToken: seconds(), cpu: cpuSeconds(child.pid!), ...resident(child.pid!) };
  await events.return?.();
  child.kill("SIGKILL");
  await once(child, "close");
  return measured;
}

/** Seconds to the first text of `pi run`. */
async function run(): Promise<number> {
  const { child, seconds } = start("run", model!, PROMPT, "-n", "2", "--temp", "0", "--ignore-eos");
  await once(child.stdout, "data");
  const first = seconds();
  child.kill("SIGKILL");
  await once(child, "close");
  return first;
}

/** Reads the file, so that it is in the page cache: a system may drop what was not used for a minute. */
async function warm(): Promise<void> {
  for await (const _ of createReadStream(path, { highWaterMark: 4 << 20 }));
}

const runs: number[] = [];
const serves: Awaited<ReturnType<typeof serve>>[] = [];
for (let round = 0; round < Number(rounds); round++) {
  await warm();
  serves.push(await serve());
  runs.push(await run());
}
const weightBytes = [...file.tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
const best = serves.toSorted((a, b) => a.firstToken - b.firstToken)[0]!;
const besides = Math.max(...serves.map(({ rss, weights }) => rss - weights - kvBytes));
const overBytes = Math.max(...serves.map(({ rss }) => rss)) - weightBytes - kvBytes;
const firstTokenOfRun = Math.min(...runs);
const MB = (bytes: number) => `${(bytes / 1e6).toFixed(0)} MB`;
console.error(
  `pi serve: ready after ${best.ready.toFixed(2)} s, first token after ${best.firstToken.toFixed(2)} s (${best.cpu.toFixed(2)} s of CPU); ` +
    `best of ${rounds}`,
);
console.error(`pi run: first token after ${firstTokenOfRun.toFixed(2)} s`);
console.error(
  `memory: ${MB(best.rss)}, of it ${MB(best.weights)} of ${MB(weightBytes)} of weights, ${MB(kvBytes)} of KV, ${MB(besides)} besides`,
);
console.log(JSON.stringify({ bench: "load", weightBytes, kvBytes, besides, overBytes, firstTokenOfRun, serves, runs }));
