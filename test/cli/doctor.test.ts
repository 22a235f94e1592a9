import { mkdtemp, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { parseHardware } from "../../formats/hardware.ts";
import { readCaches } from "../../io/hardware.ts";
import { pi, piJson } from "./pi.ts";

const QUICK = ["--buffer", "16M", "--seconds", "0.02"];

describe("pi doctor", () => {
  test("says what this machine can do, and gives a hardware file for pi place", async () => {
    interface Report {
      threads: number;
      bandwidth: { what: string; threads: number; bytesPerSecond: number }[];
      addon: { path: string; isa: { active: string; available: string[] } };
      gpu: object;
      hardware: object;
    }
    const { stdout } = await pi(["doctor", ...QUICK, "--json"], { PI_DEVICE: "none" });
    const report = JSON.parse(stdout) as Report;
    expect(report.gpu).toEqual({ found: false, reason: "PI_DEVICE is none" });
    expect(report.addon.isa.available).toContain(report.addon.isa.active);
    expect(report.bandwidth.map(({ what, threads }) => [what, threads])).toContainEqual(["memory", report.threads]);
    for (const { bytesPerSecond } of report.bandwidth) expect(bytesPerSecond).toBeGreaterThan(1e8);
    expect(parseHardware(JSON.stringify(report.hardware), "hardware.json")).toEqual(report.hardware);
  });

  test("writes what it measured for pi place", async () => {
    const folder = await mkdtemp(join(tmpdir(), "pi-doctor-"));
    const path = join(folder, "hardware.json");
    try {
      const { hardware } = await piJson<{ hardware: object }>(["doctor", ...QUICK, "-o", path]);
      const written = parseHardware(await readFile(path, "utf8"), path);
      expect(written).toEqual(hardware);
      expect(written.cpu.work!.memory.rows.q4_0.sparse.share).toBeGreaterThan(0);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test("prints it for people", async () => {
    const { code, stdout, stderr } = await pi(["doctor", ...QUICK], { PI_DEVICE: "none" });
    expect([code, stderr]).toEqual([0, ""]);
    for (const line of [/^CPU /m, /^GPU +none: /m, /^ISA /m, /^read from +buffer +threads +GB\/s$/m])
      expect(stdout).toMatch(line);
  });

  test("describes and measures a GPU", async () => {
    const folder = await mkdtemp(join(tmpdir(), "pi-doctor-"));
    const path = join(folder, "hardware.json");
    try {
      const { stdout } = await pi(["doctor", ...QUICK, "-o", path], { PI_DEVICE: "emulated" });
      expect(stdout).toMatch(/^GPU +emulated device, compute capability 7\.5, 4 multiprocessors, .* of 4 GiB free/m);
      expect(stdout).toMatch(
        /^GPU memory .* GB\/s; copies to it .* GB\/s; a meeting with the CPU .* µs; a kernel .* µs beside what it reads$/m,
      );
      const { gpu, link } = parseHardware(await readFile(path, "utf8"), path);
      expect(gpu).toMatchObject({ name: "emulated device", vramBytes: 4 * 2 ** 30, reservedBytes: 16 << 20 });
      for (const value of [gpu!.bandwidth, gpu!.launchSeconds, link.bandwidth, link.syncSeconds])
        expect(value).toBeGreaterThan(0);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test("still says what it knows when the addon is missing, and fails", async () => {
    const { code, stdout } = await pi(["doctor", ...QUICK], { PI_NATIVE_PATH: "/nowhere/pi.node" });
    expect(code).toBe(1);
    expect(stdout).toMatch(
      /^ISA +unknown: native addon not found at \/nowhere\/pi\.node; build it with: npm run build:native$/m,
    );
  });
});

describe("readCaches", () => {
  let folder: string;
  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "pi-caches-"));
    const caches = [
      ["3", "Unified", "32768K"],
      ["1", "Data", "32K"],
      ["1", "Instruction", "32K"],
      ["2", "Unified", "1M"],
    ];
    for (const [i, [level, type, size]] of caches.entries()) {
      await mkdir(join(folder, `index${i}`));
      for (const [name, text] of Object.entries({ level, type, size }))
        await writeFile(join(folder, `index${i}`, name), `${text}\n`);
    }
  });
  afterAll(() => rm(folder, { recursive: true }));

  test("reads sizes of data caches, nearest first", async () => {
    expect(await readCaches(folder)).toEqual([
      { level: 1, size: 32 << 10 },
      { level: 2, size: 1 << 20 },
      { level: 3, size: 32 << 20 },
    ]);
  });

  test("knows of none where the system does not tell", async () => {
    expect(await readCaches(join(folder, "none"))).toEqual([]);
  });
});
