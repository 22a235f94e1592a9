import { setTimeout } from "node:timers/promises";
import { APIError } from "openai";
import type { ChatCompletionMessageParam } from "openai/resources";
import { afterEach, expect, test } from "vitest";
import { fakeLogprob, textScript } from "../fake-engine.ts";
import { type Options, startServer } from "./start.ts";

let stop: (() => Promise<void>) | undefined;
afterEach(async () => {
  await stop?.();
  stop = undefined;
});

async function start(options: Options = {}) {
  const started = await startServer({ script: textScript("Once upon a time. The end"), ...options });
  stop = started.stop;
  return started;
}

const messages: ChatCompletionMessageParam[] = [
  { role: "system", content: "Tell stories." },
  {
    role: "user",
    content: [
      { type: "text", text: "Tell " },
      { type: "text", text: "one." },
    ],
  },
] as const;

test("lists its model and finds it by name", async () => {
  const { client } = await start();
  const { data } = await client.models.list();
  expect(data.map(({ id, object, owned_by }) => [id, object, owned_by])).toEqual([["fake", "model", "pi"]]);
  expect(await client.models.retrieve("fake")).toMatchObject({
    id: "fake",
    pi: { mode: "exact", contextTokens: 512, quality: null, placement: null },
  });
  await expect(client.models.retrieve("other")).rejects.toMatchObject({ status: 404, code: "model_not_found" });
});

test("shows what the artifact says of its quality and placement, without its tables", async () => {
  const { client, session } = await start();
  const layers = [{ gpuNeurons: 64 }, { gpuNeurons: 128 }];
  const placement = {
    vramBudget: 1e9,
    gpuShare: 0.4,
    memory: { total: 9e8 },
    gap: 0,
    predicted: { tokensPerSecond: 7 },
  };
  const quality = { perplexityRatio: 1.001 };
  Object.assign(session.model, { artifact: { quality, placement: { ...placement, layers, hardware: {} } } });
  const { data } = await client.models.list();
  expect(data[0]).toMatchObject({ pi: { quality } });
  expect((data[0] as unknown as { pi: { placement: object } }).pi.placement).toEqual({ ...placement, gpuNeurons: 192 });
});

test("says which device serves, and what it takes of a GPU's memory", async () => {
  const shown = async ({ client, url }: Pick<Awaited<ReturnType<typeof start>>, "client" | "url">) => {
    const [card] = (await client.models.list()).data as unknown as [{ pi: { device: object } }];
    const metrics = await (await fetch(`${url}/metrics`)).text();
    return { device: card.pi.device, metrics: metrics.split("\n").filter((line) => line.startsWith("pi_gpu")) };
  };
  expect(await shown(await start())).toEqual({ device: { type: "cpu", reason: null }, metrics: [] });
  const missing = "no GPU: no NVIDIA driver is loaded";
  expect((await shown(await start({ device: { missing } }))).device).toEqual({ type: "cpu", reason: missing });

  const layers = [
    { neurons: 64, attention: true, predictor: true },
    { neurons: 128, attention: false, predictor: true },
  ];
  const memory = { weights: 500, predictors: 40, kv: 30, scratch: 20, context: 10, total: 600 };
  const use = { memory, budget: 700, reduced: true, adapt: false };
  const gpu = { name: "test card", split: { layers, head: true }, ...use };
  expect(await shown(await start({ device: { gpu } }))).toEqual({
    device: { type: "gpu", name: "test card", gpuNeurons: 192, attentionLayers: 1, head: true, ...use },
    metrics: [
      'pi_gpu_memory_bytes{part="weights"} 500',
      'pi_gpu_memory_bytes{part="predictors"} 40',
      'pi_gpu_memory_bytes{part="kv"} 30',
      'pi_gpu_memory_bytes{part="scratch"} 20',
      'pi_gpu_memory_bytes{part="context"} 10',
      "pi_gpu_memory_budget_bytes 700",
    ],
  });
});

test("completes a prompt", async () => {
  const { client } = await start();
  const answer = await client.completions.create({ model: "fake", prompt: "Tell", max_tokens: 100 });
  expect(answer).toMatchObject({
    object: "text_completion",
    model: "fake",
    choices: [{ index: 0, text: "Once upon a time. The end", logprobs: null, finish_reason: "stop" }],
    usage: { prompt_tokens: 5, completion_tokens: 26, total_tokens: 31 },
  });
  expect(answer.id).toMatch(/^cmpl-[0-9a-f]{24}$/);
});

