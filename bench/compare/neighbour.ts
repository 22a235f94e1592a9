import { spawn } from "node:child_process";
import { once } from "node:events";

/** Runs `work` beside a process that never rests, pinned to core 0 (Linux, with taskset), and ends that process after it. */
export async function withNeighbour<T>(work: () => Promise<T>): Promise<T> {
  const neighbour = spawn("taskset", ["-c", "0", process.execPath, "-e", "for (;;);"], { stdio: "ignore" });
  await once(neighbour, "spawn"); // throws when there is no taskset
  try {
    return await work();
  } finally {
    neighbour.kill("SIGKILL");
  }
}
