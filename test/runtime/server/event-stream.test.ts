import { createServer, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { connect, type Socket } from "node:net";
import { setTimeout } from "node:timers/promises";
import { once } from "node:events";
import { afterEach, expect, test } from "vitest";
import { EventStream } from "../../../runtime/server/event-stream.ts";

let server: Server | undefined;
afterEach(() => server?.close());

/** A response to a client that does not read. */
async function unread(): Promise<{ response: ServerResponse; client: Socket }> {
  server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const client = connect((server.address() as AddressInfo).port, "127.0.0.1");
  client.pause().write("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
  const [, response] = (await once(server, "request")) as [unknown, ServerResponse];
  return { response, client };
}

/** Sends 64 KiB events until one of them has to wait; returns that one. */
async function fill(events: EventStream): Promise<{ waiting: Promise<void> }> {
  for (;;) {
    const sent = events.send({ text: "x".repeat(65_536) });
    const waits = await Promise.race([sent.then(() => false), setTimeout(50, true)]);
    if (waits) return { waiting: sent };
  }
}

test("a slow reader is waited for, and little is buffered for it", async () => {
  const { response, client } = await unread();
  const events = new EventStream(response, { stallMs: 60_000, onClose: () => undefined });
  const { waiting } = await fill(events);
  expect(response.writableLength).toBeLessThan(256 * 1024);
  client.resume();
  await waiting;
  events.end();
  await once(response, "close");
  expect(response.writableFinished).toBe(true);
});

test("a reader that takes nothing is cut off", async () => {
  const { response } = await unread();
  let closed = 0;
  const events = new EventStream(response, { stallMs: 10, onClose: () => closed++ });
  while (!response.destroyed) await events.send({ text: "x".repeat(65_536) });
  await setTimeout();
  expect(closed).toBe(1);
  await events.send({ late: true });
});

test("the client's leaving is heard once, its staying not at all", async () => {
  const { response, client } = await unread();
  let closed = 0;
  const events = new EventStream(response, { stallMs: 60_000, onClose: () => closed++ });
  client.destroy();
  await once(response, "close");
  await events.send("[DONE]");
  expect(closed).toBe(1);
  const second = await unread();
  const stream = new EventStream(second.response, { stallMs: 60_000, onClose: () => closed++ });
  second.client.resume();
  stream.end();
  await once(second.response, "close");
  expect(closed).toBe(1);
});
