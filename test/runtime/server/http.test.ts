import { connect } from "node:net";
import { setTimeout } from "node:timers/promises";
import { afterEach, expect, test, vi } from "vitest";
import { Server } from "../../../runtime/server/server.ts";
import { textScript } from "../fake-engine.ts";
import { type ErrorBody, type Options, post, raw, startServer } from "./start.ts";

let stop: (() => Promise<void>) | undefined;
afterEach(async () => {
  await stop?.();
  stop = undefined;
});

async function start(options: Options = {}) {
  const started = await startServer({ script: textScript("Once upon a time"), ...options });
  stop = started.stop;
  return started;
}

const BODY = JSON.stringify({ prompt: "secret words", max_tokens: 2 });

function request(body: string, headers = ""): string {
  return `POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n${headers}\r\n${body}`;
}

const JSON_HEADER = "content-type: application/json\r\n";

test("a stream on the wire", async () => {
  const { url } = await start();
  const body = JSON.stringify({ prompt: "x", max_tokens: 2, stream: true });
  const response = await raw(url, request(body, `${JSON_HEADER}content-length: ${body.length}\r\n`));
  expect(response).toMatch(/^HTTP\/1.1 200 OK\r\n/);
  expect(response).toContain("content-type: text/event-stream; charset=utf-8\r\n");
  expect(response).toMatch(
    /data: \{"id":"cmpl-[0-9a-f]+","object":"text_completion","created":\d+,"model":"fake","choices":/,
  );
  expect(response).toContain("data: [DONE]\n\n");
});

const deep = `{"prompt": ${"[".repeat(100_000)}${"]".repeat(100_000)}}`;

test.each([
  ["another type", "text/plain", BODY, 415],
  ["a form", "application/x-www-form-urlencoded", BODY, 415],
  ["half an object", "application/json", "{", 400],
  ["nothing", "application/json", "", 400],
  ["an array", "application/json", "[1]", 400],
  ["null", "application/json", "null", 400],
  ["a prototype", "application/json", '{"__proto__": {"n": 3}, "prompt": "x"}', 400],
  ["100,000 arrays in one another", "application/json", deep, 400],
  ["9 MiB", "application/json", `{"prompt": "${"x".repeat(9 << 20)}"}`, 413],
])("a body that is %s is refused with an error object", async (_name, type, body, status) => {
  const { url } = await start();
  const response = await post(url, "/v1/completions", body, { "content-type": type });
  expect(response.status).toBe(status);
  const { error } = (await response.json()) as ErrorBody;
  expect(error).toMatchObject({ type: "invalid_request_error", message: expect.any(String), code: expect.any(String) });
  expect((await post(url, "/v1/completions", BODY)).status).toBe(200);
});

test("unknown paths, wrong methods and encodings are error objects too", async () => {
  const { url } = await start();
  const missing = await fetch(`${url}/v1/nothing`);
  expect([missing.status, ((await missing.json()) as ErrorBody).error.code]).toEqual([404, "not_found"]);
  const wrong = await fetch(`${url}/v1/completions?x=1`);
  expect([wrong.status, wrong.headers.get("allow")]).toEqual([405, "POST"]);
  expect(((await wrong.json()) as ErrorBody).error.code).toBe("method_not_allowed");
  expect((await fetch(`${url}/health`, { method: "DELETE" })).status).toBe(405);
  const preflight = await fetch(`${url}/v1/completions`, {
    method: "OPTIONS",
    headers: { origin: "http://evil.example" },
  });
  expect([preflight.status, preflight.headers.get("access-control-allow-origin")]).toEqual([405, null]);
  const zipped = await post(url, "/v1/completions", BODY, { "content-encoding": "gzip" });
  expect([zipped.status, ((await zipped.json()) as ErrorBody).error.code]).toEqual([415, "unsupported_encoding"]);
});

test.each([
  ["not HTTP at all", "hello\r\n\r\n", 400],
  ["two lengths", request(BODY, `${JSON_HEADER}content-length: 5\r\ncontent-length: 6\r\n`), 400],
  ["a length and chunks", request(BODY, `${JSON_HEADER}content-length: 5\r\ntransfer-encoding: chunked\r\n`), 400],
  ["headers beyond 16 KiB", request(BODY, `x: ${"y".repeat(20_000)}\r\n`), 431],
  ["no host", "GET /health HTTP/1.1\r\n\r\n", 400],
  ["a negative length", request(BODY, `${JSON_HEADER}content-length: -1\r\n`), 400],
])("malformed: %s", async (_name, bytes, status) => {
  const { url } = await start();
  const response = await raw(url, bytes);
  expect(response).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
  expect((await fetch(`${url}/health`)).status).toBe(200);
});

test("a client that hangs up in the middle of its body leaves nothing behind", async () => {
  const { url, session } = await start();
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  socket.write(request('{"prompt": ', `${JSON_HEADER}content-length: 500\r\n`));
  await setTimeout(20);
  socket.destroy();
  expect((await post(url, "/v1/completions", BODY)).status).toBe(200);
  expect(session.scheduler.stats()).toMatchObject({ running: 0, kvBlocksUsed: 0 });
});

test("a client that hangs up while its chat is being written costs no step", async () => {
  const { url, engine, session, lines } = await start();
  let write = (_ids: number[]) => {};
  const prompt = new Promise<number[]>((resolve) => (write = resolve));
  const writing = vi.spyOn(session, "chatPrompt").mockReturnValue(prompt);
  const body = JSON.stringify({ messages: [{ role: "user", content: "left" }] });
  const socket = connect(Number(new URL(url).port), "127.0.0.1");
  const head = `host: localhost\r\n${JSON_HEADER}content-length: ${body.length}`;
  socket.write(`POST /v1/chat/completions HTTP/1.1\r\n${head}\r\n\r\n${body}`);
  while (writing.mock.calls.length === 0) await setTimeout(1);
  socket.destroy();
  while (lines.length === 0) await setTimeout(1);
  expect(lines[0]).toMatch(/^POST \/v1\/chat\/completions 499 /);
  write([108, 101, 102, 116]);
  expect((await post(url, "/v1/completions", { prompt: [97], max_tokens: 1 })).status).toBe(200);
  expect(engine.steps.map(({ tokens }) => Array.from(tokens))).toEqual([[97]]);
});

test("a tokenizer's token that the model does not have is the request's fault, not everyone's", async () => {
  const { url } = await start({ vocabSize: 256 });
  const refused = await post(url, "/v1/completions", BODY);
  expect(refused.status).toBe(400);
  expect(await refused.json()).toMatchObject({ error: { param: "prompt", code: "invalid_token" } });
  expect((await post(url, "/v1/completions", { prompt: [97], max_tokens: 1 })).status).toBe(200);
});

test("other names than this machine's are refused on a loopback address", async () => {
  const { url } = await start();
  const port = new URL(url).port;
  const get = (host: string) => raw(url, `GET /v1/models HTTP/1.1\r\nhost: ${host}\r\nconnection: close\r\n\r\n`);
  for (const host of ["localhost", `LOCALHOST:${port}`, "127.0.0.1:1", "[::1]:8080"]) {
    expect(await get(host), host).toMatch(/^HTTP\/1.1 200/);
  }
  for (const host of ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "localhost@evil"]) {
    expect(await get(host), host).toMatch(/^HTTP\/1.1 403[^]*"code":"host_not_allowed"/);
  }
});

