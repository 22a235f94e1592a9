import { connect } from "node:net";
import OpenAI from "openai";
import { Server, type ServerOptions } from "../../../runtime/server/server.ts";
import { Session } from "../../../runtime/session.ts";
import { fakeModel, type FakeOptions } from "../fake-engine.ts";

export type Options = FakeOptions & ServerOptions & { maxSequences?: number };

/** A server on a free port of loopback around a fake model. Dispose of it with `stop`. */
export async function startServer(options: Options = {}) {
  const { model, engine } = fakeModel(options);
  const session = new Session(model, { maxSequences: options.maxSequences ?? 16 });
  const lines: string[] = [];
  const server = new Server({ port: 0, log: (line) => lines.push(line), ...options });
  server.ready(session);
  const url = await server.listen();
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: options.apiKey ?? "none", maxRetries: 0 });
  const stop = async () => {
    await server.shutdown(0);
    await session.close();
  };
  return { server, session, engine, url, client, lines, stop };
}

/** Sends bytes as they are and returns all that comes back until the server closes. */
export async function raw(url: string, bytes: string): Promise<string> {
  const { port } = new URL(url);
  return new Promise((resolve, reject) => {
    let text = "";
    const socket = connect(Number(port), "127.0.0.1", () => socket.write(bytes));
    socket.setEncoding("utf8").on("data", (chunk) => (text += chunk));
    socket.once("close", () => resolve(text)).once("error", reject);
  });
}

export async function post(url: string, path: string, body: unknown, headers: Record<string, string> = {}) {
  return fetch(url + path, {
    method: "POST",
    headers: { "content-type": "application/json", ...headers },
    body: typeof body === "string" ? body : JSON.stringify(body),
  });
}

export interface ErrorBody {
  error: { message: string; type: string; param: string | null; code: string | null };
}
