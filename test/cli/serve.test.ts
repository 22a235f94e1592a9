import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { connect } from "node:net";
import { createInterface } from "node:readline";
import { setTimeout } from "node:timers/promises";
import OpenAI from "openai";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { tinyModel } from "../runtime/tiny-model.ts";
import { inProcess } from "./in-process.ts";
import { PI, pi, piJson } from "./pi.ts";

let model: Awaited<ReturnType<typeof tinyModel>>;
beforeAll(async () => {
  model = await tinyModel();
});
afterAll(() => model.remove());

let child: ChildProcess | undefined;
afterEach(() => child?.kill("SIGKILL"));

/** Starts `pi serve` on a free port; its first line on stdout is the URL. */
async function serve(...args: string[]) {
  child = spawn(process.execPath, [PI, "serve", model.dir, "--port", "0", "--threads", "2", ...args], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stderr = "";
  child.stderr!.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  const ended = once(child, "close").then(() => Promise.reject(new Error(`pi serve ended: ${stderr}`)));
  const [url] = (await Promise.race([once(createInterface({ input: child.stdout! }), "line"), ended])) as [string];
  ended.catch(() => undefined); // from here on it may
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "key", maxRetries: 0 });
  const name = (await client.models.list()).data[0]!.id;
  const greedy = { model: name, max_tokens: 20, temperature: 0 };
  return { child, url, client, name, greedy, stderr: () => stderr };
}

async function gauge(url: string, name: string): Promise<number> {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(new RegExp(`^${name} (.+)$`, "m").exec(text)![1]);
}

const PROMPTS = ["Once upon", "a", "The end of the story is not near", "x = 1;", "Why?", "{}", "mmmm", "...and so on"];

test("answers as pi run does, alone and in company, streamed and whole", async () => {
  const { client, greedy } = await serve();
  const complete = async (prompt: string) => (await client.completions.create({ ...greedy, prompt })).choices[0]!.text;
  const together = await Promise.all(PROMPTS.map(complete));
  const alone = [];
  for (const prompt of PROMPTS) alone.push(await complete(prompt));
  expect(together).toEqual(alone);
  const batch = await client.completions.create({ ...greedy, prompt: PROMPTS });
  expect(batch.choices.map(({ text }) => text)).toEqual(alone);
  let streamed = "";
  const stream = await client.completions.create({ ...greedy, prompt: PROMPTS[0]!, stream: true });
  for await (const { choices } of stream) streamed += choices[0]!.text;
  expect(streamed).toBe(alone[0]);
  const run = await piJson<{ text: string }>(["run", model.dir, PROMPTS[0]!, "-n", "20", "--temp", "0"]);
  expect(run.text).toBe(alone[0]);
});

test("counts its guesses, makes none with --speculate 0, and says the same", async () => {
  const request = { prompt: "abcabcabc", max_tokens: 100 };
  const answers = [];
  for (const args of [[], ["--speculate", "0"]]) {
    const { client, greedy, url } = await serve(...args);
    const { choices, usage } = await client.completions.create({ ...greedy, ...request });
    answers.push({ text: choices[0]!.text, usage });
    const drafted = await gauge(url, "pi_draft_tokens_total");
    const accepted = await gauge(url, "pi_draft_tokens_accepted_total");
    if (args.length === 0) expect(accepted).toBeGreaterThan(0);
    else expect(drafted).toBe(0);
    expect(drafted).toBeGreaterThanOrEqual(accepted);
    child!.kill("SIGKILL");
  }
  expect(answers[1]).toEqual(answers[0]);
});

test("scores a text as it was generated, up to the rounding of its prompt", async () => {
  const { client, greedy } = await serve("--mode", "exact");
  const prompt = [1, 40, 41, 42];
  // Printable ASCII only, so that token ids follow from the texts.
  const logit_bias = Object.fromEntries([0, 1, 2, ...Array(30).keys()].map((id, i) => [i < 3 ? id : 98 + id, -100]));
  const sampled = { ...greedy, prompt, temperature: 1, seed: 5, logprobs: 3, logit_bias };
  const { text, logprobs } = (await client.completions.create(sampled)).choices[0]!;
  const ids = Array.from(text, (character) => 3 + character.charCodeAt(0) - 32);
  expect(ids).toHaveLength(20);
  const request = { ...greedy, prompt: [...prompt, ...ids], echo: true, logprobs: 3, max_tokens: 0 };
  const scored = (await client.completions.create(request)).choices[0]!.logprobs!;
  // A prompt that is generated from is computed by other sums than one that is scored.
  const differences = scored
    .token_logprobs!.slice(prompt.length)
    .map((p, i) => Math.abs(p! - logprobs!.token_logprobs![i]!));
  expect(Math.max(...differences)).toBeLessThan(1e-4);
  const best = (top: Record<string, number>[]) => top.map((entry) => Object.keys(entry));
  expect(best(scored.top_logprobs!.slice(prompt.length))).toEqual(best(logprobs!.top_logprobs!));
});

