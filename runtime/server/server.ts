import fastify, { type FastifyInstance, type FastifyReply, type FastifyRequest } from "fastify";
import type { AddressInfo, Socket } from "node:net";
import type { Session } from "../session.ts";
import { accessCheck, checkExposure } from "./access.ts";
import { type AnswerContext, type AnswerKind, sendAnswer } from "./answer.ts";
import { ChatChoice, type Choice, CompletionChoice } from "./choices.ts";
import { ApiError, errorReply, shuttingDown } from "./errors.ts";
import { LogprobWriter } from "./logprobs.ts";
import { Metrics } from "./metrics.ts";
import { modelCard } from "./model-card.ts";
import { checkString, Params } from "./params.ts";
import {
  type AnswerOptions,
  type Prompt,
  readChatRequest,
  readCompletionRequest,
  readIds,
  readText,
} from "./requests.ts";

export interface ServerOptions {
  host?: string;
  /** 0: any free one. */
  port?: number;
  /** Asked of every request but /health. */
  apiKey?: string;
  /** Sequences that may wait for room; beyond, requests get 429. */
  maxQueue?: number;
  /** One line per response, without anything of its content. */
  log?: (line: string) => void;
}

/** Sizes and times a connection is held to. */
const CONNECTION = {
  bodyBytes: 8 << 20,
  headersMs: 30_000,
  requestMs: 60_000,
  keepAliveMs: 5_000,
  /** Silence on a connection that is not being answered. */
  idleMs: 120_000,
  /** A reader that takes nothing for so long is cut off. */
  stallMs: 60_000,
  connections: 1024,
};

const COMPLETION: AnswerKind = { idPrefix: "cmpl", object: "text_completion", chunkObject: "text_completion" };
const CHAT: AnswerKind = { idPrefix: "chatcmpl", object: "chat.completion", chunkObject: "chat.completion.chunk" };

/**
 * The OpenAI-compatible server of one session. It listens before its model is there (503 until `ready`), and goes down
 * by letting what it has begun finish (503 for what comes after). The session is its caller's to close.
 */
export class Server {
  readonly #options: Required<Omit<ServerOptions, "apiKey">>;
  readonly #app: FastifyInstance;
  readonly #metrics: Metrics;
  #session: Session | undefined;
  #logprobs: LogprobWriter | undefined;
  #closing = false;
  /** Responses in the making. */
  readonly #open = new Set<FastifyReply["raw"]>();

  /** @throws E_EXPOSED for a host others can reach, without a key */
  constructor(options: ServerOptions = {}) {
    const { host = "127.0.0.1", port = 8080, maxQueue = 256, log = () => undefined, apiKey } = options;
    checkExposure(host, apiKey);
    this.#options = { host, port, maxQueue, log };
    this.#metrics = new Metrics(() => this.#session?.scheduler.stats());
    this.#app = createApp();
    this.#hooks(accessCheck(host, apiKey));
    this.#routes();
  }

  /** Starts listening. @returns its URL */
  async listen(): Promise<string> {
    const { host, port } = this.#options;
    await this.#app.listen({ host, port });
    const { port: actual } = this.#app.server.address() as AddressInfo;
    return `http://${host.includes(":") ? `[${host}]` : host}:${actual}`;
  }

  /** The model is loaded: requests are answered from now on. */
  ready(session: Session): void {
    this.#session = session;
    this.#logprobs = new LogprobWriter(session.model);
    const { gpu } = session.model.open.device;
    if (gpu) this.#metrics.gpu(gpu);
  }

