import { afterAll, beforeAll, expect, test } from "vitest";
import { type ErrorBody, post, startServer } from "./start.ts";

let server: Awaited<ReturnType<typeof startServer>>;
beforeAll(async () => {
  server = await startServer();
});
afterAll(() => server.stop());

const CHAT = { messages: [{ role: "user", content: "hi" }], max_tokens: 1 };
const TEXT = { prompt: "hi", max_tokens: 1 };
const SHARED = [
  "temperature",
  "top_p",
  "top_k",
  "min_p",
  "repetition_penalty",
  "presence_penalty",
  "frequency_penalty",
  "seed",
  "n",
  "max_tokens",
];
const ROUTES = [
  { path: "/v1/completions", base: TEXT, numbers: [...SHARED, "logprobs", "best_of"] },
  {
    path: "/v1/chat/completions",
    base: { ...CHAT, logprobs: true },
    numbers: [...SHARED, "max_completion_tokens", "top_logprobs"],
  },
];

/** JSON texts that no numeric parameter accepts. */
const NASTY = [
  "-3",
  "-1e-9",
  "1e308",
  "-1e308",
  "1e999",
  '"NaN"',
  '"Infinity"',
  '"1"',
  "[]",
  "[1]",
  "{}",
  "true",
  "false",
];
/** … and those that no parameter accepts that is a whole number. */
const NOT_WHOLE = ["0.5", "9007199254740993"];
/** Penalties and seeds may be what others may not. */
const FINE: Record<string, string[]> = { presence_penalty: ["-1e-9"], frequency_penalty: ["-1e-9"] };
const WHOLE = new Set([
  "top_k",
  "seed",
  "n",
  "max_tokens",
  "logprobs",
  "best_of",
  "max_completion_tokens",
  "top_logprobs",
]);

for (const { path, base, numbers } of ROUTES) {
  test.each(numbers)(`${path}: %s refuses what is not a number in its range`, async (name) => {
    const values = [...NASTY, ...(WHOLE.has(name) ? NOT_WHOLE : [])].filter((value) => !FINE[name]?.includes(value));
    for (const value of values) {
      const body = JSON.stringify({ ...base, [name]: "@" }).replace('"@"', value);
      const response = await post(server.url, path, body);
      const { error } = (await response.json()) as ErrorBody;
      expect([response.status, error.param, error.type], `${name}: ${value}`).toEqual([
        400,
        name,
        "invalid_request_error",
      ]);
      expect(error.message).toMatch(new RegExp(`^${name}: expected .+, got `));
    }
    expect((await post(server.url, path, base)).status).toBe(200);
    expect((await post(server.url, path, { ...base, [name]: null })).status).toBe(200);
  });
}

test.each([
  ["suffix", "x"],
  ["tools", [{ type: "function", function: { name: "f" } }]],
  ["tool_choice", "required"],
  ["functions", []],
  ["response_format", { type: "json_object" }],
  ["modalities", ["text", "audio"]],
  ["audio", {}],
  ["chat_template", "{{ 1 }}"],
  ["chat_template_kwargs", { tokenize: true }],
])("%s is refused by name, not ignored", async (name, value) => {
  const path = name === "suffix" ? "/v1/completions" : "/v1/chat/completions";
  const response = await post(server.url, path, { ...TEXT, ...CHAT, [name]: value });
  expect(response.status).toBe(400);
  expect(await response.json()).toMatchObject({ error: { param: name, code: "unsupported_parameter" } });
});

test.each([
  { suffix: "" },
  { response_format: { type: "text" } },
  { modalities: ["text"] },
  { tool_choice: "none" },
  { user: "u", unknown_field: 1, best_of: 1, stop: null, logit_bias: {} },
])("%j asks for nothing special", async (more) => {
  expect((await post(server.url, "/v1/chat/completions", { ...CHAT, ...more })).status).toBe(200);
  expect((await post(server.url, "/v1/completions", { ...TEXT, ...more })).status).toBe(200);
});