test("a key is asked of every path but /health", async () => {
  const { url, client } = await start({ apiKey: "k-123" });
  expect((await client.models.list()).data).toHaveLength(1);
  const paths = ["/v1/models", "/v1/models/fake", "/metrics", "/v1/completions", "/v1/chat/completions", "/tokenize"];
  for (const path of [...paths, "/detokenize", "/", "/nothing", "/health/"]) {
    for (const authorization of [undefined, "Bearer k-124", "Bearer ", "Basic k-123", "k-123"]) {
      const response = await fetch(url + path, { headers: authorization ? { authorization } : {} });
      expect([path, response.status]).toEqual([path, 401]);
      expect(await response.json()).toMatchObject({ error: { type: "authentication_error", code: "invalid_api_key" } });
    }
  }
  expect((await fetch(`${url}/health`)).status).toBe(200);
  expect(await (await fetch(`${url}/metrics`, { headers: { authorization: "bearer k-123" } })).text()).not.toContain(
    "k-123",
  );
});

test("an address that others reach needs a key", () => {
  for (const host of ["0.0.0.0", "::", "192.168.0.7", "127.0.0.1.example"]) {
    expect(() => new Server({ host })).toThrow(`--host ${host}: others can reach it`);
    expect(() => new Server({ host, apiKey: "k" })).not.toThrow();
  }
  for (const host of ["127.0.0.1", "127.8.8.8", "::1", "localhost"]) expect(() => new Server({ host })).not.toThrow();
});

test("beyond the queue, requests get 429 and Retry-After, and work again later", async () => {
  const { url, session } = await start({ maxQueue: 2, maxSequences: 1, delayMs: 5, script: () => 97 });
  const body = { prompt: "a", max_tokens: 60 };
  const accepted = [1, 2, 3].map(() => post(url, "/v1/completions", body));
  while (session.scheduler.stats().waiting < 2) await setTimeout(1);
  const refused = await post(url, "/v1/completions", body);
  expect([refused.status, refused.headers.get("retry-after")]).toEqual([429, "1"]);
  expect(await refused.json()).toMatchObject({ error: { type: "rate_limit_error", code: "queue_full" } });
  expect((await Promise.all(accepted)).map(({ status }) => status)).toEqual([200, 200, 200]);
  expect((await post(url, "/v1/completions", { ...body, max_tokens: 1 })).status).toBe(200);
});

test("log lines say nothing of what was asked and answered", async () => {
  const { url, lines } = await start();
  await post(url, "/v1/completions", BODY);
  await post(url, "/v1/completions?secret=1", { prompt: 5 });
  await fetch(`${url}/secret%0d%0apath`);
  await setTimeout(5);
  expect(lines.map((line) => line.replace(/\d+ ms$/, "ms"))).toEqual([
    "POST /v1/completions 200 ms",
    "POST /v1/completions 400 ms",
    "GET (unknown path) 404 ms",
  ]);
});
