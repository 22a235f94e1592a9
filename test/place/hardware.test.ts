import { readdirSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, it } from "vitest";
import { parseHardware } from "../../formats/hardware.ts";
import { DEFAULT_LAUNCH_SECONDS } from "../../model/gpu-kernels.ts";
import { native } from "../../native/index.ts";
import { measureHardware, readHardwareFile, REFERENCE, REFERENCE_LINK } from "../../place/hardware.ts";

const folder = fileURLToPath(new URL("../../examples/hardware", import.meta.url));

describe("hardware files", () => {
  it.each(readdirSync(folder))("%s describes a machine and says where its numbers come from", async (name) => {
    const { hardware } = await readHardwareFile(join(folder, name), 1 << 30);
    expect(hardware.gpu.bandwidth).toBeGreaterThan(hardware.cpu.bandwidth);
    expect(hardware.gpu.vramBytes).toBeGreaterThan(hardware.gpu.reservedBytes);
    expect(hardware.source).toMatch(/^Not measured here/);
  });

  it("may be of a machine without a GPU, which then stands in", async () => {
    const { hardware } = await readHardwareFile(join(folder, "epyc-9354-cpu-only.json"), 1 << 30);
    const device = native().device();
    expect(hardware.gpu).toMatchObject(
      device.found
        ? { name: device.name, vramBytes: device.totalBytes }
        : { ...REFERENCE, vramBytes: 1 << 30, reservedBytes: 0 },
    );
  });

  it("have the reference GPU's numbers", async () => {
    const { hardware } = await readHardwareFile(join(folder, "rtx-4090-ddr5.json"), 0);
    const { bandwidth, launchSeconds } = hardware.gpu;
    expect({ bandwidth, launchSeconds }).toEqual({
      bandwidth: REFERENCE.bandwidth,
      launchSeconds: REFERENCE.launchSeconds,
    });
    expect(hardware.link).toEqual(REFERENCE_LINK);
  });
});

describe("the time of a kernel", () => {
  const file = (gpu: object) => {
    const link = { bandwidth: 1, syncSeconds: 0 };
    return JSON.stringify({ name: "x", cpu: { bandwidth: 1 }, gpu: { name: "y", ...gpu }, link, source: "z" });
  };
  const SIZES = { vramBytes: 1, bandwidth: 1, reservedBytes: 0 };

  it("may be missing in a hardware file, and is then an estimate", () => {
    expect(parseHardware(file(SIZES), "x.json").gpu).toEqual({ name: "y", ...SIZES });
    expect(parseHardware(file({ ...SIZES, launchSeconds: 2e-6 }), "x.json").gpu!.launchSeconds).toBe(2e-6);
    expect(DEFAULT_LAUNCH_SECONDS).toBe(REFERENCE.launchSeconds);
  });

  it("is refused where it is no time", () => {
    expect(() => parseHardware(file({ ...SIZES, launchSeconds: -1 }), "x.json")).toThrow(/x\.json.*launchSeconds.*-1/);
    expect(() => parseHardware(file({ ...SIZES, launchSeconds: "1" }), "x.json")).toThrow(/x\.json.*launchSeconds/);
  });
});

describe("readBandwidth", () => {
  it("measures this machine", async () => {
    const hardware = await measureHardware(1 << 30, 1 << 20);
    expect(hardware.cpu.bandwidth).toBeGreaterThan(1e8);
    expect(parseHardware(JSON.stringify(hardware), "hardware.json")).toEqual(hardware);
    const device = native().device();
    expect(hardware.gpu).toMatchObject(
      device.found
        ? { name: device.name, vramBytes: device.totalBytes }
        : { ...REFERENCE, vramBytes: 1 << 30, reservedBytes: 0 },
    );
  });

  it("refuses nonsense with what was expected and found", async () => {
    await expect(native().readBandwidth(64, 2, 0.1)).rejects.toThrow(/64 bytes for each .* got 2 threads, 64 bytes/);
    await expect(native().readBandwidth(1 << 20, 0, 0.1)).rejects.toThrow(/got 0 threads/);
    await expect(native().readBandwidth(1 << 20, 1, 0)).rejects.toThrow(/0\.0+ seconds/);
  });
});
