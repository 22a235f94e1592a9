import { mkdtemp, readFile, rm, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { ForecastSpeed } from "../../cli/bench-forecast.ts";
import type { Swaps } from "../../model/measure.ts";
import type { LayerTrace } from "../../model/trace.ts";
import type { GpuMemory } from "../../native/index.ts";
import { budgetFor, CONFIG, FAST_GPU, writePlaced } from "../place/working-dir.ts";
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
  speeds: ForecastSpeed[];
  devices: {
    device: string;
    loadSeconds: number;
    firstTokenSeconds: number;
    peakRss: number;
    placed: { tokensPerSecond: number; hardware: string } | null;
    gpu: { memory: GpuMemory; budget: number; swaps: Swaps | null } | null;
    trace: { path: string; prompt: { seconds: number; streamedBytes: number }; layers: LayerTrace[] } | null;
  }[];
}

const SHORT = ["--tokens", "5", "--repeats", "1", "--threads", "1"];

describe("pi bench", () => {
  test("measures every mode of an artifact, with what a token reads and what bounds it", async () => {
    const report = await piJson<Report>(["bench", at("x.pi"), "--context", "9", ...SHORT]);
    expect(report.speeds.map(({ mode, context, batch }) => [mode, context, batch])).toEqual([
      ["dense", 9, 1],
      ["exact", 9, 1],
      ["predictor", 9, 1],
    ]);
    for (const speed of report.speeds) {
      expect(speed.decodeTokensPerSecond).toBeGreaterThan(0);
      expect(speed.prefillTokensPerSecond).toBeGreaterThan(0);
      expect(speed.bytesPerToken).toBeCloseTo(
        Object.values(speed.bytes).reduce((a, b) => a + b),
        6,
      );
      expect(speed.bytesPerSecond).toBeCloseTo(speed.bytesPerToken * speed.decodeTokensPerSecond, 3);
      expect(speed.share).toBeCloseTo(speed.bytesPerSecond / speed.limit.bytesPerSecond, 9);
      expect(["cache", "memory"]).toContain(speed.limit.kind);
      const { rest, ...parts } = speed.stepSeconds;
      expect(rest).toBeGreaterThan(0);
      for (const seconds of Object.values(parts)) expect(seconds).toBeGreaterThan(0);
      expect(speed.predictedTokensPerSecond).toBeGreaterThan(0);
      expect(speed.predictionError).toBeCloseTo(speed.predictedTokensPerSecond! / speed.decodeTokensPerSecond - 1, 9);
    }
    const [dense, exact, predictor] = report.speeds;
    // All neurons: gate, up and down rows of f32.
    expect(dense!.bytes.ffn).toBe(CONFIG.nLayers * CONFIG.nNeurons * 3 * CONFIG.dim * 4);
    expect(exact!.bytes.ffn).toBeLessThan(dense!.bytes.ffn);
    expect(predictor!.bytes.predictor).toBeGreaterThan(0);
    const [cpu] = report.devices;
    expect(cpu).toMatchObject({ device: "cpu", placed: { hardware: FAST_GPU.name }, gpu: null, trace: null });
    expect(cpu!.firstTokenSeconds).toBeGreaterThan(cpu!.loadSeconds);
    expect(cpu!.peakRss).toBeGreaterThan(1 << 20);
  });

  test("measures every context with every batch: long contexts read more KV, a batch shares what it reads", async () => {
    const cases = ["--context", "0", "200", "--batch", "1", "3"];
    const { speeds } = await piJson<Report>(["bench", at("model"), "--mode", "dense", ...cases, ...SHORT]);
    expect(speeds.map(({ context, batch }) => [context, batch])).toEqual([
      [0, 1],
      [0, 3],
      [200, 1],
      [200, 3],
    ]);
    // No artifact, so nobody knows how often its neurons fire.
    expect(speeds.map(({ predictedTokensPerSecond }) => predictedTokensPerSecond)).toEqual([null, null, null, null]);
    const [short, shortBatch, long, longBatch] = speeds;
    expect([short!.prefillTokensPerSecond, shortBatch!.prefillTokensPerSecond]).toEqual([null, null]);
    expect(long!.prefillTokensPerSecond).toBeGreaterThan(0);
    // Positions 0 to 4 read 1 to 5 rows of the cache, positions 200 to 204 read 201 to 205.
    expect(long!.bytes.kv / short!.bytes.kv).toBeCloseTo(203 / 3, 6);
    expect(longBatch!.bytes.kv).toBe(long!.bytes.kv);
    expect(longBatch!.bytes.attention).toBeCloseTo(long!.bytes.attention / 3, 6);
  });

  test("measures a converted model in the modes asked for, and prints tables", async () => {
    const { code, stdout } = await pi(["bench", at("model"), "--mode", "exact", ...SHORT]);
    expect(code).toBe(0);
    expect(stdout).toMatch(
      /^mode +context +batch +prefill tok\/s +decode tok\/s +GB\/s +limit GB\/s +share of it +limit$/m,
    );
    expect(stdout).toMatch(/^exact +128 +1 .*(memory|last-level cache)/m);
    expect(stdout).not.toMatch(/^dense/m);
    expect(stdout).toMatch(/^mode +context +batch +in all +embed +attention +kv +predictor +ffn +head$/m);
    expect(stdout).toMatch(/^mode +context +batch +attention +kv +ffn +head +rest$/m);
    expect(stdout).toMatch(/^loaded and verified in .*, first token after .*, peak memory /m);
  });

  test("measures CPU and GPU in one run, with the GPU's share, memory by part, swaps, a trace and what was predicted", async () => {
    const vram = 2 ** 24 + (await budgetFor(at("model"), 0.8, 256));
    const devices = ["--device", "cpu", "gpu", "--vram", String(vram), "--trace", at("trace.json")];
    // Long enough that neurons change places.
    const long = ["--adapt", "--tokens", "100", "--repeats", "1", "--threads", "1"];
    const args = ["bench", at("x.pi"), ...devices, "--mode", "predictor", "--context", "50", ...long];
    const emulated = { PI_DEVICE: "emulated" };
    const { code, stdout, stderr } = await pi([...args, "--json"], emulated);
    expect([code, stderr]).toEqual([
      0,
      expect.stringMatching(/^pi: emulated device: .* of .* for \d+ neurons, attention of/m),
    ]);
    const { speeds, devices: runs } = JSON.parse(stdout) as Report;
    expect(speeds.map(({ device }) => device)).toEqual(["cpu", "emulated device"]);
    const [cpu, gpu] = speeds;
    expect(cpu!.gpu).toBeNull();
    expect(gpu!.gpu!.neuronShare).toBeGreaterThan(0.1);
    expect(gpu!.gpu!.neuronShare).toBeLessThan(1);
    expect(gpu!.gpu!.bytesPerToken).toBeGreaterThan(0);
    // What the CPU has left is read by the CPU.
    expect(gpu!.bytes.ffn).toBeLessThan(cpu!.bytes.ffn);
    expect(gpu!.gpu!.transfers).toBeGreaterThan(0);
    expect(gpu!.predictedTokensPerSecond).toBeGreaterThan(0);
    expect(gpu!.predictedKernels).toEqual({ count: gpu!.gpu!.kernels, seconds: expect.any(Number) as number });
    expect(gpu!.predictedKernels!.seconds).toBeGreaterThan(0);
    const { memory, budget, swaps } = runs[1]!.gpu!;
    expect(swaps).toEqual({ made: expect.any(Number) as number, stopped: null });
    expect(swaps!.made).toBeGreaterThan(0);
    const { total, ...parts } = memory;
    expect(total).toBe(Object.values(parts).reduce((a, b) => a + b));
    expect([budget, total <= budget]).toEqual([vram, true]);

    expect(runs[0]!.trace).toBeNull();
    const { prompt, layers } = runs[1]!.trace!;
    // The CPU's weights went to the GPU for the prompt, and no more than all of them.
    expect(prompt.streamedBytes).toBeGreaterThan(0);
    expect(prompt.streamedBytes).toBeLessThan((await stat(at("x.pi"))).size);
    expect(prompt.seconds).toBeGreaterThan(0);
    expect(layers).toHaveLength(CONFIG.nLayers);
    expect(layers.some(({ gpuSeconds, transfers }) => gpuSeconds > 0 && transfers > 0)).toBe(true);
    expect(layers.some(({ cpuSeconds }) => cpuSeconds > 0)).toBe(true);
    const trace = JSON.parse(await readFile(at("trace.json"), "utf8")) as {
      traceEvents: { name: string; ph: string; tid: number }[];
    };
    expect(trace.traceEvents.filter(({ name }) => name === "stream").length).toBeGreaterThan(1);
    const threads = new Set(trace.traceEvents.filter(({ ph }) => ph === "X").map(({ tid }) => tid));
    expect([...threads].sort()).toEqual([1, 2]);
  }, 180_000);

  test("refuses a trace of the CPU alone, and a GPU that is not there", async () => {
    const none = await inProcess(["bench", at("x.pi"), "--device", "cpu", "--trace", at("no.json"), ...SHORT]);
    expect(none).toMatchObject({ code: 1, stderr: expect.stringContaining("--trace: expected a model") as string });
    const gone = await pi(["bench", at("x.pi"), "--device", "gpu", ...SHORT], { PI_DEVICE: "none" });
    expect(gone).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^pi: --device gpu: .* \[E_DEVICE\]\n$/) as string,
    });
  });

  test("refuses a mode that the model does not have, and more tokens than its context", async () => {
    const noPredictors = await inProcess(["bench", at("model"), "--mode", "predictor", ...SHORT]);
    expect(noPredictors).toMatchObject({ code: 1, stderr: expect.stringContaining("[E_MODE]") as string });
    const long = await inProcess(["bench", at("model"), "--context", "9", "256", "--tokens", "1"]);
    expect(long).toMatchObject({
      code: 2,
      stderr: expect.stringContaining("--context and --tokens: expected at most 256 together, got 257") as string,
    });
    expect(await inProcess(["bench", at("model"), "--batch", "0"])).toMatchObject({ code: 2 });
    expect(await inProcess(["bench", at("model"), "--mode", "fast"])).toMatchObject({ code: 2 });
  });
});