test("a completion has 16 tokens unless told otherwise, and ends at stop strings", async () => {
  const { client } = await start();
  const create = (more: object) => client.completions.create({ model: "fake", prompt: "x", ...more });
  expect((await create({})).choices[0]).toMatchObject({ text: "Once upon a time", finish_reason: "length" });
  const stopped = await create({ max_tokens: 100, stop: [".", " The"] });
  expect(stopped.choices[0]).toMatchObject({ text: "Once upon a time", finish_reason: "stop" });
});

test("several prompts, texts or token ids, with n choices each", async () => {
  const { client } = await start();
  const create = (prompt: string[] | number[][]) =>
    client.completions.create({ model: "fake", prompt, n: 2, max_tokens: 4, echo: true });
  const texts = await create(["a", "bc"]);
  expect(texts.choices.map(({ index, text }) => [index, text])).toEqual([
    [0, "aOnce"],
    [1, "aOnce"],
    [2, "bcOnce"],
    [3, "bcOnce"],
  ]);
  expect(texts.usage).toMatchObject({ prompt_tokens: 5, completion_tokens: 16 });
  const ids = await create([[97], [98, 99]]);
  expect(ids.choices.map(({ text }) => text)).toEqual(["aOnce", "aOnce", "bcOnce", "bcOnce"]);
  const single = await client.completions.create({ model: "fake", prompt: [97, 98], max_tokens: 1, echo: true });
  expect(single.choices[0]!.text).toBe("abO");
});

test("echo with logprobs scores the prompt, with and without a token to generate", async () => {
  const { client } = await start();
  const score = (tokens: number, prompt: string | number[] = [97, 98, 99]) =>
    client.completions.create({ model: "fake", prompt, max_tokens: tokens, echo: true, logprobs: 1, temperature: 0 });
  const value = (text: string) => Math.fround(fakeLogprob(text.codePointAt(0)!, 0));
  const whole = (await score(1)).choices[0]!;
  expect(whole.text).toBe("abcO");
  expect(whole.logprobs).toEqual({
    tokens: ["a", "b", "c", "O"],
    token_logprobs: [null, value("b"), value("c"), value("O")],
    top_logprobs: [null, { b: value("b") }, { c: value("c") }, { O: value("O") }],
    text_offset: [0, 1, 2, 3],
  });
  const prompt = await score(0);
  expect(prompt.choices[0]).toMatchObject({ text: "abc", finish_reason: "length" });
  expect(prompt.choices[0]!.logprobs).toMatchObject({ tokens: ["a", "b", "c"], text_offset: [0, 1, 2] });
  expect(prompt.usage).toMatchObject({ prompt_tokens: 3, completion_tokens: 0 });
  const text = (await score(1, "ab")).choices[0]!;
  expect([text.text, text.logprobs!.tokens, text.logprobs!.text_offset]).toEqual([
    "abO",
    ["<s>", "a", "b", "O"],
    [0, 0, 1, 2],
  ]);
});

test("chats with the checkpoint's template", async () => {
  const { client, engine } = await start();
  const answer = await client.chat.completions.create({ model: "fake", messages, max_tokens: 4 });
  expect(answer).toMatchObject({
    object: "chat.completion",
    choices: [{ index: 0, message: { role: "assistant", content: "Once" }, logprobs: null, finish_reason: "length" }],
  });
  const prompt = "[system]Tell stories.[user]Tell one.[assistant]";
  expect(String.fromCharCode(...engine.steps[0]!.tokens.filter((token) => token < 256))).toBe(prompt);
});

test("chat without a limit goes on to the end", async () => {
  const { client } = await start();
  const { choices } = await client.chat.completions.create({ model: "fake", messages });
  expect(choices[0]).toMatchObject({ message: { content: "Once upon a time. The end" }, finish_reason: "stop" });
});

test("chat log probabilities", async () => {
  const { client } = await start({ script: textScript("aé") });
  const { choices } = await client.chat.completions.create({
    model: "fake",
    messages,
    logprobs: true,
    top_logprobs: 2,
  });
  const tokens = choices[0]!.logprobs!.content!;
  expect(tokens.map(({ token, bytes }) => [token, bytes])).toEqual([
    ["a", [97]],
    ["\uFFFD", null],
    ["\uFFFD", null],
  ]);
  expect(tokens[0]!.top_logprobs.map(({ token }) => token)).toEqual(["a", "b"]);
  expect(tokens[0]!.logprob).toBe(Math.fround(fakeLogprob(97, 0)));
});

