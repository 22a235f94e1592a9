import { type Command, Option } from "commander";
import { loadSession } from "../runtime/load.ts";
import { DEFAULT_SEQUENCES } from "../runtime/scheduler.ts";
import type { Server, ServerOptions } from "../runtime/server/server.ts";
import type { Session } from "../runtime/session.ts";
import { reportDevice } from "./device-options.ts";
import { printJson } from "./output.ts";
import { addSessionOptions, loadOptions, type SessionFlags } from "./session-options.ts";
import { parseInteger, parseNumber } from "./sizes.ts";

interface Options extends SessionFlags {
  host: string;
  port: number;
  apiKey?: string;
  name?: string;
  parallel: number;
  queue: number;
  shutdownTimeout: number;
  quiet?: boolean;
  json?: boolean;
}

export function define(command: Command): void {
  addSessionOptions(command)
    .option("--host <ADDRESS>", "address to listen on; others than this machine's own need a key", "127.0.0.1")
    .option("--port <N>", "0: any free one", parseInteger(0, 65535), 8080)
    .addOption(new Option("--api-key <KEY>", "asked of every request but /health").env("PI_API_KEY"))
    .option("--name <NAME>", "what clients call the model (default: its own name)")
    .option("--parallel <N>", "requests computed together", parseInteger(1, 1024), DEFAULT_SEQUENCES)
    .option("--queue <N>", "requests that may wait; more get 429", parseInteger(0), 256)
    .option("--shutdown-timeout <SECONDS>", "for answers in the making, after SIGTERM", parseNumber(0), 30)
    .option("--quiet", "no line per response on stderr")
    .option("--json", "print one JSON document when ready")
    .action(async (path: string, options: Options) => {
      if (options.apiKey === "") command.error("error: --api-key: expected a key, got an empty one");
      await serve(path, options);
    });
}

/** Serves until SIGTERM or SIGINT; a second one exits at once. */
async function serve(path: string, options: Options): Promise<void> {
  const names = options.name === undefined ? {} : { name: options.name };
  const loading = loadSession(path, { ...loadOptions(options), ...names, maxSequences: options.parallel });
  loading.catch(() => undefined); // may fail before `run` waits for it, which then reports it
  try {
    // Its code is read while other threads check the weights.
    const { Server } = await import("../runtime/server/server.ts");
    await run(new Server(serverOptions(options)), loading, options);
  } catch (error) {
    void loading.then(
      (session) => session.close(),
      () => undefined,
    );
    throw error;
  }
}

async function run(server: Server, loading: Promise<Session>, options: Options): Promise<void> {
  const url = await server.listen();
  try {
    const session = await loading;
    server.ready(session);
    const { model, contextTokens } = session;
    const stopped = signalled();
    reportDevice(model.open.device);
    console.error(`pi: serving ${model.name}, mode ${model.mode}, context ${contextTokens} tokens; Ctrl-C stops`);
    if (options.json) printJson({ url, model: model.name, mode: model.mode, contextTokens, pid: process.pid });
    else console.log(url);
    await stopped;
    await server.shutdown(options.shutdownTimeout * 1000);
    await session.close();
  } catch (error) {
    await server.shutdown(0);
    throw error;
  }
}

function serverOptions({ host, port, apiKey, queue, quiet }: Options): ServerOptions {
  const log = (line: string) => {
    if (!quiet || line.startsWith("error")) console.error(`${new Date().toISOString()} ${line}`);
  };
  return { host, port, maxQueue: queue, log, ...(apiKey === undefined ? {} : { apiKey }) };
}

/** Resolves at the first SIGTERM or SIGINT. */
function signalled(): Promise<void> {
  return new Promise((resolve) => {
    let seen = false;
    const onSignal = (_name: string, number: number) => {
      if (seen) process.exit(128 + number);
      seen = true;
      resolve();
    };
    process.on("SIGTERM", onSignal).on("SIGINT", onSignal);
  });
}
