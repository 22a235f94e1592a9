import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ModeSpeed } from "../../model/measure.ts";
import { CONFIG, FAST_GPU, writePlaced } from "../place/working-dir.ts";
import { inProcess } from "./in-process.ts";
import { pi, piJson } from "./pi.ts";

let dir: string;
const at = (name: string): string => join(dir, name);

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-cli-bench-"));
  await writePlaced(dir);
});
afterAll(() => rm(dir, { recursive: true }));

interface Report {
  modes: Record<string, ModeSpeed>;
  predicted: { tokensPerSecond: number; hardware: string } | null;
  loadSeconds: number;
  peakRss: number;
}

const SHORT = ["--prompt", "9", "--tokens", "5", "--repeats", "1", "--threads", "1"];

describe("pi bench", () => {
  test("measures every mode of an artifact, with what a token reads and what bounds it", async () => {
    const report = await piJson<Report>(["bench", at("x.pi"), ...SHORT]);
    expect(Object.keys(report.modes)).toEqual(["dense", "exact", "predictor"]);
    for (const speed of Object.values(report.modes)) {
      expect(speed.decodeTokensPerSecond).toBeGreaterThan(0);
      expect(speed.prefillTokensPerSecond).toBeGreaterThan(0);
      expect(speed.bytesPerToken).toBeCloseTo(
        Object.values(speed.bytes).reduce((a, b) => a + b),
        6,
      );
      expect(speed.bytesPerSecond).toBeCloseTo(speed.bytesPerToken * speed.decodeTokensPerSecond, 3);
      expect(speed.share).toBeCloseTo(speed.bytesPerSecond / speed.limit.bytesPerSecond, 9);
      expect(["cache", "memory"]).toContain(speed.limit.kind);
    }
    const { dense, exact, predictor } = report.modes;
    // All neurons: gate, up and down rows of f32.
    expect(dense!.bytes.ffn).toBe(CONFIG.nLayers * CONFIG.nNeurons * 3 * CONFIG.dim * 4);
    expect(exact!.bytes.ffn).toBeLessThan(dense!.bytes.ffn);
    expect(predictor!.bytes.predictor).toBeGreaterThan(0);
    expect(report.predicted).toMatchObject({ hardware: FAST_GPU.name });
    expect(report.loadSeconds).toBeGreaterThan(0);
    expect(report.peakRss).toBeGreaterThan(1 << 20);
  });

  test("measures a converted model in the modes asked for, and prints tables", async () => {
    const { code, stdout } = await pi(["bench", at("model"), "--mode", "exact", ...SHORT]);
    expect(code).toBe(0);
    expect(stdout).toMatch(
      /^mode +prefill tok\/s +decode tok\/s +read\/token +GB\/s +limit GB\/s +share of it +limit$/m,
    );
    expect(stdout).toMatch(/^exact .*(memory|last-level cache)/m);
    expect(stdout).not.toMatch(/^dense/m);
    expect(stdout).toMatch(/^mode +embed +attention +kv +predictor +ffn +head$/m);
  });

  test("refuses a mode that the model does not have, and more tokens than its context", async () => {
    const noPredictors = await inProcess(["bench", at("model"), "--mode", "predictor", ...SHORT]);
    expect(noPredictors).toMatchObject({ code: 1, stderr: expect.stringContaining("[E_MODE]") as string });
    const long = await inProcess(["bench", at("model"), "--prompt", "256", "--tokens", "1"]);
    expect(long).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("expected at most 256 together, got 257") as string,
    });
    expect(await inProcess(["bench", at("model"), "--mode", "fast"])).toMatchObject({ code: 2 });
  });
});
