/** The stages end to end as a user runs them: commands joined by files. */
import { cp, mkdtemp, readdir, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Provenance } from "../../formats/provenance.ts";
import { sha256File } from "../../io/hash.ts";
import { activationsPath, readActivations } from "../../io/profile-files.ts";
import { readSafetensors, readTensorBytes } from "../../io/safetensors-file.ts";
import { budgetFor, FAST_GPU } from "../place/working-dir.ts";
import { writeTinyCheckpoint } from "../runtime/tiny-model.ts";
import { pi, piJson } from "./pi.ts";

let dir: string;
let checkpoint: string;
let work: string;
let artifact: string;
const at = (...names: string[]): string => join(dir, ...names);

/** Fixed hardware, so that nothing measured gets into the outputs; a budget that some of the neurons fit. */
const machine = (): string[] => ["--hardware", at("hardware.json")];
const placing = (): string[] => ["--vram", String(budget), "--ctx", "16", ...machine()];
let budget: number;

const text = (sentences: number, salt: number): string =>
  Array.from({ length: sentences }, (_, i) => `The ${(i * salt) % 17} ships of ${i * i + salt} crews sail on. `).join(
    "",
  );

interface StageReport {
  upToDate?: boolean;
  converted?: boolean;
}

/** Runs the four stages; each says whether it had anything to do. */
async function stages(): Promise<boolean[]> {
  const { converted } = await piJson<StageReport>(["convert", checkpoint, "-o", work, "--dtype", "f32"]);
  const commands = [
    ["profile", work, "--corpus", at("corpus.txt")],
    ["train-predictor", work, ...machine()],
  ];
  const done = [converted!];
  for (const command of commands) done.push(!(await piJson<StageReport>(command)).upToDate);
  budget = await budgetFor(work, 0.5, 16);
  const placed = await piJson<StageReport>(["place", work, "-o", artifact, ...placing()]);
  return [...done, !placed.upToDate];
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), "pi-pipeline-"));
  [checkpoint, work, artifact] = [at("checkpoint"), at("work"), at("tiny.pi")];
  await writeTinyCheckpoint(checkpoint);
  await writeFile(at("corpus.txt"), text(400, 3));
  await writeFile(at("other.txt"), text(400, 7));
  await writeFile(at("heldout.txt"), text(60, 5));
  await writeFile(at("hardware.json"), JSON.stringify(FAST_GPU));
  expect(await stages()).toEqual([true, true, true, true]);
});
afterAll(() => rm(dir, { recursive: true }));

/** Every output of the stages: when it was written, and what is in it. */
async function outputs(): Promise<Record<string, { written: number; sha256: string }>> {
  const samples = (await readdir(join(work, "samples"))).map((name) => join(work, "samples", name));
  const stageFiles = ["model.safetensors", "activations.arrow", "predictors.safetensors"].map((name) =>
    join(work, name),
  );
  const found: Awaited<ReturnType<typeof outputs>> = {};
  for (const path of [...stageFiles, ...samples, artifact]) {
    found[path] = { written: (await stat(path)).mtimeMs, sha256: await sha256File(path) };
  }
  return found;
}

const provenanceOf = async (path: string): Promise<Provenance> =>
  JSON.parse((await readSafetensors(path)).metadata["pi.provenance"]!) as Provenance;

describe("stages", () => {
  test("do nothing the second time", async () => {
    const before = await outputs();
    expect(Object.keys(before)).toHaveLength(7);
    expect(await stages()).toEqual([false, false, false, false]);
    expect(await outputs()).toEqual(before);
  });

  test("make the same bytes again when they are told to", async () => {
    const before = await outputs();
    await piJson(["convert", checkpoint, "-o", work, "--dtype", "f32", "--force"]);
    await piJson(["profile", work, "--corpus", at("corpus.txt"), "--force", "--threads", "1"]);
    await piJson(["train-predictor", work, ...machine(), "--force", "--threads", "1"]);
    await piJson(["place", work, "-o", artifact, ...placing(), "--force"]);
    const after = await outputs();
    for (const [path, { sha256, written }] of Object.entries(before)) {
      expect(after[path]!.sha256, path).toBe(sha256);
      expect(after[path]!.written, path).toBeGreaterThan(written);
    }
  });

  test("say what they were made from, back to the checkpoint", async () => {
    const convert = await provenanceOf(join(work, "model.safetensors"));
    expect(convert).toMatchObject({
      stage: "convert",
      options: { dtype: "f32" },
      inputs: {
        "source:config.json": await sha256File(join(checkpoint, "config.json")),
        "source:model.safetensors": await sha256File(join(checkpoint, "model.safetensors")),
      },
    });
    const model = (await readSafetensors(join(work, "model.safetensors"))).metadata["pi.weights"]!;
    const { provenance: profile } = await readActivations(activationsPath(work));
    const corpus = await sha256File(at("corpus.txt"));
    expect(profile).toMatchObject({ stage: "profile", inputs: { model, "corpus:0": corpus } });
    const activations = await sha256File(activationsPath(work));
    const train = await provenanceOf(join(work, "predictors.safetensors"));
    expect(train).toMatchObject({ stage: "train-predictor", inputs: { model, activations } });
    const predictors = await sha256File(join(work, "predictors.safetensors"));
    const place = await provenanceOf(artifact);
    expect(place).toMatchObject({ stage: "place", inputs: { model, activations, predictors } });
  });

  test("run again when an input or an option changed, and all that depends on it", async () => {
    const other = at("other-work");
    await cp(work, other, { recursive: true });
    const train = ["train-predictor", other, ...machine()];
    expect(await piJson(train)).toMatchObject({ upToDate: true });
    expect(await piJson([...train, "--seed", "1"])).toMatchObject({ upToDate: false });
    expect(await piJson(["profile", other, "--corpus", at("other.txt")])).toMatchObject({ upToDate: false });
    expect(await piJson([...train, "--seed", "1"])).toMatchObject({ upToDate: false });
    const place = ["place", other, "-o", at("other.pi"), ...placing()];
    expect(await piJson(place)).toMatchObject({ upToDate: false });
    expect(await piJson([...place, "--vram", "0"])).toMatchObject({ upToDate: false });
  });
});