test("chats, keeps its key, and frees what a client leaves behind", async () => {
  const { client, url } = await serve("--name", "tiny", "--quiet");
  const chat = { model: "tiny", messages: [{ role: "user" as const, content: "Hi" }] };
  const { usage } = await client.chat.completions.create({ ...chat, max_tokens: 5 });
  expect(usage!.prompt_tokens).toBe("<u:Hi;a:".length);
  const stream = await client.chat.completions.create({ ...chat, stream: true, logit_bias: { "2": -100 } });
  for await (const _ of stream) break;
  while ((await gauge(url, "pi_requests_running")) > 0) await setTimeout(5);
  expect(await gauge(url, "pi_kv_blocks_used")).toBe(0);
});

test("SIGTERM lets an answer finish and exits with 0", async () => {
  const { child: server, client, greedy, stderr } = await serve();
  const stream = await client.completions.create({
    ...greedy,
    max_tokens: 120,
    prompt: "a",
    stream: true,
    logit_bias: { "2": -100 },
  });
  const exit = once(server, "exit");
  let tokens = 0;
  let reason: string | null = null;
  for await (const { choices } of stream) {
    if (tokens++ === 0) server.kill("SIGTERM");
    reason = choices[0]!.finish_reason;
  }
  expect(reason).toBe("length");
  expect(await exit).toEqual([0, null]);
  expect(stderr()).not.toContain("error");
});

test("a second SIGTERM does not wait", async () => {
  const { child: server, url } = await serve();
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  socket.on("error", () => undefined); // cut off by the exit
  const headers = "host: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\nexpect: 100-continue";
  socket.write(`POST /v1/completions HTTP/1.1\r\n${headers}\r\n\r\n`);
  await once(socket, "data"); // the server has begun and waits for the body
  const exit = once(server, "exit");
  server.kill("SIGTERM");
  while ((await fetch(`${url}/health`)).status !== 503) await setTimeout(5);
  server.kill("SIGTERM");
  expect(await exit).toEqual([143, null]);
});

test("prints one JSON document with --json", async () => {
  const server = spawn(process.execPath, [PI, "serve", model.dir, "--port", "0", "--json", "--mode", "dense"], {
    stdio: ["ignore", "pipe", "ignore"],
  });
  child = server;
  let stdout = "";
  for await (const chunk of server.stdout.setEncoding("utf8")) {
    stdout += chunk as string;
    if (stdout.endsWith("}\n")) server.kill("SIGINT");
  }
  expect(JSON.parse(stdout)).toMatchObject({
    url: expect.stringMatching(/^http:\/\/127\.0\.0\.1:\d+$/),
    mode: "dense",
    contextTokens: 128,
    pid: server.pid,
  });
});

test.each([
  [["--host", "0.0.0.0"], 2, /--host 0\.0\.0\.0: others can reach it; expected .* an --api-key \[E_EXPOSED\]/],
  [["--api-key", ""], 2, /--api-key: expected a key, got an empty one/],
  [["--port", "70000"], 2, /Expected a whole number from 0 to 65535/],
  [["--speculate", "16"], 2, /--speculate <N>.* Expected a whole number from 0 to 15/],
  [["--mode", "psychic"], 2, /Allowed choices are dense, exact, predictor/],
  [["--mode", "predictor"], 1, /mode predictor needs predictors, this model has none/],
])("refuses %j", async (args, code, message) => {
  const outcome = await inProcess(["serve", model.dir, "--port", "0", ...args]);
  expect(outcome.stderr).toMatch(message);
  expect(outcome.code).toBe(code);
});

test("a port that is taken is one line on stderr", async () => {
  const { url } = await serve();
  const { code, stderr } = await pi(["serve", model.dir, "--port", new URL(url).port]);
  expect([code, stderr.trim().split("\n").length]).toEqual([1, 1]);
  expect(stderr).toContain("EADDRINUSE");
});
