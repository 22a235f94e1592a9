import { mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { writeTinyModel } from "../profile/tiny-model.ts";
import { pi, piJson } from "./pi.ts";

interface Report {
  upToDate?: boolean;
  tokens: number;
  heldoutTokens: number;
  corpora: { name: string; tokens: number }[];
  layers: { idle: number; hot80: number; never: number }[];
}

let dir: string;
let model: string;
let corpus: string;

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-profile-cli-"));
  [model, corpus] = [join(dir, "model"), join(dir, "corpus.jsonl")];
  await writeTinyModel(model);
  const rows = Array.from({ length: 40 }, (_, i) =>
    JSON.stringify({ body: `line ${i} of a corpus of many short lines` }),
  );
  await writeFile(corpus, rows.join("\n"));
});
afterAll(() => rm(dir, { recursive: true }));

const usual = () => ["profile", model, "--corpus", corpus, "--field", "body", "--window", "16"];

describe("pi profile", () => {
  it("reports tokens and sparsity per layer, and does nothing the second time", async () => {
    const first = await piJson<Report>(usual());
    expect(first.upToDate).toBe(false);
    expect(first.corpora).toMatchObject([{ name: "corpus.jsonl", tokens: first.tokens + first.heldoutTokens }]);
    expect(first.layers).toHaveLength(2);
    for (const { idle, hot80, never } of first.layers) {
      expect(idle).toBeGreaterThan(0.2);
      expect(idle).toBeLessThan(0.8);
      expect(hot80).toBeLessThan(0.8);
      expect(never).toBeGreaterThanOrEqual(0);
    }
    const { code, stdout } = await pi(usual());
    expect(code).toBe(0);
    expect(stdout).toMatch(/^layer +idle +neurons giving 80 % +never active\n/);
    expect(stdout).toMatch(/ tokens profiled, .* held out, up to date\n$/);
  });

  it("profiles shards elsewhere and merges them", async () => {
    const whole = await piJson<Report>(usual());
    const shards = ["1/2", "2/2"].map((shard) => ({ shard, out: join(dir, `shard-${shard[0]}`) }));
    for (const { shard, out } of shards) await piJson([...usual(), "--shard", shard, "-o", out]);
    const parts = shards.map(({ out }) => join(out, "activations.arrow"));
    const merged = await piJson<Report>(["profile", "--merge", ...parts, "-o", join(dir, "merged")]);
    expect(merged.layers).toEqual(whole.layers);
    expect(merged.corpora).toEqual(whole.corpora);
    expect(await readdir(join(dir, "merged", "samples"))).toEqual([
      "heldout.safetensors",
      "layer-000.arrow",
      "layer-001.arrow",
    ]);
  });

  it.each([
    { args: ["profile"], problem: "missing DIR" },
    { args: ["profile", "somewhere"], problem: "missing --corpus" },
    { args: ["profile", "somewhere", "--corpus", "x", "--shard", "3/2"], problem: "'3/2' is invalid" },
    { args: ["profile", "somewhere", "--corpus", "x", "--window", "1"], problem: "'1' is invalid" },
    { args: ["profile", "--merge", "a", "b"], problem: "--merge needs -o" },
    {
      args: ["profile", "somewhere", "-o", "c", "--merge", "a", "b"],
      problem: "--merge takes neither DIR nor --corpus",
    },
    { args: ["profile", "--frequency"], problem: "unknown option '--frequency'" },
  ])("exits with 2 on wrong usage: $args", async ({ args, problem }) => {
    const { code, stdout, stderr } = await pi(args);
    expect(code).toBe(2);
    expect(stdout).toBe("");
    expect(stderr).toContain(problem);
  });

  it("exits with 1 and one line when the corpus is wrong, and leaves nothing behind", async () => {
    const out = join(dir, "failed");
    const { code, stderr } = await pi([...usual(), "--field", "text", "-o", out]);
    expect(code).toBe(1);
    expect(stderr).toBe(`pi: ${corpus}:1: expected a string in field text, found fields body [E_CORPUS]\n`);
    await expect(readdir(out)).rejects.toMatchObject({ code: "ENOENT" });
  });
});