test("pi build makes the same artifact as the stages, byte for byte, and it needs nothing else", async () => {
  const options = [
    "--corpus",
    at("corpus.txt"),
    "--dtype",
    "f32",
    ...placing(),
    "--name",
    "tiny",
    "-o",
    at("built.pi"),
  ];
  await piJson(["build", checkpoint, ...options, "--dir", at("build")]);
  expect(await sha256File(at("built.pi"))).toBe(await sha256File(artifact));
  await rm(at("build"), { recursive: true });
  for (const mode of ["dense", "exact", "predictor"]) {
    const run = async (path: string, ...more: string[]): Promise<string> => {
      const args = ["run", path, "The 3 ships", "--mode", mode, "--temp", "0", "--ignore-eos", "-n", "24", ...more];
      return (await piJson<{ text: string }>(args)).text;
    };
    const generated = await run(at("built.pi"));
    expect(generated.length).toBeGreaterThan(10);
    expect(await run(work, "--predictors", join(work, "predictors.safetensors")), mode).toBe(generated);
  }
});

describe("the artifact", () => {
  test("puts neurons on the GPU within the budget", async () => {
    const { placement } = await piJson<{
      placement: { layers: { gpuNeurons: number }[]; memory: { total: number }; vramBudget: number };
    }>(["place", work, "-o", artifact, ...placing()]);
    expect(placement.vramBudget).toBe(budget);
    expect(placement.memory.total).toBeLessThanOrEqual(budget);
    expect(placement.layers.some(({ gpuNeurons }) => gpuNeurons > 0)).toBe(true);
  });

  test("is measured mode by mode, as one document", async () => {
    interface Report {
      tokens: number;
      modes: Record<string, Record<string, number>>;
    }
    const report = await piJson<Report>(["eval", artifact, "--corpus", at("heldout.txt")]);
    expect(Object.keys(report)).toEqual(["tokens", "modes"]);
    expect(report.tokens).toBeGreaterThan(1000);
    expect(Object.keys(report.modes)).toEqual(["dense", "exact", "predictor"]);
    const { dense, exact, predictor } = report.modes;
    expect(Object.keys(dense!).sort()).toEqual(["bytesPerToken", "perplexity"]);
    const measured = [
      "bytesPerToken",
      "meanKl",
      "p99Kl",
      "perplexity",
      "perplexityRatio",
      "top1Agreement",
      "weightedRecall",
    ];
    expect(Object.keys(predictor!).sort()).toEqual(measured);
    expect(exact).toMatchObject({ perplexity: dense!["perplexity"], perplexityRatio: 1, meanKl: 0, top1Agreement: 1 });
    expect(predictor!["perplexityRatio"]).toBeCloseTo(predictor!["perplexity"]! / dense!["perplexity"]!, 9);
    for (const mode of [exact, predictor]) expect(mode!["bytesPerToken"]).toBeLessThan(dense!["bytesPerToken"]!);
  });

  test("gives its logits to whoever wants to compare", async () => {
    await writeFile(at("ids.json"), "[1, 40, 41, 42, 43]");
    const logits = async (path: string, mode: string): Promise<Float32Array> => {
      const out = at("logits.safetensors");
      await piJson(["eval", path, "--tokens", at("ids.json"), "--logits", out, "--mode", mode]);
      const file = await readSafetensors(out);
      expect(file.tensors.get("logits")).toMatchObject({ dtype: "F32", shape: [5, 128] });
      return new Float32Array((await readTensorBytes(file, "logits")).buffer);
    };
    const dense = await logits(artifact, "dense");
    expect(await logits(artifact, "exact")).toEqual(dense);
    // The sum over neurons runs hot first in the artifact, so only nearly the same.
    const range = Math.max(...dense) - Math.min(...dense);
    const original = await logits(work, "dense");
    for (const [i, x] of original.entries()) expect(Math.abs(x - dense[i]!)).toBeLessThan(1e-5 * range);
  });

  test("is no input of an earlier stage", async () => {
    const { code, stderr } = await pi(["place", artifact, "-o", at("again.pi"), "--vram", "0"]);
    expect([code, stderr]).toEqual([1, expect.stringContaining("expected a converted model, found an artifact")]);
  });
});
