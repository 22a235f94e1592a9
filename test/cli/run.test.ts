import { spawn } from "node:child_process";
import { once } from "node:events";
import { afterAll, beforeAll, expect, test } from "vitest";
import { tinyModel } from "../runtime/tiny-model.ts";
import { inProcess } from "./in-process.ts";
import { PI, pi, piJson } from "./pi.ts";

let model: Awaited<ReturnType<typeof tinyModel>>;
beforeAll(async () => {
  model = await tinyModel();
});
afterAll(() => model.remove());

interface Run {
  text: string;
  promptTokens: number;
  completionTokens: number;
  finishReason: string;
  seed: number;
}

const NO_EOS = ["--ignore-eos", "-n", "12"];

test("text goes to stdout, what it took to stderr", async () => {
  const { code, stdout, stderr } = await pi(["run", model.dir, "Once", ...NO_EOS, "--seed", "3"]);
  const { text } = await piJson<Run>(["run", model.dir, "Once", ...NO_EOS, "--seed", "3"]);
  expect([code, stdout]).toEqual([0, `${text}\n`]);
  expect(stderr).toMatch(/^pi: 5 prompt tokens, first token after .+; 12 tokens, .+ tokens\/s; seed 3\n$/);
});

test("the seed that --json reports gives the same text again", async () => {
  const first = await piJson<Run>(["run", model.dir, "Once", ...NO_EOS]);
  const again = await piJson<Run>(["run", model.dir, "Once", ...NO_EOS, "--seed", String(first.seed)]);
  expect(again.text).toBe(first.text);
  expect(first).toMatchObject({ promptTokens: 5, completionTokens: 12, finishReason: "length" });
});

test("exact and dense generate the same, whatever the threads", async () => {
  const run = async (...args: string[]) =>
    (await piJson<Run>(["run", model.dir, "Once upon a time", ...NO_EOS, "--temp", "0", ...args])).text;
  const dense = await run("--mode", "dense", "--threads", "1");
  expect(await run("--mode", "exact", "--threads", "2")).toBe(dense);
  expect(await run("--mode", "exact", "--threads", "3", "--ctx", "64")).toBe(dense);
});

test("ends in front of a stop string", async () => {
  const args = ["run", model.dir, "Once", ...NO_EOS, "--seed", "3"];
  const { text } = await piJson<Run>(args);
  const stop = text.slice(3, 5);
  const stopped = await piJson<Run>([...args, "--stop", "no such text", "--stop", stop]);
  expect(stopped).toMatchObject({ text: text.slice(0, text.indexOf(stop)), finishReason: "stop" });
});

test("reads the prompt from standard input", async () => {
  const child = spawn(process.execPath, [PI, "run", model.dir, "-", ...NO_EOS, "--temp", "0", "--json"]);
  child.stdin.end("Once");
  let stdout = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  await once(child, "close");
  expect(JSON.parse(stdout)).toEqual(
    expect.objectContaining({ text: (await piJson<Run>(["run", model.dir, "Once", ...NO_EOS, "--temp", "0"])).text }),
  );
});

test("Ctrl-C ends a generation with 130", async () => {
  const child = spawn(process.execPath, [PI, "run", model.dir, "Once", "--ignore-eos", "-n", "120", "--threads", "1"]);
  child.stdout.once("data", () => child.kill("SIGINT"));
  const [code, signal] = (await once(child, "exit")) as [number | null, string | null];
  expect([0, 130]).toContain(code); // 0: it was done before the signal came
  expect(signal).toBeNull();
});

test("without a prompt it chats, to the end of its input or /bye", async () => {
  const child = spawn(process.execPath, [PI, "run", model.dir, "-n", "3", "--ignore-eos", "--temp", "0"]);
  child.stdin.write("Hi\n\nAgain\n/bye\n");
  let stdout = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  const [code] = (await once(child, "close")) as [number];
  expect(code).toBe(0);
  expect(stdout.split("> ").length).toBeGreaterThanOrEqual(5);
  child.stdin.destroy();
});

test.each([
  [["Once", "--temp", "3"], 2, /Expected a number from 0 to 2/],
  [["Once", "--top-k", "1.5"], 2, /Expected a whole number/],
  [["Once", "--warmth", "1"], 2, /unknown option '--warmth'/],
  [["--json"], 2, /--json needs a PROMPT/],
  [["a".repeat(130)], 2, /PROMPT: expected at most 127 tokens in a context of 128, got 131 \[E_CONTEXT\]/],
])("refuses %j", async (args, code, message) => {
  const outcome = await inProcess(["run", model.dir, ...args]);
  expect(outcome.code).toBe(code);
  expect(outcome.stderr).toMatch(message);
});
