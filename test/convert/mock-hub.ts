import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export const COMMIT = "a".repeat(40);

export interface MockFile {
  bytes: Uint8Array;
  /** Stored in LFS: named by sha256 instead of git's hash. */
  lfs?: boolean;
}

/** A hub of one model on loopback, with what can go wrong. */
export class MockHub {
  readonly files = new Map<string, MockFile>();
  /** "METHOD /path [range]" of every request, "with TOKEN" where one came. */
  readonly requests: string[] = [];
  /** Cut the connection once so many bytes of a file were sent, so many times. */
  drop = { after: 0, times: 0 };
  /** The only token that is let in. */
  token: string | undefined;
  /** Answer every request with this status. */
  status: number | undefined;
  /** Bytes that are sent instead of the right ones. */
  corrupt = false;
  readonly #server: Server;

  readonly name: string;

  constructor(name: string) {
    this.name = name;
    this.#server = createServer((request, response) => this.#answer(request, response));
  }

  async start(): Promise<string> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  async stop(): Promise<void> {
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #answer(request: IncomingMessage, response: ServerResponse): void {
    const { pathname } = new URL(request.url!, "http://hub");
    const { range, authorization } = request.headers;
    this.requests.push(
      [request.method, pathname, range, authorization?.replace("Bearer", "with")].filter(Boolean).join(" "),
    );
    const json = (status: number, value: unknown) =>
      response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(value));
    if (this.status !== undefined) return void json(this.status, { error: "no" });
    if (this.token !== undefined && authorization !== `Bearer ${this.token}`)
      return void json(401, { error: "Invalid credentials" });
    if (
      pathname === `/api/models/${this.name}/revision/main` ||
      pathname === `/api/models/${this.name}/revision/${COMMIT}`
    ) {
      return void json(200, {
        _id: "1",
        id: this.name,
        sha: COMMIT,
        private: false,
        downloads: 0,
        likes: 0,
        gated: false,
        lastModified: "2024-01-01T00:00:00Z",
      });
    }
    if (pathname === `/api/models/${this.name}/tree/${COMMIT}`)
      return void json(
        200,
        [...this.files.keys()].map((path) => this.entry(path)),
      );
    const file = this.files.get(pathname.replace(`/${this.name}/resolve/${COMMIT}/`, ""));
    if (!file) return void response.writeHead(404, { "x-error-code": "EntryNotFound" }).end();
    this.#send(pathname, file, range, response);
  }

  /** What the hub lists of a file. */
  entry(path: string) {
    const { bytes, lfs } = this.files.get(path)!;
    const git = createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
    const sha256 = createHash("sha256").update(bytes).digest("hex");
    return {
      type: "file",
      path,
      oid: git,
      size: bytes.length,
      ...(lfs && { lfs: { oid: sha256, size: bytes.length, pointerSize: 130 } }),
    };
  }

  #send(path: string, { bytes }: MockFile, range: string | undefined, response: ServerResponse): void {
    const [, from, to] = /bytes=(\d+)-(\d*)/.exec(range ?? "") ?? [];
    const begin = Number(from ?? 0);
    const end = Math.min(to ? Number(to) + 1 : Infinity, bytes.length);
    const body = Buffer.from(bytes.subarray(begin, end));
    if (this.corrupt && body.length > 1) body[body.length - 1]! ^= 1;
    response.writeHead(range ? 206 : 200, {
      etag: `"${createHash("sha1").update(path).digest("hex")}"`,
      "accept-ranges": "bytes",
      "content-length": body.length,
      ...(range && { "content-range": `bytes ${begin}-${end - 1}/${bytes.length}` }),
    });
    if (this.drop.times === 0 || body.length <= this.drop.after) return void response.end(body);
    this.drop.times--;
    response.write(body.subarray(0, this.drop.after), () => setTimeout(() => response.destroy(), 50));
  }
}
