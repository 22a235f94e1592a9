import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { describe, expect, it } from "vitest";
import type { DeviceMeasurement, DeviceReport } from "../../native/index.ts";

const build = join(import.meta.dirname, "../../build/Release");
const run = promisify(execFile);

interface Outcome {
  stdout: string;
  code: number;
}

/** Runs a program with the environment changed; a failure is an outcome, too. */
async function outcome(file: string, args: string[], env: Record<string, string>): Promise<Outcome> {
  const options = { env: { ...process.env, ...env }, maxBuffer: 1 << 24 };
  return run(file, args, options).then(
    ({ stdout }) => ({ stdout, code: 0 }),
    (error: { stdout: string; code: number }) => ({ stdout: error.stdout, code: error.code }),
  );
}

/** The checks, one line each, with lanes in the order of their numbers and in another: results must not depend on it. */
const checks = (seed: string): Promise<Outcome> =>
  outcome(join(build, "pi_device_checks"), [], { PI_DEVICE: "emulated", PI_EMULATOR_SEED: seed });
const orders = await Promise.all([checks("0"), checks("1")]);

describe.each([
  ["in order", orders[0]],
  ["in a random order", orders[1]],
])("kernels of the device, lanes %s", (_, { stdout, code }) => {
  const lines = stdout.trim().split("\n");

  it.each(lines)("%s", (line) => {
    expect(line).toMatch(/^ok /);
  });

  it("all ran", () => {
    expect(code).toBe(0);
    expect(lines.length).toBeGreaterThan(15);
  });
});

/** What the addon says in a process of its own, for the environment is read when a device is opened. */
async function ask<T>(expression: string, env: Record<string, string>): Promise<T> {
  const addon = JSON.stringify(join(build, "pi_native.node"));
  const script = `Promise.resolve(require(${addon}).${expression}).then((x) => console.log(JSON.stringify(x)))`;
  const { stdout } = await outcome(process.execPath, ["-e", script], env);
  return JSON.parse(stdout) as T;
}
const device = (env: Record<string, string>): Promise<DeviceReport> => ask<DeviceReport>("device()", env);

describe("the device of the addon", () => {
  it("is described, with what its context takes", async () => {
    const found = await device({ PI_DEVICE: "emulated", PI_EMULATOR_MEMORY: String(1 << 30) });
    if (!found.found) throw new Error(found.reason);
    expect(found).toMatchObject({ backend: "emulated", compute: "7.5", totalBytes: 1 << 30 });
    expect(found.freeBytes).toBe(found.totalBytes - found.contextBytes);
  });

  it("is none where none is wanted, or known, or built", async () => {
    const folder = await mkdtemp(join(tmpdir(), "pi-device-"));
    try {
      expect(await device({ PI_DEVICE: "none" })).toEqual({ found: false, reason: "PI_DEVICE is none" });
      const unknown = await device({ PI_DEVICE: "abacus" });
      expect(unknown).toEqual({ found: false, reason: "PI_DEVICE is abacus, not none, cuda, hip or emulated" });
      const absent = await device({ PI_DEVICE: "emulated", PI_DEVICE_PATH: folder });
      expect(absent).toMatchObject({ found: false, reason: expect.stringContaining("was not built") as string });
      const amd = await device({ PI_DEVICE: "hip", PI_DEVICE_PATH: folder });
      expect(amd).toMatchObject({ found: false, reason: expect.stringMatching(/\bAMD driver is loaded/) as string });
      await writeFile(join(folder, "pi_emulated.so"), "not a library");
      const broken = await device({ PI_DEVICE: "emulated", PI_DEVICE_PATH: folder });
      expect(broken).toMatchObject({ found: false, reason: expect.stringContaining("does not load") as string });
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  it("is measured: memory, link, meeting and kernels", async () => {
    const measured = await ask<DeviceMeasurement>("probeDevice(65536)", { PI_DEVICE: "emulated" });
    const { bandwidth, linkBandwidth, syncSeconds, launchSeconds } = measured;
    for (const value of [bandwidth, linkBandwidth, syncSeconds, launchSeconds]) expect(value).toBeGreaterThan(0);
  });
});
