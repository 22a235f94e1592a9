import { spawn } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

/** The built command line; test/build.ts keeps it up to date. */
export const PI = join(dirname(fileURLToPath(import.meta.url)), "..", "..", "dist", "cli", "main.js");

export interface Outcome {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** Runs `pi …args` as a user would, without a terminal and with nothing on stdin, and waits for its end. */
export async function pi(args: readonly string[], env: NodeJS.ProcessEnv = {}): Promise<Outcome> {
  const child = spawn(process.execPath, [PI, ...args], {
    env: { ...process.env, ...env },
    stdio: ["ignore", "pipe", "pipe"],
  });
  let stdout = "";
  let stderr = "";
  child.stdout.setEncoding("utf8").on("data", (text: string) => (stdout += text));
  child.stderr.setEncoding("utf8").on("data", (text: string) => (stderr += text));
  return await new Promise((resolve, reject) => {
    child.once("error", reject);
    child.once("close", (code, signal) => resolve({ code, signal, stdout, stderr }));
  });
}

/** Like {@link pi} with `--json`, for commands that must succeed: returns the one document on stdout. */
export async function piJson<T>(args: readonly string[]): Promise<T> {
  const { code, stdout, stderr } = await pi([...args, "--json"]);
  if (code !== 0) throw new Error(`pi ${args.join(" ")} exited with ${code}: ${stderr}`);
  return JSON.parse(stdout) as T;
}