test("streams a chat: role, pieces, reason, usage", async () => {
  const { client } = await start();
  const stream = await client.chat.completions.create({
    model: "fake",
    messages,
    stream: true,
    stream_options: { include_usage: true },
  });
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  expect(new Set(chunks.map(({ id }) => id)).size).toBe(1);
  expect(chunks[0]!.choices[0]!.delta).toEqual({ role: "assistant", content: "" });
  expect(chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join("")).toBe("Once upon a time. The end");
  expect(chunks.at(-2)!.choices[0]).toMatchObject({ delta: {}, finish_reason: "stop" });
  expect(chunks.filter(({ choices }) => choices[0]?.finish_reason)).toHaveLength(1);
  expect(chunks.at(-1)).toMatchObject({ choices: [], usage: { completion_tokens: 26 } });
  expect(chunks.slice(0, -1).every(({ usage }) => usage === null)).toBe(true);
});

test("streams several choices, each by its index", async () => {
  const { client } = await start();
  const stream = await client.completions.create({ model: "fake", prompt: ["a", "b"], n: 2, echo: true, stream: true });
  const texts = ["", "", "", ""];
  const reasons: string[] = [];
  for await (const { choices, usage } of stream) {
    expect(usage).toBeUndefined();
    for (const { index, text, finish_reason } of choices) {
      texts[index] += text;
      if (finish_reason) reasons.push(finish_reason);
    }
  }
  const once = "Once upon a time";
  expect(texts).toEqual([`a${once}`, `a${once}`, `b${once}`, `b${once}`]);
  expect(reasons).toEqual(["length", "length", "length", "length"]);
});

test("a stream's log probabilities are those of the whole answer", async () => {
  const { client } = await start();
  const request = { model: "fake", prompt: "ab", max_tokens: 6, echo: true, logprobs: 2 } as const;
  const whole = await client.completions.create(request);
  const joined = { tokens: [], token_logprobs: [], top_logprobs: [], text_offset: [] } as Record<string, unknown[]>;
  for await (const { choices } of await client.completions.create({ ...request, stream: true })) {
    for (const [key, list] of Object.entries(joined)) {
      list.push(...((choices[0]!.logprobs as unknown as Record<string, unknown[]> | null)?.[key] ?? []));
    }
  }
  expect(joined).toEqual(whole.choices[0]!.logprobs);
});

test("requests at the same time share steps and get their own answers", async () => {
  const { client, engine } = await start({ script: (history) => history.at(-1)! >> 2 });
  const answers = await Promise.all(
    Array.from({ length: 12 }, (_, i) =>
      client.completions.create({ model: "fake", prompt: String.fromCharCode(97 + i), max_tokens: 10 }),
    ),
  );
  expect(answers.map(({ choices }) => choices[0]!.text)).toEqual(
    answers.map((_, i) => String.fromCharCode(97 + i).repeat(10)),
  );
  expect(engine.steps.length).toBeLessThan(60);
});

test("equal seeds give equal answers, the choices of one request differ", async () => {
  const { client } = await startServer().then((started) => ((stop = started.stop), started));
  const create = async (seed: number) => {
    const { choices } = await client.completions.create({ model: "fake", prompt: "x", n: 2, seed, max_tokens: 8 });
    return choices.map(({ text }) => text);
  };
  const [first, again, other] = [await create(1), await create(1), await create(10)];
  expect(first).toEqual(again);
  expect(first).not.toEqual(other);
  expect(first[0]).not.toBe(first[1]);
});

test("leaving a stream cancels the generation and frees its blocks", async () => {
  const { client, session } = await start({ script: textScript("x".repeat(400)), delayMs: 2 });
  const stream = await client.completions.create({ model: "fake", prompt: "a", max_tokens: 400, stream: true });
  for await (const _ of stream) break;
  await idle(session);
  expect(session.scheduler.stats()).toMatchObject({ running: 0, waiting: 0, kvBlocksUsed: 0 });
});

