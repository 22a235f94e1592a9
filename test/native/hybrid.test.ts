import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

/** The C++ checks print one line each: "ok name" or "FAIL name: what is wrong". */
describe("native checks of split models", () => {
  const program = join(import.meta.dirname, "../../build/Release/pi_hybrid_checks");
  const { stdout, status } = spawnSync(program, { encoding: "utf8", env: { ...process.env, PI_DEVICE: "emulated" } });
  const lines = stdout.trim().split("\n");

  it.each(lines)("%s", (line) => {
    expect(line).toMatch(/^ok /);
  });

  it("all ran", () => {
    expect(status).toBe(0);
    expect(lines.length).toBeGreaterThan(12);
  });
});
