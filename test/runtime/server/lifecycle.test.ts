import { setTimeout } from "node:timers/promises";
import { expect, test } from "vitest";
import { Server } from "../../../runtime/server/server.ts";
import { Session } from "../../../runtime/session.ts";
import { fakeModel, textScript } from "../fake-engine.ts";
import { post, startServer } from "./start.ts";

const BODY = { prompt: "a", max_tokens: 30 };

test("while the model loads, health and everything else say so", async () => {
  const server = new Server({ port: 0 });
  const url = await server.listen();
  const health = async () => {
    const response = await fetch(`${url}/health`);
    return [response.status, await response.json()];
  };
  expect(await health()).toEqual([503, { status: "loading" }]);
  const early = await post(url, "/v1/completions", BODY);
  expect([early.status, early.headers.get("retry-after")]).toEqual([503, "1"]);
  expect(await early.json()).toMatchObject({ error: { type: "server_error", code: "loading" } });
  expect((await fetch(`${url}/metrics`)).status).toBe(200);
  const session = new Session(fakeModel().model);
  server.ready(session);
  expect(await health()).toEqual([200, { status: "ok" }]);
  expect((await post(url, "/v1/completions", BODY)).status).toBe(200);
  await server.shutdown(0);
  await session.close();
});

test("going down: health says so at once, nothing new begins, what was begun is finished", async () => {
  const { url, server, session, client } = await startServer({ script: textScript("x".repeat(60)), delayMs: 3 });
  const stream = await client.completions.create({ model: "fake", prompt: "a", max_tokens: 60, stream: true });
  const whole = post(url, "/v1/completions", BODY);
  while (session.scheduler.stats().running < 2) await setTimeout(1);
  const down = server.shutdown(10_000);
  const health = await fetch(`${url}/health`);
  expect([health.status, await health.json()]).toEqual([503, { status: "shutting down" }]);
  const late = await post(url, "/v1/completions", BODY);
  expect([late.status, late.headers.get("connection")]).toEqual([503, "close"]);
  expect(await late.json()).toMatchObject({ error: { code: "shutting_down" } });
  let text = "";
  for await (const { choices } of stream) text += choices[0]!.text;
  expect(text).toBe("x".repeat(60));
  expect((await whole).status).toBe(200);
  await down;
  await expect(fetch(`${url}/health`)).rejects.toThrow();
  await session.close();
});

test("when time is up, what is left is cancelled and told so", async () => {
  const { url, server, session, client } = await startServer({ script: () => 97, delayMs: 3 });
  const stream = await client.completions.create({ model: "fake", prompt: "a", max_tokens: 400, stream: true });
  const whole = post(url, "/v1/completions", { prompt: "a", max_tokens: 400 });
  while (session.scheduler.stats().running < 2) await setTimeout(1);
  const down = server.shutdown(20);
  const read = async () => {
    for await (const _ of stream);
  };
  await expect(read()).rejects.toMatchObject({ code: "shutting_down" });
  expect((await whole).status).toBe(503);
  await down;
  expect(session.scheduler.stats()).toMatchObject({ running: 0, waiting: 0, kvBlocksUsed: 0 });
  await session.close();
});
