import { spawnSync } from "node:child_process";
import { chmod, mkdir, mkdtemp, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const root = join(import.meta.dirname, "../..");

interface Phase {
  state: "ok" | "failed" | "skipped";
  seconds: number;
  reason: string;
  results?: Record<string, unknown>[];
}
interface Results {
  device: string;
  failed: boolean;
  phases: Record<string, Phase & Record<string, unknown>>;
}

let folder: string;
beforeAll(async () => (folder = await mkdtemp(join(tmpdir(), "pi-gpu-"))));
afterAll(() => rm(folder, { recursive: true }));

/** Runs scripts/gpu.sh without a GPU; its exit status, what it said, and results.json. */
async function gpu(out: string, ...args: string[]) {
  const options = ["--emulated", "--out", join(folder, out), ...args];
  const { status, stderr } = spawnSync(join(root, "scripts/gpu.sh"), options, { encoding: "utf8" });
  const results = JSON.parse(await readFile(join(folder, out, "results.json"), "utf8")) as Results;
  return { status, stderr, results };
}

/** A program that does what the shell script says. */
async function program(path: string, script: string): Promise<string> {
  await mkdir(dirname(path), { recursive: true });
  await writeFile(path, `#!/bin/sh\n${script}\n`);
  await chmod(path, 0o755);
  return path;
}

/** A build folder with such a program of checks. */
async function build(name: string, script: string): Promise<string> {
  await program(join(folder, name, "Release/pi_device_checks"), script);
  return join(folder, name);
}

describe("scripts/gpu.sh", () => {
  it("measures split models, says what it skipped and why", async () => {
    const phases = "hardware,sanitizer,hybrid,peers";
    const { status, stderr, results } = await gpu("dry", "--build", join(root, "build"), "--phases", phases);
    expect(stderr).toContain("results.json");
    expect(status).toBe(0);
    expect(results).toMatchObject({ device: "emulated", failed: false });
    const { hardware, sanitizer, hybrid, peers } = results.phases;
    expect(hardware!["cores"]).toBeGreaterThan(0);
    expect(sanitizer).toMatchObject({ state: "skipped", reason: "there is no GPU" });
    expect(peers).toMatchObject({ state: "skipped", reason: "there is no GPU" });
    expect(hybrid!.results!.map(({ shape, type }) => `${String(shape)} ${String(type)}`)).toEqual([
      "tiny f16",
      "tiny q4_0",
    ]);
  });

  it("keeps to its budgets, with neurons on both sides", async () => {
    const models = ["--models", "tiny:f16:0.08"];
    const { results } = await gpu("budgets", "--build", join(root, "build"), "--phases", "hybrid", ...models);
    const runs = results.phases["hybrid"]!.results![0]!["runs"] as Record<string, number | Record<string, number>>[];
    expect(runs.map(({ run }) => run)).toEqual(["cpu", "1/5", "1/3", "1/2", "gpu"]);
    const [cpu, , third, half, all] = runs;
    expect(cpu!["predictedShare"]).toBeCloseTo(0.08, 1);
    for (const run of runs.slice(1)) {
      const parts = Object.values(run["deviceBytes"] as Record<string, number>);
      expect(parts.reduce((a, b) => a + b)).toBeLessThanOrEqual(run["budgetBytes"] as number);
    }
    // Hot neurons come first: a part of them is a larger part of the work.
    expect(half!["gpuShareOfNeurons"]).toBeGreaterThan((half!["neuronsPerLayer"] as number) / 2048);
    expect(half!["gpuShareOfNeurons"]).toBeGreaterThan(third!["gpuShareOfNeurons"] as number);
    expect(all!["gpuShareOfNeurons"]).toBe(1);
    expect(half!["overlap"]).not.toBeNull();
  });

  it("fails where a check fails, and says which", async () => {
    const bad = await build("bad", `echo "ok one"; printf '%s\\n' 'FAIL two: expected "a\\b", got 1'; exit 1`);
    const { status, results } = await gpu("failing", "--build", bad, "--phases", "checks");
    expect(status).toBe(1);
    expect(results.failed).toBe(true);
    expect(results.phases["checks"]).toMatchObject({ state: "failed", ok: 1, failed: 1 });
    expect(results.phases["checks"]!.reason).toContain('FAIL two: expected "a\\b", got 1');
  });

  it("stops a phase at the limit, and keeps what earlier calls found", async () => {
    await gpu("twice", "--phases", "hardware");
    const slow = await build("slow", "sleep 30");
    const { status, results } = await gpu("twice", "--build", slow, "--phases", "checks", "--limit", "1");
    expect(status).toBe(1);
    expect(results.phases["checks"]).toMatchObject({ state: "failed", reason: "stopped at the limit of 1 s" });
    expect(results.phases["hardware"]).toMatchObject({ state: "ok" });
    const again = await gpu("twice", "--build", await build("good", "echo ok one"), "--phases", "checks");
    expect(again).toMatchObject({ status: 0, results: { failed: false } });
  });

  it("fails where nothing was built", async () => {
    const { status, results } = await gpu("none", "--build", join(folder, "nowhere"), "--phases", "splits,kernels");
    expect(status).toBe(1);
    expect(results.phases["splits"]!.reason).toContain("--phases build");
  });

  it("gives llama.cpp as many layers as keep to the budget, PowerInfer the budget", { timeout: 30_000 }, async () => {
    const [used, looks, model] = ["used", "looks", "model.gguf"].map((name) => join(folder, name)) as [
      string,
      string,
      string,
    ];
    await writeFile(used, "1000");
    await writeFile(looks, "");
    await writeFile(model, "");
    await truncate(model, 3_600_000_000);
    await program(join(folder, "bin/nvidia-smi"), `cat ${used}; echo >>${looks}`);
    // 100 MiB a layer, until somebody has seen it: the second look from now began after now.
    const llama = await program(
      join(folder, "llama-bench"),
      `while [ "$1" != -ngl ]; do shift; done
      seen() { wc -l <${looks}; }
      echo $((1000 + $2 * 100)) >${used}; before=$(seen)
      until [ $(seen) -ge $((before + 2)) ]; do sleep 0.05; done
      echo 1000 >${used}
      echo "[ { \\"n_gen\\": 64, \\"avg_ts\\": $2.25 } ]"`,
    );
    const powerInfer = await program(
      join(folder, "main"),
      `echo "llama_print_timings: prompt eval time = 1 ms / 4 tokens (0.2 ms per token, 99.00 tokens per second)"
      echo "llama_print_timings:        eval time = 2 ms / 64 runs (0.3 ms per token, 42.50 tokens per second) $*"`,
    );
    const out = join(folder, "peers");
    const budget = 500 << 20;
    const options = ["--phases", "peers", "--out", out, "--peer-budget", `${budget}`, "--llama-bench", llama];
    options.push("--llama-model", model, "--powerinfer", powerInfer, "--powerinfer-model", model);
    const env = { ...process.env, PATH: `${join(folder, "bin")}:${process.env["PATH"]}` };
    const { status } = spawnSync(join(root, "scripts/gpu.sh"), options, { encoding: "utf8", env });
    expect(status).toBe(0);
    const { phases } = JSON.parse(await readFile(join(out, "results.json"), "utf8")) as Results;
    const both = { model: "model.gguf", budgetBytes: budget };
    expect(phases["peers"]!.results).toEqual([
      { name: "PowerInfer", ...both, gpuBytes: 0, tokensPerSecond: 42.5 },
      { name: "llama.cpp", ...both, gpuBytes: budget, tokensPerSecond: 5.25, gpuLayers: 5 },
    ]);
    expect(await readFile(join(out, "peers-powerinfer.log"), "utf8")).toContain("--vram-budget 0.48828");
  });

  it.each([
    [["--phases", "checks,tea"], "--phases: expected some of"],
    [["--teapot"], "unknown option --teapot"],
    [["--limit", "soon"], "--limit: expected a number, got soon"],
    [["--out"], "--out: expected a value"],
  ])("refuses %j", (args, message) => {
    const { status, stderr } = spawnSync(join(root, "scripts/gpu.sh"), args, { encoding: "utf8" });
    expect(status).toBe(2);
    expect(stderr).toContain(message);
  });
});
