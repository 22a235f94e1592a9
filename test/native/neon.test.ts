import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

const hasCrossCompiler = spawnSync("aarch64-linux-gnu-g++", ["--version"]).status === 0;

describe("64-bit Arm", () => {
  it.runIf(hasCrossCompiler)("compiles, and passes the kernel checks under emulation", { timeout: 300_000 }, () => {
    const script = join(import.meta.dirname, "../../scripts/check-neon.sh");
    const { status, stdout, stderr } = spawnSync(script, { encoding: "utf8" });
    expect(stderr).toBe("");
    expect(status).toBe(0);
    expect(stdout.split("\n").filter((line) => line !== "" && !line.startsWith("ok "))).toEqual([]);
  });
});
