import { Command, CommanderError } from "commander";
import { PiError } from "../formats/errors.ts";
import { TOOL_VERSION } from "../formats/provenance.ts";

/** A command's module: adds arguments, options and action to its commander command. */
export interface CommandModule {
  define(command: Command): void;
}

/** Every command with its one-line summary; a module is imported only when its command runs. */
export const COMMANDS: Record<string, { summary: string; load: () => Promise<CommandModule> }> = {
  convert: { summary: "checkpoint to split weights", load: () => import("./convert.ts") },
  profile: { summary: "count which neurons fire on a corpus", load: () => import("./profile.ts") },
  "train-predictor": { summary: "train activation predictors", load: () => import("./train-predictor.ts") },
  place: { summary: "place neurons under a VRAM budget and pack the artifact", load: () => import("./place.ts") },
  build: { summary: "all four offline stages, resumable", load: () => import("./build.ts") },
  serve: { summary: "OpenAI-compatible server", load: () => import("./serve.ts") },
  run: { summary: "generate from a prompt, or chat", load: () => import("./run.ts") },
  eval: { summary: "perplexity and divergence from dense", load: () => import("./eval.ts") },
  bench: { summary: "speed against this machine's limit", load: () => import("./bench.ts") },
  inspect: { summary: "what is inside a file", load: () => import("./inspect.ts") },
  doctor: { summary: "what this machine can do", load: () => import("./doctor.ts") },
};

/** Parses `argv` (without node and script), runs the command and returns the exit code. */
export async function main(argv: readonly string[]): Promise<number> {
  const program = new Command("pi")
    .description("Run a big sparse language model fast on a small GPU, or none.")
    .version(TOOL_VERSION)
    .exitOverride()
    .configureOutput({ outputError: (text, write) => write(usageError(text)) });
  for (const [name, { summary, load }] of Object.entries(COMMANDS)) {
    const command = program.command(name).description(summary).exitOverride();
    if (argv.includes(name)) (await load()).define(command);
  }
  try {
    await program.parseAsync(argv as string[], { from: "user" });
    return Number(process.exitCode ?? 0);
  } catch (error) {
    return exitCode(error);
  }
}

/** Commander's "error: what is wrong\n(Did you mean it?)" in the form of all other errors: one line with a code. */
function usageError(text: string): string {
  const [first, ...more] = text
    .trim()
    .replace(/^error: /, "")
    .split("\n");
  return `pi: ${[first, ...more, "(--help shows what is accepted)"].join(" ")} [E_USAGE]\n`;
}

/** Prints what the user needs to know of `error` on stderr and chooses the exit code. */
function exitCode(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
  if (error instanceof PiError) {
    console.error(`pi: ${error.message} [${error.code}]`);
    return error.exitCode;
  }
  if (error instanceof Error && error.name === "AbortError") {
    console.error("pi: interrupted");
    return 130;
  }
  // A refusal of the operating system names file and reason; anything else is a fault of ours.
  const code = (error as NodeJS.ErrnoException)?.syscall === undefined ? "E_INTERNAL" : "E_SYSTEM";
  console.error(process.env["PI_DEBUG"] ? error : `pi: ${(error as Error)?.message ?? String(error)} [${code}]`);
  return 1;
}
