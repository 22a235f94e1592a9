import type { ServerResponse } from "node:http";

/** Milliseconds of silence after which a comment keeps proxies from closing the connection. */
const PING_MS = 15_000;

/**
 * Server-sent events on a raw response. `send` waits for a slow reader, who is cut off after `stallMs`; `onClose` runs
 * once when the client is gone before the end.
 */
export class EventStream {
  readonly #response: ServerResponse;
  readonly #stallMs: number;
  readonly #ping: NodeJS.Timeout;
  /** While the reader is behind: when it has caught up, or is gone. */
  #room: Promise<void> | undefined;

  constructor(response: ServerResponse, options: { stallMs: number; onClose: () => void }) {
    this.#response = response;
    this.#stallMs = options.stallMs;
    this.#ping = setInterval(() => this.#write(": ping\n\n"), PING_MS);
    response.once("close", () => {
      clearInterval(this.#ping);
      if (!response.writableFinished) options.onClose();
    });
    response.writeHead(200, {
      "content-type": "text/event-stream; charset=utf-8",
      "cache-control": "no-cache",
      "x-accel-buffering": "no",
    });
    response.flushHeaders();
  }

  /** One event; returns when there is room for the next. */
  async send(data: object | "[DONE]"): Promise<void> {
    this.#ping.refresh();
    const text = typeof data === "string" ? data : JSON.stringify(data);
    if (!this.#write(`data: ${text}\n\n`)) await (this.#room ??= this.#drained());
  }

  end(): void {
    this.#response.end();
  }

  /** False when the reader is behind; what comes after the end or the close is dropped. */
  #write(text: string): boolean {
    return this.#response.writableEnded || this.#response.destroyed || this.#response.write(text);
  }

  async #drained(): Promise<void> {
    const response = this.#response;
    const stall = setTimeout(() => response.destroy(), this.#stallMs);
    await new Promise<void>((resolve) => {
      const done = () => {
        response.off("drain", done).off("close", done);
        resolve();
      };
      response.on("drain", done).on("close", done);
    });
    clearTimeout(stall);
    this.#room = undefined;
  }
}
