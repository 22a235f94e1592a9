import { vi } from "vitest";
import { main } from "../../cli/program.ts";

/** Runs a command that should refuse, without the cost of a process of its own: its exit code and standard error. */
export async function inProcess(args: readonly string[]): Promise<{ code: number; stderr: string }> {
  let stderr = "";
  const note = (text: unknown) => void (stderr += `${String(text)}\n`);
  const spies = [
    vi.spyOn(console, "error").mockImplementation(note),
    vi.spyOn(process.stderr, "write").mockImplementation((text) => (note(text), true)),
  ];
  try {
    const code = await main(args);
    return { code, stderr };
  } finally {
    for (const spy of spies) spy.mockRestore();
  }
}