  /** Refuses new requests, waits for those begun at most `timeoutMs`, then cancels them and stops listening. */
  async shutdown(timeoutMs: number): Promise<void> {
    this.#closing = true;
    for (const deadline = Date.now() + timeoutMs; this.#open.size > 0 && Date.now() < deadline;) await pause(20);
    await this.#session?.scheduler.close(); // those left are told
    for (const deadline = Date.now() + 500; this.#open.size > 0 && Date.now() < deadline;) await pause(20);
    await this.#app.close();
  }

  #hooks(checkAccess: ReturnType<typeof accessCheck>): void {
    const app = this.#app;
    app.addHook("onRequest", (request, reply, done) => {
      this.#track(request, reply);
      const isHealth = request.routeOptions.url === "/health";
      checkAccess(request.headers, isHealth);
      if (this.#closing && !isHealth) reply.header("connection", "close");
      done();
    });
    app.setErrorHandler((error, _request, reply) => this.#refuse(reply, error));
    app.setNotFoundHandler((request) => {
      const path = request.url.split("?")[0]!;
      const allowed = (["GET", "POST"] as const).filter((method) => app.hasRoute({ method, url: path }));
      if (allowed.length === 0) throw new ApiError(404, "not_found", "no such path");
      const allow = allowed.join(", ");
      throw new ApiError(405, "method_not_allowed", `expected ${allow}, got ${request.method}`, { allow });
    });
  }

  #routes(): void {
    const app = this.#app;
    app.get("/health", (_request, reply) => {
      const status = this.#closing ? "shutting down" : this.#session ? "ok" : "loading";
      return reply.code(status === "ok" ? 200 : 503).send({ status });
    });
    app.get("/metrics", async (_request, reply) =>
      reply.type(this.#metrics.contentType).send(await this.#metrics.text()),
    );
    app.get("/v1/models", () => ({ object: "list", data: [modelCard(this.#ready())] }));
    app.get<{ Params: { "*": string } }>("/v1/models/*", ({ params }) => {
      const card = modelCard(this.#ready());
      if (card.id !== params["*"])
        throw new ApiError(404, "model_not_found", `no such model; this server has ${card.id}`);
      return card;
    });
    app.post("/v1/completions", (request, reply) => this.#complete(request, reply));
    app.post("/v1/chat/completions", (request, reply) => this.#chat(request, reply));
    app.post("/tokenize", ({ body }) => {
      const text = checkString("text", new Params(body).raw("text"));
      return { tokens: readText(text, this.#ready(), "text") };
    });
    app.post("/detokenize", ({ body }) => {
      const session = this.#ready();
      const list = new Params(body).array("tokens", session.contextTokens);
      return { text: session.model.tokenizer.decode(readIds(list, session, "tokens")) };
    });
  }

  async #complete({ body }: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const session = this.#admit();
    const request = readCompletionRequest(body, session);
    const { prompts, n, echo, logprobs } = request;
    const writer = logprobs === undefined ? undefined : this.#logprobs;
    const choices = prompts.flatMap((prompt, p) =>
      this.#generate(session, prompt, request, echo && writer !== undefined).map(
        (generation, i) => new CompletionChoice(generation, p * n + i, echo ? prompt : undefined, writer),
      ),
    );
    return this.#send(reply, choices, COMPLETION, session, request);
  }

  async #chat({ body }: FastifyRequest, reply: FastifyReply): Promise<FastifyReply> {
    const session = this.#admit();
    const request = await readChatRequest(body, session);
    const writer = request.logprobs === undefined ? undefined : this.#logprobs;
    const generations = this.#generate(session, request.prompt, request, false);
    const choices = generations.map((generation, i) => new ChatChoice(generation, i, writer));
    return this.#send(reply, choices, CHAT, session, request);
  }

  /** n generations of one prompt, with a seed each. */
  #generate(session: Session, prompt: Prompt, options: AnswerOptions, scorePrompt: boolean) {
    const { n, sampling, stop, ignoreEos, logprobs = 0 } = options;
    return Array.from({ length: n }, (_, i) =>
      session.generate({
        prompt: prompt.ids,
        maxTokens: prompt.maxTokens,
        sampling: { ...sampling, seed: sampling.seed + i },
        stop,
        ignoreEos,
        topLogprobs: logprobs,
        scorePrompt,
        observer: this.#metrics,
      }),
    );
  }

  async #send(
    reply: FastifyReply,
    choices: Choice[],
    kind: AnswerKind,
    { model }: Session,
    { stream, includeUsage }: AnswerOptions,
  ): Promise<FastifyReply> {
    reply.raw.socket?.setTimeout(0); // a whole answer may be silent for long
    const context: AnswerContext = {
      kind,
      model: model.name,
      stream,
      includeUsage,
      stallMs: CONNECTION.stallMs,
      onError: (error) => this.#logError(error),
    };
    await sendAnswer(reply, choices, context);
    return reply;
  }

  #ready(): Session {
    if (this.#closing) throw shuttingDown();
    if (this.#session) return this.#session;
    throw new ApiError(503, "loading", "the model is loading", { "retry-after": "1" });
  }

  /** The session, when it has room in its queue. */
  #admit(): Session {
    const session = this.#ready();
    const { waiting } = session.scheduler.stats();
    const { maxQueue } = this.#options;
    if (waiting < maxQueue && this.#open.size <= maxQueue + session.scheduler.maxSequences) return session;
    throw new ApiError(429, "queue_full", `${waiting} requests are waiting, try again later`, { "retry-after": "1" });
  }

  #refuse(reply: FastifyReply, error: unknown): FastifyReply {
    const { status, headers, body } = errorReply(error);
    if (status === 500) this.#logError(error);
    return reply.code(status).headers(headers).send(body);
  }

  /** Counts the response as open until it is over, then logs it. */
  #track(request: FastifyRequest, reply: FastifyReply): void {
    const { raw } = reply;
    const started = performance.now();
    this.#open.add(raw);
    raw.once("close", () => {
      this.#open.delete(raw);
      const status = raw.writableFinished ? raw.statusCode : 499; // 499: the client left before the end
      this.#metrics.response(status);
      const ms = Math.round(performance.now() - started);
      this.#options.log(`${request.method} ${request.routeOptions.url ?? "(unknown path)"} ${status} ${ms} ms`);
    });
  }

  #logError(error: unknown): void {
    this.#options.log(`error: ${error instanceof Error ? (error.stack ?? error.message) : String(error)}`);
  }
}

function createApp(): FastifyInstance {
  const app = fastify({
    bodyLimit: CONNECTION.bodyBytes,
    requestTimeout: CONNECTION.requestMs,
    keepAliveTimeout: CONNECTION.keepAliveMs,
    connectionTimeout: CONNECTION.idleMs,
    forceCloseConnections: true,
    http: { headersTimeout: CONNECTION.headersMs, connectionsCheckingInterval: 5_000 },
    clientErrorHandler: refuseMalformed,
  });
  app.server.maxConnections = CONNECTION.connections;
  app.removeContentTypeParser("text/plain"); // JSON only: other types could come from any web page's form
  app.addHook("preParsing", (request, _reply, _payload, done) => {
    const encoding = request.headers["content-encoding"] ?? "identity";
    const problem = `content-encoding: expected none, got ${encoding}`;
    done(encoding === "identity" ? null : new ApiError(415, "unsupported_encoding", problem));
  });
  return app;
}

/** Answers what is not HTTP, or not in time: there is no request for fastify to handle. */
function refuseMalformed(error: NodeJS.ErrnoException, socket: Socket): void {
  if (!socket.writable) return;
  const [status, name] =
    error.code === "HPE_HEADER_OVERFLOW"
      ? [431, "Request Header Fields Too Large"]
      : error.code === "ERR_HTTP_REQUEST_TIMEOUT"
        ? [408, "Request Timeout"]
        : [400, "Bad Request"];
  const body = JSON.stringify(errorReply(new ApiError(status, "malformed_request", name)).body);
  const head = [`HTTP/1.1 ${status} ${name}`, "content-type: application/json", `content-length: ${body.length}`];
  socket.end(`${head.join("\r\n")}\r\nconnection: close\r\n\r\n${body}`);
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}