test("aborting a request that does not stream cancels it, queued or running", async () => {
  const { client, session, url } = await start({
    script: textScript("x".repeat(400)),
    delayMs: 2,
    maxSequences: 1,
  });
  const abort = new AbortController();
  const requests = [1, 2].map(() =>
    client.completions.create({ model: "fake", prompt: "a", max_tokens: 400 }, { signal: abort.signal }),
  );
  while (session.scheduler.stats().waiting === 0) await setTimeout(1);
  abort.abort();
  await Promise.all(requests.map((request) => expect(request).rejects.toThrow("aborted")));
  await idle(session);
  const metrics = await (await fetch(`${url}/metrics`)).text();
  expect(metrics).toContain("pi_requests_running 0\n");
  expect(metrics).toContain("pi_requests_waiting 0\n");
  expect(metrics).toContain("pi_kv_blocks_used 0\n");
  expect(metrics).toContain('pi_generations_total{reason="cancelled"} 2');
});

test("a storm of requests, a third of them abandoned, in too small a cache: right answers, nothing left", async () => {
  // Every request repeats its own letter: a foreign one would show.
  const { client, session } = await start({ script: (history) => history.at(-1)! >> 2, kvBlocks: 12, context: 200 });
  const ask = async (i: number) => {
    const letter = String.fromCharCode(97 + (i % 26));
    const length = 20 + ((i * 37) % 150);
    const abort = new AbortController();
    if (i % 3 === 0) void setTimeout(i % 40).then(() => abort.abort());
    const request = { model: "fake", prompt: letter.repeat(1 + (i % 20)), max_tokens: length };
    let text = "";
    try {
      if (i % 2 === 0) text = (await client.completions.create(request, abort)).choices[0]!.text;
      else {
        const stream = await client.completions.create({ ...request, stream: true }, abort);
        for await (const { choices } of stream) text += choices[0]!.text;
      }
    } catch {
      expect(abort.signal.aborted).toBe(true);
    }
    if (!abort.signal.aborted) expect(text).toBe(letter.repeat(length));
    expect(text.replaceAll(letter, "")).toBe("");
  };
  await Promise.all(Array.from({ length: 150 }, (_, i) => ask(i)));
  await idle(session);
  const { preemptions, kvBlocksUsed } = session.scheduler.stats();
  expect(kvBlocksUsed).toBe(0);
  expect(preemptions).toBeGreaterThan(0);
});

async function idle(session: { scheduler: { stats(): { running: number; waiting: number } } }): Promise<void> {
  while (session.scheduler.stats().running + session.scheduler.stats().waiting > 0) await setTimeout(1);
}

test("errors are the client's APIError with status, param and code", async () => {
  const { client } = await start();
  const refused = client.chat.completions.create({ model: "fake", messages, temperature: 3 });
  await expect(refused).rejects.toBeInstanceOf(APIError);
  await expect(refused).rejects.toMatchObject({ status: 400, param: "temperature", code: "invalid_value" });
  const unknown = client.chat.completions.create({ model: "gpt-9", messages });
  await expect(unknown).rejects.toMatchObject({ status: 404, code: "model_not_found" });
});

test("an engine error in the middle of a stream reaches the client as an error", async () => {
  const { client, engine, lines } = await start({ script: textScript("x".repeat(100)), delayMs: 1 });
  const stream = await client.completions.create({ model: "fake", prompt: "a", max_tokens: 100, stream: true });
  const read = async () => {
    for await (const _ of stream) engine.failNext = new Error("device lost");
  };
  await expect(read()).rejects.toBeInstanceOf(APIError);
  expect(lines.join("\n")).toContain("Error: device lost");
});

test("metrics count what was done", async () => {
  const { client, url } = await start();
  await client.completions.create({ model: "fake", prompt: "a", max_tokens: 4 });
  const metrics = await (await fetch(`${url}/metrics`)).text();
  expect(metrics).toContain("pi_prompt_tokens_total 2\n");
  expect(metrics).toContain("pi_generation_tokens_total 4\n");
  expect(metrics).toContain("pi_time_to_first_token_seconds_count 1\n");
  expect(metrics).toContain("pi_inter_token_latency_seconds_count 3\n");
  expect(metrics).toContain("pi_steps_total 4\n");
  expect(metrics).toContain('pi_generations_total{reason="length"} 1\n');
  expect(metrics).toContain('pi_responses_total{status="200"} 1\n');
});
