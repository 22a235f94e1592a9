import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";

/** The C++ checks print one line each: "ok name" or "FAIL name: what is wrong". */
const { stdout, status } = spawnSync(join(import.meta.dirname, "../../build/Release/pi_checks"), { encoding: "utf8" });
const lines = stdout.trim().split("\n");

describe("native checks", () => {
  it.each(lines)("%s", (line) => {
    expect(line).toMatch(/^ok /);
  });

  it("all ran", () => {
    expect(status).toBe(0);
    expect(lines.length).toBeGreaterThan(40);
  });
});
