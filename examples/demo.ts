/**
 * `npm run demo`: the shipped model through all five stages, with the command line that a user would type, and what came of it.
 * Everything lands in out/demo; a second run finds the stages up to date.
 */
import { existsSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import OpenAI from "openai";
import { formatSeconds } from "../cli/output.ts";
import { addonPath } from "../native/index.ts";
import { CommandFailed, pi, run, serve } from "./demo/commands.ts";
import { printReport, type Results } from "./demo/report.ts";

process.chdir(join(dirname(fileURLToPath(import.meta.url)), ".."));

const CHECKPOINT = "examples/pi-tale-7m";
const CORPUS = "examples/corpus.txt";
const HELDOUT = "examples/heldout.txt";
const WORK = "out/demo/work";
const ARTIFACT = "out/demo/pi-tale-7m.pi";

/** Enough text and samples for a model of this size, and little enough for two cores. */
const PROFILE = ["--tokens", "60000", "--samples", "8000"];
const EVAL_TOKENS = "8192";
/**
 * For a PC with a small GPU, whatever this machine is: a model of this size runs from a server's cache before a GPU could be
 * asked. The budget forces a choice: beside a runtime's context (512 MiB) and scratch, about half of the weights fit.
 */
const PLACE = ["--hardware", "examples/hardware/rtx-3060-ddr4.json", "--vram", "525M"];

const PROMPT = "The old captain looked out over the sea, and";

async function demo(): Promise<void> {
  const started = performance.now();
  if (!existsSync("dist/cli/main.js") || !existsSync(addonPath())) await run("npm", ["run", "build"]);
  await mkdir(dirname(ARTIFACT), { recursive: true });

  const converted: Results["converted"] = await pi("convert", CHECKPOINT, "-o", WORK);
  const profiled: Results["profiled"] = await pi("profile", WORK, "--corpus", CORPUS, ...PROFILE);
  const trained: Results["trained"] = await pi("train-predictor", WORK);
  const placed: Results["placed"] = await pi("place", WORK, ...PLACE, "-o", ARTIFACT);
  await ask();
  const quality: Results["quality"] = await pi("eval", ARTIFACT, "--corpus", HELDOUT, "--tokens", EVAL_TOKENS);
  const speed: Results["speed"] = await pi("bench", ARTIFACT);

  printReport({ converted, profiled, trained, placed, quality, speed });
  console.log(
    `${ARTIFACT} made, asked and measured in ${formatSeconds((performance.now() - started) / 1000)}. What to type next:\n\n${NEXT}`,
  );
}

/** Starts the server, streams one completion to the terminal with OpenAI's own client, and stops the server. */
async function ask(): Promise<void> {
  const server = await serve(ARTIFACT, "--port", "0", "--quiet");
  try {
    const client = new OpenAI({ baseURL: `${server.url}/v1`, apiKey: "none", maxRetries: 0 });
    const { data } = await client.models.list();
    const request = { model: data[0]!.id, prompt: PROMPT, max_tokens: 120, temperature: 0.7, seed: 1 };
    console.log(`\nPOST ${server.url}/v1/completions`);
    process.stdout.write(`  ${PROMPT}`);
    for await (const { choices } of await client.completions.create({ ...request, stream: true })) {
      process.stdout.write(choices[0]?.text ?? "");
    }
    process.stdout.write("\n");
  } finally {
    await server.stop();
  }
}

const NEXT = [
  [`run ${ARTIFACT} "It was a dark night"`, "another text; without one it chats"],
  [`serve ${ARTIFACT}`, "http://127.0.0.1:8080/v1 for any OpenAI client"],
  [`inspect ${ARTIFACT} --report out/demo/report.html`, "what is in the file, with pictures"],
  ["build ORG/NAME --corpus TEXT --vram 8G -o X.pi", "a model of your own"],
]
  .map(([command, what]) => `  node dist/cli/main.js ${command!.padEnd(60)}  ${what}\n`)
  .join("");

try {
  await demo();
} catch (error) {
  if (!(error instanceof CommandFailed)) throw error;
  console.error(`demo: ${error.message}`);
  process.exitCode = error.exitCode;
}