test.each([
  ["prompt", { prompt: undefined }, "expected an array, got undefined"],
  [undefined, { prompt: "" }, ""],
  ["prompt", { prompt: [] }, "expected 1 to 128 elements, got 0"],
  [undefined, { prompt: [""] }, ""],
  ["prompt", { prompt: [[]] }, "expected a string, got an array of 0"],
  ["prompt", { prompt: {} }, "expected an array, got an object"],
  ["prompt", { prompt: [1, "a"] }, 'expected token ids from 0 to 257, got "a"'],
  ["prompt", { prompt: [1, 1.5] }, "expected token ids from 0 to 257, got 1.5"],
  ["prompt", { prompt: [258] }, "expected token ids from 0 to 257, got 258"],
  ["prompt", { prompt: [-1] }, "expected token ids from 0 to 257, got -1"],
  ["prompt", { prompt: Array(129).fill("a") }, "expected 1 to 128 elements, got 129"],
  ["prompt", { prompt: Array(65).fill("a"), n: 2 }, "expected at most 128 choices, got 65 prompts with n = 2"],
  [
    "prompt",
    { prompt: "a".repeat(511), max_tokens: undefined },
    "expected at most 511 tokens in a context of 512, got 512",
  ],
  [undefined, { prompt: "a".repeat(511), max_tokens: 0 }, ""],
  ["max_tokens", { prompt: "a".repeat(500), max_tokens: 12 }, "501 prompt tokens leave 11 of a context of 512, got 12"],
  ["prompt", { prompt: Array(513).fill(1) }, "expected at most 512 tokens, got 513"],
  ["prompt", { prompt: "a".repeat(20000) }, "20000 characters cannot fit a context of 512 tokens, the limit is 16384"],
  ["n", { n: 17 }, "expected an integer from 1 to 16, got 17"],
  ["best_of", { n: 2, best_of: 3 }, "expected n, which is 2; choosing the best of several is not supported"],
  ["stop", { stop: ["a", "b", "c", "d", "e"] }, "expected 1 to 4 elements, got 5"],
  ["stop", { stop: "" }, "expected 1 to 256 characters, got 0"],
  ["stop", { stop: [1] }, "expected a string, got 1"],
  ["stop", { stop: "x".repeat(257) }, "expected 1 to 256 characters, got 257"],
  ["stream", { stream: "yes" }, 'expected true or false, got "yes"'],
  ["stream_options", { stream_options: { include_usage: true } }, "expected stream to be true with it"],
  ["stream_options", { stream: true, stream_options: 1 }, "expected an object, got 1"],
  ["echo", { echo: 1 }, "expected true or false, got 1"],
  ["model", { model: 7 }, "expected a string, got 7"],
  ["logit_bias", { logit_bias: { "999": 1 } }, "expected an integer from 0 to 257, got 999"],
  [
    "logit_bias",
    { logit_bias: Object.fromEntries(Array.from({ length: 1025 }, (_, i) => [i, 1])) },
    "expected at most 1024 tokens, got 1025",
  ],
])("completions: a wrong %s, case %#", async (param, more, message) => {
  const response = await post(server.url, "/v1/completions", { ...TEXT, ...more });
  if (param === undefined) return expect(response.status).toBe(200);
  expect(response.status).toBe(400);
  expect(((await response.json()) as ErrorBody).error).toMatchObject({ param, message: `${param}: ${message}` });
});

test.each([
  ["messages", [], "expected 1 to 4096 elements, got 0"],
  ["messages", "hi", 'expected an array, got "hi"'],
  ["messages[0]", [1], "expected an object, got 1"],
  ["messages[0]", [null], "expected an object, got null"],
  ["messages[0].role", [{ role: "tool", content: "x" }], 'expected system, developer, user or assistant, got "tool"'],
  ["messages[0].content", [{ role: "user" }], "expected a string, got undefined"],
  [
    "messages[0].content[0].type",
    [{ role: "user", content: [{ type: "image_url", image_url: {} }] }],
    'expected "text", got "image_url"',
  ],
  ["messages[0].content[0].text", [{ role: "user", content: [{ type: "text" }] }], "expected a string, got undefined"],
  ["messages[0].content[0].type", [{ role: "user", content: [null] }], 'expected "text", got undefined'],
])("chat: a wrong %s, case %#", async (param, messages, message) => {
  const response = await post(server.url, "/v1/chat/completions", { messages });
  expect(response.status).toBe(400);
  expect(((await response.json()) as ErrorBody).error).toMatchObject({ param, message: `${param}: ${message}` });
});

test("top_logprobs without logprobs is refused", async () => {
  const response = await post(server.url, "/v1/chat/completions", { ...CHAT, top_logprobs: 2 });
  expect(await response.json()).toMatchObject({ error: { param: "top_logprobs" } });
});

test("a conversation longer than the context is refused with numbers", async () => {
  const messages = [{ role: "user", content: "a".repeat(600) }];
  const response = await post(server.url, "/v1/chat/completions", { messages });
  expect(response.status).toBe(400);
  expect(await response.json()).toMatchObject({
    error: { code: "context_length_exceeded", param: "messages", message: expect.stringContaining("a context of 512") },
  });
});

test("odd texts are answered", async () => {
  for (const prompt of ["\uD800", "\u0000", "a\u0301".repeat(50), "</s><s>", '{"__proto__": 1}']) {
    expect((await post(server.url, "/v1/completions", { ...TEXT, prompt })).status, prompt).toBe(200);
  }
});

test("tokenize and detokenize", async () => {
  const tokens = [256, 104, 195, 169];
  expect(await (await post(server.url, "/tokenize", { text: "hé" })).json()).toEqual({ tokens });
  expect(await (await post(server.url, "/detokenize", { tokens })).json()).toEqual({ text: "hé" });
  const refused = await post(server.url, "/detokenize", { tokens: [999] });
  expect(await refused.json()).toMatchObject({ error: { param: "tokens" } });
});
