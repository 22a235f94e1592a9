/** Runs commands as a user types them: shown first, progress on the terminal, results as JSON. */
import { spawn, type ChildProcess } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { formatSeconds } from "../../cli/output.ts";

const MAIN = "dist/cli/main.js";

/** A command that failed; its own words are already on the terminal. */
export class CommandFailed extends Error {
  readonly exitCode: number;

  constructor(command: string, exitCode: number) {
    super(`${command}: failed with exit code ${exitCode}`);
    this.exitCode = exitCode;
  }
}

/** Runs `pi …args --json` and returns its one document. */
export async function pi<T>(...args: string[]): Promise<T> {
  return JSON.parse(await run(process.execPath, [MAIN, ...args, "--json"], `pi ${args.join(" ")}`)) as T;
}

/** Runs a command and returns what it wrote on stdout; stderr goes to the terminal. */
export async function run(file: string, args: readonly string[], shown = [file, ...args].join(" ")): Promise<string> {
  const started = performance.now();
  console.log(`$ ${shown}`);
  const child = start(file, args);
  const [stdout] = await Promise.all([text(child.stdout!), ended(child, shown)]);
  console.log(`  ${formatSeconds((performance.now() - started) / 1000)}`);
  return stdout;
}

/** Starts `pi serve …args`; resolves when it answers. */
export async function serve(...args: string[]): Promise<{ url: string; stop: () => Promise<void> }> {
  const shown = `pi serve ${args.join(" ")}`;
  console.log(`$ ${shown}`);
  const child = start(process.execPath, [MAIN, "serve", ...args]);
  const end = ended(child, shown);
  const ready = once(createInterface({ input: child.stdout! }), "line") as Promise<[string]>;
  // The first line on stdout is the URL; a server that fails ends before it.
  const [url] = await Promise.race([ready, end.then(() => ready)]);
  const stop = async (): Promise<void> => {
    child.kill("SIGTERM");
    await end;
  };
  return { url, stop };
}

function start(file: string, args: readonly string[]): ChildProcess {
  return spawn(file, args, { stdio: ["ignore", "pipe", "inherit"] });
}

/** Resolves when a command ends well; throws {@link CommandFailed} otherwise. */
async function ended(child: ChildProcess, shown: string): Promise<void> {
  const [code] = (await once(child, "close")) as [number | null];
  if (code !== 0) throw new CommandFailed(shown, code ?? 1);
}
