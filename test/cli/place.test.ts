import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { PlaceResult } from "../../place/place.ts";
import { budgetFor, FAST_GPU, writeWorkingDir } from "../place/working-dir.ts";
import { inProcess } from "./in-process.ts";
import { pi, piJson } from "./pi.ts";

let dir: string;
let half: string;
const at = (name: string): string => join(dir, name);

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-cli-place-"));
  await writeWorkingDir(at("model"));
  half = String(await budgetFor(at("model"), 0.5));
  await writeFile(at("hardware.json"), JSON.stringify(FAST_GPU));
});
afterAll(() => rm(dir, { recursive: true }));

const place = (...more: string[]): string[] => [
  "place",
  at("model"),
  "-o",
  at("x.pi"),
  "--hardware",
  at("hardware.json"),
  ...more,
];

describe("pi place", () => {
  test("prints the split, the memory it takes, the proof and the prediction, and nothing but results on stdout", async () => {
    const { code, stdout, stderr } = await pi(place("--vram", half));
    expect(stderr).toBe("");
    expect(code).toBe(0);
    expect(stdout).toMatch(/^layer +GPU neurons +at least +activations +attention +predictor$/m);
    const size = "[\\d.]+ [KM]iB";
    const memory = `^memory +${size} of ${size}: weights .* predictors .* KV .* scratch ${size}, context 1000 B$`;
    expect(stdout).toMatch(new RegExp(memory, "m"));
    expect(stdout).toMatch(/proven optimal \((greedy|search); HiGHS: /);
    expect(stdout).toMatch(/^predicted .* tokens\/s; all on the CPU /m);
    expect(stdout.trimEnd().endsWith(at("x.pi"))).toBe(true);
    expect((await pi(place("--vram", half))).stdout).toContain("x.pi is up to date");
  });

  test("takes the budget as a size, and a bare --vram-budget in GiB", async () => {
    const budgets = { "--vram=100MB": 100e6, "--vram-budget=0.5": 2 ** 29, "--vram=0": 0 };
    for (const [option, bytes] of Object.entries(budgets)) {
      const { placement } = await piJson<PlaceResult>(place(option, "--solver", "greedy"));
      expect(placement.vramBudget, option).toBe(bytes);
    }
  });

  test("takes a budget of main memory, and refuses one that is too small with the numbers", async () => {
    const { stdout } = await pi(place("--vram", half, "--ram", "1G"));
    expect(stdout).toMatch(/^RAM +\d.* of 1 GiB for what stays with the CPU$/m);
    const tight = await pi(place("--vram", half, "--ram", "1000"));
    expect(tight.code).toBe(1);
    expect(tight.stderr).toMatch(/RAM budget: expected at least \d+ bytes .*, got 1000 \[E_BUDGET\]/);
  });

  test("lets HiGHS decide with --solver ilp, to the same objective", async () => {
    const ours = await piJson<PlaceResult>(place("--vram", half, "--solver", "greedy"));
    const theirs = await piJson<PlaceResult>(place("--vram", half, "--solver", "ilp"));
    expect(ours.placement.referee).toBeNull();
    expect(theirs.placement.solver).toBe("ilp");
    expect(theirs.placement.objective).toBeCloseTo(ours.placement.objective, 12);
  });

  test("without a GPU or a hardware file places for a reference card, and says so", async () => {
    const { stdout, code } = await pi(["place", at("model"), "-o", at("here.pi"), "--vram", "1G"]);
    expect(code).toBe(0);
    expect(stdout).toContain("reference GPU (as fast as an RTX 4090)");
  });
});

describe("wrong usage", () => {
  test.each<[string, string[], RegExp]>([
    ["no budget", [], /required option '--vram <SIZE>' not specified/],
    ["a negative budget", ["--vram", "-1G"], /Expected a size such as 24G/],
    ["a budget that is no size", ["--vram", "lots"], /'lots' is invalid. Expected a size/],
    ["both spellings", ["--vram", "1G", "--vram-budget", "1"], /cannot be used with option/],
    ["an unknown solver", ["--vram", "1G", "--solver", "guess"], /Allowed choices are auto, greedy, ilp/],
    ["no context", ["--vram", "1G", "--ctx", "0"], /Expected a whole number of at least 1/],
    ["an unknown option", ["--vram", "1G", "--gpu", "1"], /unknown option '--gpu'/],
  ])("%s exits with 2", async (_, options, message) => {
    const { code, stderr } = await inProcess(place(...options));
    expect(stderr).toMatch(message);
    expect(code).toBe(2);
  });

  test("a budget too small exits with 1, one line with both numbers, and writes nothing", async () => {
    await rm(at("x.pi"), { force: true });
    const { code, stderr } = await inProcess(place("--vram", "64K"));
    expect(code).toBe(1);
    expect(stderr).toMatch(
      /^pi: VRAM budget: expected 0 \(CPU only\) or at least \d+ bytes .*, got 65536 \[E_BUDGET\]\n$/,
    );
    expect((await readdir(dir)).filter((name) => name.includes("x.pi"))).toEqual([]);
  });
});
