/**
 * What the server costs on top of the engine: CPU time of its JavaScript thread per streamed token, the engine's own
 * threads left out. Linux only. Usage: tsx bench/server.ts X [TOKENS], X an artifact or converted model.
 * Prints a line per number of streams, and one line of JSON at the end.
 */
import { spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const STREAMS = [1, 4, 16, 64];

const [model, tokens = "400"] = process.argv.slice(2);
const cli = join(dirname(fileURLToPath(import.meta.url)), "..", "dist", "cli", "main.js");
const server = spawn(process.execPath, [cli, "serve", model!, "--port", "0", "--parallel", "64", "--quiet"], {
  stdio: ["ignore", "pipe", "inherit"],
});
const [url] = (await once(createInterface({ input: server.stdout }), "line")) as [string];

/** Seconds of CPU that the thread running JavaScript has used: the process's first. */
function javascriptSeconds(): number {
  const [nanoseconds] = readFileSync(`/proc/${server.pid}/task/${server.pid}/schedstat`, "utf8").split(" ");
  return Number(nanoseconds) / 1e9;
}

/** Reads one streamed completion to its end. */
async function stream(): Promise<void> {
  const body = JSON.stringify({ prompt: "The", max_tokens: Number(tokens), ignore_eos: true, stream: true });
  const headers = { "content-type": "application/json" };
  const response = await fetch(`${url}/v1/completions`, { method: "POST", headers, body });
  for await (const _ of response.body!);
}

async function generatedTokens(): Promise<number> {
  const metrics = await (await fetch(`${url}/metrics`)).text();
  return Number(/^pi_generation_tokens_total (\d+)/m.exec(metrics)![1]);
}

try {
  await stream(); // compiled before it is measured
  const results = [];
  for (const streams of STREAMS) {
    const [cpu, generated, started] = [javascriptSeconds(), await generatedTokens(), performance.now()];
    await Promise.all(Array.from({ length: streams }, stream));
    const seconds = (performance.now() - started) / 1000;
    const count = (await generatedTokens()) - generated;
    const cpuMsPerToken = ((javascriptSeconds() - cpu) * 1000) / count;
    results.push({ streams, tokens: count, tokensPerSecond: count / seconds, cpuMsPerToken });
    console.error(
      `${streams} streams: ${cpuMsPerToken.toFixed(3)} ms of CPU a token, ${(count / seconds).toFixed(0)} tokens/s`,
    );
  }
  console.log(JSON.stringify({ bench: "server", results }));
} finally {
  server.kill();
}
